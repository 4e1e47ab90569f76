"""`Boxes`: boxes of inputs, and bounds on what a chain of layers does on each of them.

Every box bounds its neurons by linear relaxation, with one slope for both sides: a function is a strip around a line,
`slope z + shift` up to `half`. What a box keeps from its parent: the neurons' bounds, intersected, so that ReLUs of one
sign need no bounds any more.

All is in double precision. Sizes are what the sums that make bounds come to with all of their terms positive: a sum of
products, in any order, is off by at most gamma times that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robust_plugins.decisions.verifier.chains import Chain, Layer
from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval

TIE = 2.0**-20
"""Bounds that are symmetric but for this are those of a tie, so that rounding does not choose the line."""
CACHED = 2**16
"""Numbers in one matrix of coefficients: with more, products of them leave the processor's cache."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """Parts of a box of inputs, one to a row of each tensor: boxes, where some neurons' arguments have given signs."""

    number: Int[Tensor, " boxes"]
    lower: Float[Tensor, "boxes inputs"]
    upper: Float[Tensor, "boxes inputs"]
    asked: Int[Tensor, " boxes"]
    """The conjunction that each is about."""
    low: Float[Tensor, "boxes neurons"]
    up: Float[Tensor, "boxes neurons"]
    """Bounds on all neurons, layer after layer."""
    signs: Int[Tensor, "boxes neurons"]
    """1 where z >= 0, -1 where z <= 0, 0 where neither is assumed."""
    proved: Float[Tensor, "boxes rows"]
    """Lower bounds on what is asked."""

    def take(self, at: Tensor | slice) -> Boxes:
        """Those of some indices."""
        return Boxes(*(getattr(self, f.name)[at] for f in fields(self)))

    @staticmethod
    def cat(parts: Sequence[Boxes]) -> Boxes:
        """All of them in one."""
        return Boxes(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Boxes)))

    def __len__(self) -> int:
        return len(self.lower)

    @property
    def centre(self) -> Tensor:
        """Their middles."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """Half of their widths."""
        return (self.upper - self.lower) / 2


class Strip(NamedTuple):
    """Lines around the functions of a layer's neurons, (boxes, neurons)."""

    slope: Tensor
    shift: Tensor | None
    """None: `half`."""
    half: Tensor
    below: tuple[Tensor, Tensor | None]
    """Slope and intercept of another line below; None for zero."""
    above: tuple[Tensor, Tensor]
    steep: Tensor
    """The largest slope of all these."""


class Middles(NamedTuple):
    """The lines that bounded some neurons of a layer: `a x + b` up to `off`."""

    at: Int[Tensor, "boxes some"]
    a: Float[Tensor, "boxes some inputs"]
    b: Float[Tensor, "boxes some"]
    off: Float[Tensor, "boxes some"]


