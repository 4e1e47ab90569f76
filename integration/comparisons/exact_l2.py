"""The L2 distance of the nearest input that a small ReLU network classifies otherwise, by a walk through its regions.

Jordan, Lewis and Dimakis 2019, "Provable certificates for adversarial examples: fitting a ball in the union of
polytopes": the regions on which the network is linear are visited in the order of their distance from the input; the
segment to the nearest example runs through regions that are no farther than it, each next to the one before.

A distance to a region, or to the part of it where another class is decided, is a quadratic programme whose dual has a
variable for each neuron. Any value of the dual is a lower bound, so an inexact solution costs tightness alone; the
upper bound is the distance of an input that the network itself misclassifies.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

Array = NDArray[np.float64]
Pattern = tuple[bool, ...]


@dataclass(frozen=True)
class Between:
    """The distance lies between these; they are equal but for rounding where the walk has come to its end."""

    lower: float
    upper: float
    regions: int


def nearest_other_class(
    model: nn.Sequential, x: Tensor, y: int, *, known: float, clip: tuple[float, float], regions: int = 2000
) -> Between:
    """The bounds on the distance from one input `x` of shape (*features) to where the decision is not `y`.

    `model` is made of flattening, linear layers and ReLUs. `known` is the distance of an example that is known;
    `regions` are visited at most. Inputs stay inside `clip`.
    """
    walk = _Walk(model, x, y, clip)
    start = walk.pattern()
    heap, seen = [(0.0, start)], {start}
    upper, parts, visited = known, np.inf, 0
    while heap and heap[0][0] < upper * (1 - 1e-6) and visited < regions:
        _, pattern = heapq.heappop(heap)
        visited += 1
        for rows, limits in walk.other_classes(pattern):
            low, step = walk.distance(rows, limits, upper)
            if low < upper:
                parts = min(parts, low)
                upper = min(upper, walk.example(step))
        for neighbour in walk.neighbours(pattern, upper):
            if neighbour not in seen:
                seen.add(neighbour)
                low, _ = walk.distance(*walk.region(neighbour), upper)
                if low < upper:
                    heapq.heappush(heap, (low, neighbour))
    left = heap[0][0] if heap else np.inf
    return Between(float(min(left, parts, upper)), float(upper), visited)


class _Walk:
    def __init__(self, model: nn.Sequential, x: Tensor, y: int, clip: tuple[float, float]) -> None:
        layers = [layer for layer in model if isinstance(layer, nn.Linear)]
        others = [layer for layer in model if not isinstance(layer, nn.Linear | nn.ReLU | nn.Flatten)]
        if others:
            raise ValueError(f"{others[0]} is no linear layer, ReLU or flattening")
        self.model, self.like, self.y = model, x, y
        self.x = x.detach().double().numpy().ravel()
        self.weights = [(_numbers(layer.weight), _numbers(layer.bias)) for layer in layers]
        self.low, self.high = clip[0] - self.x, clip[1] - self.x

    def pattern(self) -> Pattern:
        """Which neurons are active at the input."""
        found: list[bool] = []
        z = self.x
        for weight, bias in self.weights[:-1]:
            z = weight @ z + bias
            found += (z > 0).tolist()
            z = z.clip(min=0)
        return tuple(found)

    def linear(self, pattern: Pattern) -> tuple[Array, Array, Array, Array]:
        """The neurons' inputs and the logits as linear functions of the step away from the input."""
        slope, value, at = np.eye(len(self.x)), self.x, 0
        rows, values = [slope[:0]], [value[:0]]
        for weight, bias in self.weights[:-1]:
            slope, value = weight @ slope, weight @ value + bias
            rows.append(slope)
            values.append(value)
            active = np.array(pattern[at : at + len(value)], dtype=np.float64)
            slope, value, at = active[:, None] * slope, active * value, at + len(value)
        weight, bias = self.weights[-1]
        return np.concatenate(rows), np.concatenate(values), weight @ slope, weight @ value + bias

    def region(self, pattern: Pattern) -> tuple[Array, Array]:
        """The region as `rows @ step <= limits`."""
        rows, values, _, _ = self.linear(pattern)
        sign = np.where(pattern, -1.0, 1.0)
        return sign[:, None] * rows, -sign * values

    def other_classes(self, pattern: Pattern) -> Iterator[tuple[Array, Array]]:
        """For each other class, the part of the region where its logit is not below that of `y`."""
        rows, limits = self.region(pattern)
        _, _, slopes, logits = self.linear(pattern)
        for other in range(len(logits)):
            if other != self.y:
                ahead, lead = slopes[self.y] - slopes[other], logits[self.y] - logits[other]
                yield np.vstack((rows, ahead)), np.append(limits, -lead)

    def neighbours(self, pattern: Pattern, most: float) -> Iterator[Pattern]:
        """The regions behind those neurons' boundaries that could be nearer than `most`."""
        rows, values, _, _ = self.linear(pattern)
        lengths = np.linalg.norm(rows, axis=1)
        for i in np.flatnonzero((lengths > 0) & (np.abs(values) < most * lengths)):
            yield (*pattern[:i], not pattern[i], *pattern[i + 1 :])

    def distance(self, rows: Array, limits: Array, most: float) -> tuple[float, Array]:
        """A lower bound on the length of a step with `rows @ step <= limits`, and about the shortest such step.

        The solution ends as soon as the bound is `most`, which it soon is where there is no such step.
        """
        lengths = np.linalg.norm(rows, axis=1).clip(min=1e-12)
        rows, limits = rows / lengths[:, None], limits / lengths
        best = 0.0
        step = np.zeros_like(self.x)

        def dual(prices: Array) -> tuple[float, Array]:
            nonlocal best, step
            moved = (-(prices @ rows)).clip(self.low, self.high)
            missing = rows @ moved - limits
            value = 0.5 * moved @ moved + prices @ missing
            if value > best:
                best, step = value, moved
            return -value, -missing

        def enough(*_: object) -> None:
            if best >= 0.5 * most**2:
                raise StopIteration

        start = np.zeros(len(limits))
        minimize(
            dual, start, jac=True, bounds=[(0, None)] * len(start), method="L-BFGS-B", callback=enough,
            options={"maxiter": 500, "ftol": 1e-13, "gtol": 1e-9, "maxcor": 20},
        )  # fmt: skip
        return float(np.sqrt(2 * best)), step

    def example(self, step: Array) -> float:
        """The distance of an input a little beyond the step that is decided otherwise; inf where there is none."""
        for beyond in (1 + 1e-7, 1 + 1e-6, 1 + 1e-5, 1 + 1e-4):
            z = self.x + (beyond * step).clip(self.low, self.high)
            point = torch.tensor(z, dtype=self.like.dtype).view(1, *self.like.shape)
            with torch.no_grad():
                if int(self.model(point).argmax(1)) != self.y:
                    return float((point - self.like).double().norm())
        return float(np.inf)


def _numbers(values: Tensor) -> Array:
    found: Array = values.detach().double().numpy()
    return found
