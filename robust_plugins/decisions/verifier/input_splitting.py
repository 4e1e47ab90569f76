"""`split_inputs`: a fully connected ReLU network of few inputs is decided by halving boxes of inputs.

Every box bounds all neurons by linear relaxation, with one slope for both sides: the relaxed ReLU is a strip of slope
`hi / (hi - lo)` above the line through the origin. What a box keeps from its parent: the neurons' bounds, intersected,
and which of them have one sign there, so that they need no bounds any more. A conjunction is excluded by its best
convex combination of rows; what its rows exclude is cut off the box before it is halved, along the input that matters
most to the rows and to the neurons that are open still.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.decisions.verifier.properties import Answer, Halfspaces

BATCH = 512
"""Boxes that are bounded at once."""
COMBINATIONS = 12
"""Steps towards a conjunction's best combination of rows."""
INPUTS = 24
"""With more inputs than that, halving boxes does not end."""

Layers = list[tuple[Tensor, Tensor]]


def affine_layers(model: nn.Module, inputs: int) -> Layers | None:
    """The weights and biases of a chain of linear layers with ReLUs between them, in double precision; else None.

    A chain of so many `inputs`: layers that act on each row of a matrix are none.
    """
    found: Layers = []
    bent = True  # whether the next linear layer begins a new one
    for layer in _flattened(model):
        if isinstance(layer, nn.Linear):
            weight = layer.weight.detach().double()
            if weight.shape[1] != (len(found[-1][1]) if found else inputs):
                return None
            bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
            if bent or not found:
                found.append((weight, bias))
                bent = False
            else:
                before, shift = found[-1]
                found[-1] = weight @ before, weight @ shift + bias
        elif isinstance(layer, nn.ReLU) and found and not bent:
            bent = True
        elif not isinstance(layer, nn.Flatten | nn.Identity | nn.Dropout):
            return None
    return None if bent or not found else found


def _flattened(model: nn.Module) -> list[nn.Module]:
    if type(model) is nn.Sequential:
        return [layer for child in model for layer in _flattened(child)]
    return [model]


@dataclass(frozen=True)
class _Boxes:
    lower: Tensor
    upper: Tensor
    asked: Tensor
    """The conjunction that each is about."""
    low: Tensor
    up: Tensor
    """Bounds on all neurons, layer after layer."""

    def take(self, at: Tensor | slice) -> _Boxes:
        return _Boxes(self.lower[at], self.upper[at], self.asked[at], self.low[at], self.up[at])

    @staticmethod
    def cat(parts: Sequence[_Boxes]) -> _Boxes:
        return _Boxes(
            *(torch.cat([getattr(p, name) for p in parts]) for name in ("lower", "upper", "asked", "low", "up"))
        )

    def __len__(self) -> int:
        return len(self.lower)


def split_inputs(
    layers: Layers,
    lower: Float[Tensor, " inputs"],
    upper: Float[Tensor, " inputs"],
    unsafe: Sequence[Halfspaces],
    *,
    timeout: float,
) -> Answer:
    """Whether the network maps some input of the box into the union of the conjunctions `unsafe`.

    `layers` are as `affine_layers` gives them. `unsat` holds in real arithmetic: bounds are computed in double
    precision, and what that can be off by is bounded too, box by box, and taken off. The witness of `sat` reaches the
    set in double precision.
    """
    end = time.monotonic() + timeout
    search = _Search(layers, unsafe)
    groups = torch.arange(len(search.rows))
    neurons = sum(len(bias) for _, bias in layers[:-1])
    wide = torch.full((len(groups), neurons), torch.inf, dtype=torch.float64)
    low, up = (side.double().expand(len(groups), -1) for side in (lower, upper))
    stack = [_Boxes(low, up, groups, -wide, wide)]
    while stack:
        if time.monotonic() >= end:
            return Answer("timeout", None)
        boxes = stack.pop()
        while stack and len(boxes) < BATCH:
            boxes = _Boxes.cat([boxes, stack.pop()])
        if len(boxes) > BATCH:
            stack.append(boxes.take(slice(BATCH, None)))
            boxes = boxes.take(slice(BATCH))
        witness, children = search.step(boxes)
        if witness is not None:
            return Answer("sat", witness)
        if children is not None:
            stack.append(children)
    return Answer("unsat", None)