class Bounded(NamedTuple):
    """Boxes with better bounds, and how they came about, layer by layer."""

    boxes: Boxes
    strips: list[Strip]
    middles: list[Middles | None]
    size: Float[Tensor, "boxes outputs"]

    def cuts(self, starts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Lines `a x + b` that are not above zero where the signs of neurons hold, for as many as one box has."""
        boxes = self.boxes
        most = int(boxes.signs.count_nonzero(1).max()) if len(boxes) else 0
        middles = [(start, m) for start, m in zip(starts, self.middles, strict=False) if m is not None]
        if not most or not middles:
            return boxes.lower.new_zeros((len(boxes), 0, boxes.lower.shape[1])), boxes.lower.new_zeros((len(boxes), 0))
        sign = torch.cat([boxes.signs.gather(1, start + m.at) for start, m in middles], 1)
        a, b, off = (torch.cat([getattr(m, name) for _, m in middles], 1) for name in ("a", "b", "off"))
        at = sign.abs().topk(min(most, sign.shape[1]), 1).indices
        sign = sign.gather(1, at).double()
        a = -sign.unsqueeze(2) * a.gather(1, at.unsqueeze(2).expand(-1, -1, a.shape[2]))
        # A place without a sign is a line far below zero.
        return a, -sign * b.gather(1, at) - torch.where(sign != 0, off.gather(1, at), 1.0)

    def select(self, at: Tensor) -> Bounded:
        """The same for some of the boxes."""
        strips = [
            Strip(s.slope[at], None if s.shift is None else s.shift[at], s.half[at], _pair(s.below, at),
                  _pair(s.above, at), s.steep[at])  # type: ignore[arg-type]
            for s in self.strips
        ]  # fmt: skip
        middles = [None if m is None else Middles(*(t[at] for t in m)) for m in self.middles]
        return Bounded(self.boxes.take(at), strips, middles, self.size[at])


def _pair(line: tuple[Tensor, Tensor | None], at: Tensor) -> tuple[Tensor, Tensor | None]:
    return line[0][at], None if line[1] is None else line[1][at]


class Bounds:
    """The bounds of one chain. `outputs` is the size of what is asked; errors are taken to be `room` times as large."""

    def __init__(self, chain: Chain, outputs: int, room: float = 1.0) -> None:
        self.layers = chain.layers
        terms = sum(layer.weight.shape[1] for layer in self.layers) + len(chain.whole)
        self.gamma = room * 2.0**-53 * 4 * (terms + 32 * len(self.layers) + outputs)
        self.starts = [0]
        for layer in self.layers[:-1]:
            self.starts.append(self.starts[-1] + len(layer.bias))

    @property
    def neurons(self) -> int:
        """The number of entries to which a function is applied, or nothing between two layers."""
        return self.starts[-1]

    def open(self, boxes: Boxes) -> Tensor:
        """Which neurons have a curve in a box, (boxes, neurons)."""
        parts = [
            (boxes.low[:, at] < 0) & (boxes.up[:, at] > 0) if layer.bends
            else torch.full_like(boxes.low[:, at], layer.function is not None, dtype=torch.bool)
            for layer, at in self._places()
        ]  # fmt: skip
        return torch.cat(parts, 1) if parts else boxes.low > 0

    def _places(self) -> list[tuple[Layer, slice]]:
        return [
            (layer, slice(a, b)) for layer, a, b in zip(self.layers, self.starts[:-1], self.starts[1:], strict=False)
        ]

    def bounded(self, boxes: Boxes) -> Bounded:
        """Bounds on all neurons."""
        centre, radius = boxes.centre, boxes.radius
        low, up, size = boxes.low.clone(), boxes.up.clone(), centre.abs() + radius
        strips: list[Strip] = []
        middles: list[Middles | None] = []
        for layer, place in self._places():
            lo, hi = low[:, place], up[:, place]
            size = size @ layer.weight.abs().t() + layer.size
            found = self._middles(layer, lo, hi, boxes.signs[:, place], strips, size)
            middles.append(found)
            if found is not None:
                middle = found.b + applied(found.a, centre)
                spread = found.off + applied(found.a.abs(), radius)
                lo.scatter_(1, found.at, torch.maximum(lo.gather(1, found.at), middle - spread))
                hi.scatter_(1, found.at, torch.minimum(hi.gather(1, found.at), middle + spread))
            strip, size = _strip(layer, lo, hi, size)
            strips.append(strip)
        last = self.layers[-1]
        size = size @ last.weight.abs().t() + last.size
        return Bounded(replace(boxes, low=low, up=up), strips, middles, size)

    def _middles(
        self, layer: Layer, lo: Tensor, hi: Tensor, signs: Tensor, strips: list[Strip], size: Tensor
    ) -> Middles | None:
        if layer.function is None:
            return None
        if not layer.bends:
            at = torch.arange(len(layer.bias)).expand(len(lo), -1)
        else:
            # Those with an assumed sign too: their lines are rows, and may contradict the sign.
            open_here = ((lo < 0) & (hi > 0)) | (signs != 0)
            most = int(open_here.sum(1).max())
            if not most:
                return None
            at = open_here.to(torch.int8).topk(most, 1).indices
        parts = at.split(max(8, CACHED // (at.shape[1] * max(layer.weight.shape))))
        starts = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0).tolist()
        found = [self._through(layer, part, strips, start) for start, part in zip(starts, parts, strict=False)]
        a, b, off = (torch.cat(t) for t in zip(*found, strict=True))
        return Middles(at, a, b, off + self.gamma * size.gather(1, at))

    def _through(self, layer: Layer, at: Tensor, strips: list[Strip], start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Some neurons of a layer as functions `a x + b` of the inputs, up to the strips' `off`."""
        a, b, off = layer.weight[at], layer.bias[at], torch.zeros(at.shape, dtype=torch.float64)
        for k in range(len(strips) - 1, -1, -1):
            before, strip = self.layers[k], strips[k]
            if before.function is not None:
                part = slice(start, start + len(at))
                half = strip.half[part].unsqueeze(2)
                b = torch.baddbmm(b.unsqueeze(2), a, half if strip.shift is None else strip.shift[part].unsqueeze(2))
                off = torch.baddbmm(off.unsqueeze(2), a.abs(), half).squeeze(2)
                b, a = b.squeeze(2), a.mul_(strip.slope[part].unsqueeze(1))
            b, a = b + a @ before.bias, a @ before.weight
        return a, b, off

    def rows(self, found: Bounded, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Lower lines `a x + b` of rows of the outputs: by the lines below and above, then by the strips."""
        a, b, count = rows, offsets, rows.shape[1]
        a, b = torch.cat([a, a], 1), torch.cat([b, b], 1)
        for k in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[k]
            b, a = b + a @ layer.bias, a @ layer.weight
            if not k or self.layers[k - 1].function is None:
                continue
            strip = found.strips[k - 1]
            positive, negative = a.clamp(min=0), a.clamp(max=0)
            (slope, intercept), (steeper, over) = strip.below, strip.above
            if strip.shift is None:  # the strip lies between the line through zero and `above`
                b = torch.baddbmm(b.unsqueeze(2), negative, over.unsqueeze(2)).squeeze(2)
                a = positive
                a[:, :count].mul_(slope.unsqueeze(1))
                a[:, count:].mul_(strip.slope.unsqueeze(1))
                a.add_(negative.mul_(steeper.unsqueeze(1)))
                continue
            assert intercept is not None  # of other functions it is not zero
            one = applied(positive[:, :count], intercept) + applied(negative[:, :count], over)
            two = applied(a[:, count:], strip.shift) - applied(a[:, count:].abs(), strip.half)
            b = b + torch.cat([one, two], 1)
            lines = positive[:, :count] * slope.unsqueeze(1) + negative[:, :count] * steeper.unsqueeze(1)
            a = torch.cat([lines, a[:, count:] * strip.slope.unsqueeze(1)], 1)
        return a, b

    def losses(self, found: Bounded, row: Float[Tensor, "boxes outputs"]) -> Float[Tensor, "boxes neurons"]:
        """How much every neuron's strip takes from the bound on one row of the outputs."""
        a, parts = row, []
        for k in range(len(self.layers) - 1, 0, -1):
            a = a @ self.layers[k].weight
            strip = found.strips[k - 1]
            parts.append(a.abs() * strip.half)
            a = a * strip.slope
        return torch.cat(parts[::-1], 1)


def _strip(layer: Layer, lo: Tensor, hi: Tensor, size: Tensor) -> tuple[Strip, Tensor]:
    """The strip of a layer's functions between bounds on their arguments, and the size behind it."""
    if layer.function is None:
        one, none = torch.ones_like(lo), torch.zeros_like(lo)
        return Strip(one, None, none, (one, None), (one, none), one), size
    if layer.bends:
        below, above = lo.clamp(max=0), hi.clamp(min=0)
        slope = above / (above - below).clamp(min=1e-300)
        over, flat = -below * slope, (above > -below * (1 + TIE)).to(slope)
        strip = Strip(slope, None, over / 2, (flat, None), (slope, over), slope)
        return strip, torch.where(flat > 0, size, slope * size) + over
    with rounding.outward():
        (down, under), (rise, over) = layer.function.lines(Interval(torch.minimum(lo, hi), torch.maximum(lo, hi)))
    slope = (down + rise) / 2
    least = torch.minimum((down - slope) * lo, (down - slope) * hi) + under
    most = torch.maximum((rise - slope) * lo, (rise - slope) * hi) + over
    steep = torch.maximum(torch.maximum(down.abs(), rise.abs()), slope.abs())
    size = 4 * (steep * size + under.abs() + over.abs())
    return Strip(slope, (least + most) / 2, (most - least).clamp(min=0) / 2, (down, under), (rise, over), steep), size


def applied(matrices: Tensor, vectors: Tensor) -> Tensor:
    """The product of each matrix and its vector."""
    return torch.bmm(matrices, vectors.unsqueeze(2)).squeeze(2)
