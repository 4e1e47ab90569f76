"""`optimised`: the best line under a combination of rows in each box, over the slopes of its open ReLUs.

The line below an open ReLU may have any slope in [0, 1], and rows that are asked about together any weights >= 0: both
ascend at once, in single precision. What is found is evaluated once more in double precision, and counts as that.
The derivative of a bound by a slope is `max(a, 0) z`, where a is the coefficient that reaches the ReLU and z the
argument that the bound's minimiser has when it is sent forward through the chosen lines; that by a row's weight is the
row's value there.

Xu et al. 2021, "Fast and complete: enabling complete neural network verification with rapid and massively parallel
incomplete verifiers".
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.decisions.verifier.boxes import Bounded, Bounds, applied
from robust_plugins.decisions.verifier.chains import Layer
from robust_plugins.intervals.methods.ascent import MOMENTS

RATE, DECAY, ROW_RATE = 0.25, 0.98, 2.0


class Lines(NamedTuple):
    """Lines `a x + b` under a combination of each box's rows, whose weights sum up to 1, and their least values."""

    value: Float[Tensor, " boxes"]
    a: Float[Tensor, "boxes inputs"]
    b: Float[Tensor, " boxes"]


class _Now(NamedTuple):
    """The boxes that are left, with all that moves; tensors of neurons are (boxes, neurons), layer after layer."""

    centre: Tensor
    radius: Tensor
    rows: Tensor
    offsets: Tensor
    weights: Tensor
    chord: Tensor
    over: Tensor
    movable: Tensor
    slopes: Tensor
    mean: Tensor
    square: Tensor


def optimised(
    bounds: Bounds,
    found: Bounded,
    rows: Float[Tensor, "boxes rows outputs"],
    offsets: Float[Tensor, "boxes rows"],
    weights: Float[Tensor, "boxes rows"],
    steps: int,
) -> Lines:
    """The best lines that so many steps find, less what they are off by; a box whose line is positive is left alone.

    - `found`: of a chain whose functions are ReLUs
    - `weights`: to begin with, positive ones
    """
    now = _begun(found, rows, offsets, weights)
    slopes, weights = now.slopes.clone(), now.weights.clone()
    fast = tuple(replace(layer, weight=layer.weight.float(), bias=layer.bias.float()) for layer in bounds.layers)
    quick = _Now(*(t.float() for t in now))
    best, live = torch.full((len(rows),), -torch.inf), torch.arange(len(rows))
    for step in range(steps + 1):
        reached, line, constant = _backward(fast, bounds.starts, quick)
        value = constant + (line * quick.centre).sum(1) - (line.abs() * quick.radius).sum(1)
        better = value > best[live]
        at = live[better]
        best[at], slopes[at], weights[at] = value[better], quick.slopes[better].double(), quick.weights[better].double()
        stay = ~(value > 0)
        left = int(stay.sum())
        if step == steps or not left:
            break
        point = quick.centre - line.sign() * quick.radius
        if 4 * left <= 3 * len(stay):
            chosen = stay.nonzero().flatten()
            live, point, reached = live[chosen], point[chosen], reached[chosen]
            quick = _Now(*(t[chosen] for t in quick))
        quick = _moved(fast, bounds.starts, quick, reached, point, step)
    slopes = torch.where(now.movable > 0, slopes.clamp(0, 1), now.slopes)
    now = now._replace(slopes=slopes, weights=weights / weights.sum(1, keepdim=True))
    _, a, b = _backward(bounds.layers, bounds.starts, now)
    b = b - _off(bounds, found, rows, offsets)
    return Lines(b + (a * now.centre).sum(1) - (a.abs() * now.radius).sum(1), a, b)


def _begun(found: Bounded, rows: Tensor, offsets: Tensor, weights: Tensor) -> _Now:
    chord = torch.cat([s.slope for s in found.strips], 1)
    over = torch.cat([s.above[1] for s in found.strips], 1)
    slopes = torch.cat([s.below[0] for s in found.strips], 1)
    movable = ((chord > 0) & (over > 0)).to(chord)
    none = torch.zeros_like(chord)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-300)
    weights = (weights + 1 / weights.shape[1]) / 2  # one of zero could not grow
    boxes = found.boxes
    return _Now(
        boxes.centre, boxes.radius, rows, offsets, weights / weights.sum(1, keepdim=True), chord, over, movable, slopes,
        none, none.clone(),
    )  # fmt: skip


def _off(bounds: Bounds, found: Bounded, rows: Tensor, offsets: Tensor) -> Tensor:
    """The most that rounding moves a line by, whatever its slopes and weights are: that of any row, twice."""
    size = found.boxes.centre.abs() + found.boxes.radius
    for layer, strip in zip(bounds.layers[:-1], found.strips, strict=True):
        size = size @ layer.weight.abs().t() + layer.size
        size = torch.where(strip.slope > 0, size, 0.0) + strip.above[1]
    size = size @ bounds.layers[-1].weight.abs().t() + bounds.layers[-1].size
    terms = 2.0**-53 * 4 * rows.shape[1]
    return (2 * bounds.gamma + 2 * terms) * (applied(rows.abs(), size) + offsets.abs()).amax(1)


def _backward(layers: tuple[Layer, ...], starts: list[int], now: _Now) -> tuple[Tensor, Tensor, Tensor]:
    """The coefficients that reach the neurons, and the lines of the inputs."""
    a, b = applied(now.rows.mT, now.weights), (now.weights * now.offsets).sum(1)
    reached = torch.empty_like(now.slopes)
    for k in range(len(layers) - 1, -1, -1):
        b, a = b + a @ layers[k].bias, a @ layers[k].weight
        if k:
            of = slice(starts[k - 1], starts[k])
            reached[:, of] = a
            positive, negative = a.clamp(min=0), a.clamp(max=0)
            b = b + (negative * now.over[:, of]).sum(1)
            a = positive.mul_(now.slopes[:, of]).add_(negative.mul_(now.chord[:, of]))
    return reached, a, b


def _moved(layers: tuple[Layer, ...], starts: list[int], now: _Now, reached: Tensor, point: Tensor, step: int) -> _Now:
    """One step up."""
    h, below = point, reached < 0
    slopes, gradient = torch.where(below, now.chord, now.slopes), torch.empty_like(reached)
    intercepts = now.over * below
    for k, layer in enumerate(layers[:-1]):
        of = slice(starts[k], starts[k + 1])
        z = torch.addmm(layer.bias, h, layer.weight.t())
        gradient[:, of] = z
        h = torch.addcmul(intercepts[:, of], slopes[:, of], z)
    outputs = torch.addmm(layers[-1].bias, h, layers[-1].weight.t())
    gradient.mul_(reached.clamp(min=0)).mul_(now.movable)
    first, second = MOMENTS
    mean = now.mean.lerp_(gradient, 1 - first)
    square = now.square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    rate = RATE * DECAY**step * math.sqrt(1 - second ** (step + 1)) / (1 - first ** (step + 1))
    moved = now.slopes.addcdiv(mean, square.sqrt().add_(1e-8), value=rate).clamp_(0, 1)
    values = applied(now.rows, outputs) + now.offsets
    scale = values.abs().amax(1, keepdim=True).clamp(min=1e-9)
    weights = now.weights * torch.exp(ROW_RATE / (1 + 0.3 * step) * values / scale)
    return now._replace(slopes=moved, weights=weights / weights.sum(1, keepdim=True), mean=mean, square=square)