class _Search:
    def __init__(self, layers: Layers, unsafe: Sequence[Halfspaces]) -> None:
        self.layers = layers
        sizes = [len(offsets) for _, offsets in unsafe]
        # Conjunctions of one row each are one question: a box is done when all of these rows are positive.
        self.joint = max(sizes) == 1 and len(sizes) > 1
        sets = [Halfspaces(*(torch.cat(parts) for parts in zip(*unsafe, strict=True)))] if self.joint else list(unsafe)
        most = max(len(offsets) for _, offsets in sets)
        repeated = [torch.arange(most).clamp(max=len(offsets) - 1) for _, offsets in sets]
        self.rows = torch.stack([w.double()[at] for (w, _), at in zip(sets, repeated, strict=True)])
        self.offsets = torch.stack([o.double()[at] for (_, o), at in zip(sets, repeated, strict=True)])
        # A sum of products, in any order, is off by at most gamma times the same sum of absolute values.
        operations = sum(weight.shape[1] for weight, _ in layers) + 32 * len(layers) + self.rows.shape[2]
        self.gamma = 2.0**-53 * 4 * operations

    def step(self, boxes: _Boxes) -> tuple[Tensor | None, _Boxes | None]:
        """A witness; or the halves of the boxes that are not excluded."""
        boxes, opened, size = self._neurons(boxes)
        a, b = self._rows(boxes)
        centre, radius = (boxes.lower + boxes.upper) / 2, (boxes.upper - boxes.lower) / 2
        size = _applied(self.rows[boxes.asked].abs(), size) + self.offsets[boxes.asked].abs()
        b = b - self.gamma * size.repeat(1, 2)
        least = _least(a, b, centre, radius)
        count = self.rows.shape[1]
        best = torch.maximum(least[:, :count], least[:, count:])
        left = ~((best.amin(1) if self.joint else best.amax(1)) > 0)
        if not bool(left.any()):
            return None, None
        boxes, a, b, least, opened = boxes.take(left), a[left], b[left], least[left], [o[left] for o in opened]
        witness = self._witness(boxes, a, least)
        if witness is not None:
            return witness, None
        weights = (least <= 0).double() if self.joint else torch.ones_like(least)
        if not self.joint:
            value, weights = _combined(a, b, boxes)
            left = ~(value > 0)
            boxes, a, b, weights, opened = boxes.take(left), a[left], b[left], weights[left], [o[left] for o in opened]
            boxes, left = _cut(boxes, a, b)
            a, weights, opened = a[left], weights[left], [o[left] for o in opened]
        return None, _halves(boxes, torch.einsum("br,bri->bi", weights, a.abs()), opened) if len(boxes) else None

    def _neurons(self, boxes: _Boxes) -> tuple[_Boxes, list[Tensor], Tensor]:
        """Bounds on all neurons; for each layer how much its open neurons depend on each input; the outputs' size.

        Sizes are what the sums that make bounds come to with all of their terms positive.
        """
        centre, radius = (boxes.lower + boxes.upper) / 2, (boxes.upper - boxes.lower) / 2
        low, up, opened = boxes.low.clone(), boxes.up.clone(), []
        start, size = 0, centre.abs() + radius
        strips: list[tuple[Tensor, Tensor]] = []
        for k, (weight, bias) in enumerate(self.layers[:-1]):
            stop = start + len(bias)
            lo, hi = low[:, start:stop], up[:, start:stop]
            open_here = (lo < 0) & (hi > 0)
            most = max(1, int(open_here.sum(1).max()))
            at = open_here.double().topk(most, 1).indices
            a, b, e = weight[at], bias[at], torch.zeros(())
            for (slope, half), (before, shift) in zip(reversed(strips), reversed(self.layers[:k]), strict=True):
                b = b + (a * half.unsqueeze(1)).sum(2)
                e = e + (a.abs() * half.unsqueeze(1)).sum(2)
                a = a * slope.unsqueeze(1)
                b = b + a @ shift
                a = a @ before
            size = size @ weight.abs().t() + bias.abs()
            middle, spread = b + _applied(a, centre), e + _applied(a.abs(), radius) + self.gamma * size.gather(1, at)
            lo.scatter_(1, at, torch.maximum(lo.gather(1, at), middle - spread))
            hi.scatter_(1, at, torch.minimum(hi.gather(1, at), middle + spread))
            still = ((lo.gather(1, at) < 0) & (hi.gather(1, at) > 0)).double()
            opened.append(_applied(a.abs().mT, still))
            below, above = lo.clamp(max=0), hi.clamp(min=0)
            slope = above / (above - below).clamp(min=1e-300)
            strips.append((slope, -below * slope / 2))
            # The rows' lower lines may have slope 1 instead.
            size = torch.where(hi > -lo, size, slope * size) - below * slope
            start = stop
        weight, bias = self.layers[-1]
        size = size @ weight.abs().t() + bias.abs()
        return _Boxes(boxes.lower, boxes.upper, boxes.asked, low, up), opened, size

    def _rows(self, boxes: _Boxes) -> tuple[Tensor, Tensor]:
        """Lower lines `a x + b` of the rows: with slopes 0 or 1 below relaxed neurons, then with the strips' slopes."""
        a, b = self.rows[boxes.asked], self.offsets[boxes.asked]
        count = a.shape[1]
        a, b = torch.cat([a, a], 1), torch.cat([b, b], 1)
        stop = boxes.low.shape[1]
        for k in range(len(self.layers) - 1, -1, -1):
            weight, bias = self.layers[k]
            b, a = b + a @ bias, a @ weight
            if k:
                start = stop - len(self.layers[k - 1][1])
                lo, hi = boxes.low[:, start:stop], boxes.up[:, start:stop]
                stop = start
                below, above = lo.clamp(max=0), hi.clamp(min=0)
                slope = (above / (above - below).clamp(min=1e-300)).unsqueeze(1)
                flat = (hi > -lo).to(slope).unsqueeze(1)
                positive, negative = a.clamp(min=0), a.clamp(max=0)
                b = b + (negative * (-below.unsqueeze(1) * slope)).sum(2)
                a = torch.cat([positive[:, :count] * flat, positive[:, count:] * slope], 1) + negative * slope
        return a, b

    def _witness(self, boxes: _Boxes, a: Tensor, least: Tensor) -> Tensor | None:
        """A point that reaches the set: among where the rows' lines are lowest, and the centres."""
        row = least.argmin(1) if self.joint else least.argmax(1)
        corner = torch.where(a[torch.arange(len(row)), row] > 0, boxes.lower, boxes.upper)
        x = torch.cat([corner, (boxes.lower + boxes.upper) / 2])
        asked = boxes.asked.repeat(2)
        h = x
        for k, (weight, bias) in enumerate(self.layers):
            h = torch.addmm(bias, h, weight.t())
            h = h.relu() if k < len(self.layers) - 1 else h
        values = _applied(self.rows[asked], h) + self.offsets[asked]
        excess = values.amin(1) if self.joint else values.amax(1)
        at = int(excess.argmin())
        return x[at] if float(excess[at]) <= 0 else None


def _applied(matrices: Tensor, vectors: Tensor) -> Tensor:
    return (matrices @ vectors.unsqueeze(2)).squeeze(2)


def _least(a: Tensor, b: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    return b + _applied(a, centre) - _applied(a.abs(), radius)


def _combined(a: Tensor, b: Tensor, boxes: _Boxes) -> tuple[Tensor, Tensor]:
    """The least value of the best convex combination of the lines found, and its weights.

    Where it is positive not all rows can be below zero. Any weights are sound; these ascend by multiplication.
    """
    centre, radius = (boxes.lower + boxes.upper) / 2, (boxes.upper - boxes.lower) / 2
    middle = b + _applied(a, centre)
    scale = (a.abs() * radius.unsqueeze(1)).sum(2).amax(1, keepdim=True).clamp(min=1e-9)
    weights = torch.full_like(b, 1 / b.shape[1])
    best, kept = torch.full_like(b[:, 0], -torch.inf), weights
    for step in range(COMBINATIONS):
        line = torch.einsum("br,bri->bi", weights, a)
        value = (weights * middle).sum(1) - (line.abs() * radius).sum(1)
        # Its own rounding, and that of the weights' sum.
        value = value - 1e-14 * ((weights * b.abs()).sum(1) + (line.abs() * (centre.abs() + radius)).sum(1))
        better = value > best
        best, kept = torch.where(better, value, best), torch.where(better.unsqueeze(1), weights, kept)
        slope = middle - _applied(a, line.sign() * radius)
        weights = torch.softmax((weights + 1e-12).log() + 2 / (1 + 0.3 * step) * slope / scale, 1)
    return best, kept


def _cut(boxes: _Boxes, a: Tensor, b: Tensor) -> tuple[_Boxes, Tensor]:
    """The boxes without the margins in which some row is positive, and which of them are left."""
    lower, upper = boxes.lower, boxes.upper
    left = torch.ones(len(boxes), dtype=torch.bool)
    for _ in range(2):
        least = _least(a, b, (lower + upper) / 2, (upper - lower) / 2)
        # How far an input may be from the end at which the row is lowest.
        room = ((-least).clamp(min=0).unsqueeze(2) / a.abs()) * (1 + 1e-9) + 1e-12
        room = torch.where(a.abs() > 1e-9, room, torch.inf)
        new_upper = torch.minimum(upper, torch.where(a > 0, lower.unsqueeze(1) + room, torch.inf).amin(1))
        new_lower = torch.maximum(lower, torch.where(a < 0, upper.unsqueeze(1) - room, -torch.inf).amax(1))
        left &= (new_lower <= new_upper).all(1)
        lower, upper = torch.minimum(new_lower, new_upper), torch.maximum(new_lower, new_upper)
    return _Boxes(lower, upper, boxes.asked, boxes.low, boxes.up).take(left), left


def _halves(boxes: _Boxes, slopes: Tensor, opened: list[Tensor]) -> _Boxes:
    """Both halves of each box, along the input that matters most to the rows and to the open neurons of each layer."""
    score = sum(part / part.sum(1, keepdim=True).clamp(min=1e-9) for part in [slopes, *opened])
    at = (score * (boxes.upper - boxes.lower)).argmax(1, keepdim=True)
    middle = ((boxes.lower + boxes.upper) / 2).gather(1, at)
    left, right = boxes.upper.scatter(1, at, middle), boxes.lower.scatter(1, at, middle)
    return _Boxes.cat([
        _Boxes(boxes.lower, left, boxes.asked, boxes.low, boxes.up),
        _Boxes(right, boxes.upper, boxes.asked, boxes.low, boxes.up),
    ])  # fmt: skip
