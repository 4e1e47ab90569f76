"""`Boxes`: boxes of inputs, and bounds on what a chain of layers does on each of them.

Every box bounds its neurons by linear relaxation, with one slope for both sides: a function is a strip around a line,
`slope z + shift` up to `half`. ReLUs that stay open are bounded once more where that is asked for, by a line below and
another one above each function, which costs several times as much and is much tighter where a neuron's range is wide.
What a box keeps from its parent: the neurons' bounds, intersected, so that ReLUs of one sign need no bounds any more.

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
    """Parts of a box of inputs, one to a row of each tensor."""

    number: Int[Tensor, " boxes"]
    lower: Float[Tensor, "boxes inputs"]
    upper: Float[Tensor, "boxes inputs"]
    asked: Int[Tensor, " boxes"]
    """The conjunction that each is about."""
    low: Float[Tensor, "boxes neurons"]
    up: Float[Tensor, "boxes neurons"]
    """Bounds on all neurons, layer after layer."""
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

    def select(self, at: Tensor) -> Bounded:
        """The same for some of the boxes."""
        middles = [None if m is None else Middles(*(t[at] for t in m)) for m in self.middles]
        return Bounded(self.boxes.take(at), [_picked(s, at) for s in self.strips], middles, self.size[at])


def _picked(strip: Strip, at: Tensor | slice) -> Strip:
    """The strips of some boxes."""
    below, intercept = strip.below
    return Strip(
        strip.slope[at], None if strip.shift is None else strip.shift[at], strip.half[at],
        (below[at], None if intercept is None else intercept[at]), (strip.above[0][at], strip.above[1][at]),
    )  # fmt: skip


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
            found = self._middles(layer, lo, hi, strips, size)
            middles.append(found)
            if found is not None:
                middle = found.b + applied(found.a, centre)
                spread = found.off + applied(found.a.abs(), radius)
                _narrow(lo, hi, found.at, middle - spread, middle + spread)
            strip, size = _strip(layer, lo, hi, size)
            strips.append(strip)
        return Bounded(replace(boxes, low=low, up=up), strips, middles, self._outputs(size))

    def closer(self, found: Bounded) -> Bounded:
        """Better bounds on the neurons that are open still, by two lines for each function."""
        boxes = found.boxes
        centre, radius = boxes.centre, boxes.radius
        low, up, size = boxes.low.clone(), boxes.up.clone(), centre.abs() + radius
        strips: list[Strip] = []
        for layer, place in self._places():
            lo, hi = low[:, place], up[:, place]
            size = size @ layer.weight.abs().t() + layer.size
            if strips and layer.bends:
                self._both_sides(layer, lo, hi, strips, size, centre, radius)
            strip, size = _strip(layer, lo, hi, size)
            strips.append(strip)
        return Bounded(replace(boxes, low=low, up=up), strips, found.middles, self._outputs(size))

    def _outputs(self, size: Tensor) -> Tensor:
        last = self.layers[-1]
        return size @ last.weight.abs().t() + last.size

    def _middles(self, layer: Layer, lo: Tensor, hi: Tensor, strips: list[Strip], size: Tensor) -> Middles | None:
        if layer.function is None:
            return None
        at: Tensor | None = torch.arange(len(layer.bias)).expand(len(lo), -1)
        if layer.bends:
            at = _chosen((lo < 0) & (hi > 0))
        if at is None:
            return None
        found = [self._through(layer.weight[part], layer.bias[part], strips, of) for part, of in self._parts(layer, at)]
        a, b, off = (torch.cat(t) for t in zip(*found, strict=True))
        return Middles(at, a, b, off + self.gamma * size.gather(1, at))

    def _both_sides(
        self,
        layer: Layer,
        lo: Tensor,
        hi: Tensor,
        strips: list[Strip],
        size: Tensor,
        centre: Tensor,
        radius: Tensor,
    ) -> None:
        """Narrows the bounds of the neurons of a layer that are open still."""
        at = _chosen((lo < 0) & (hi > 0))
        if at is None:
            return
        least = []
        for part, of in self._parts(layer, at):
            a, b = layer.weight[part], layer.bias[part]
            a, b = self._below(torch.cat([a, -a], 1), torch.cat([b, -b], 1), [_picked(s, of) for s in strips])
            least.append(b + applied(a, centre[of]) - applied(a.abs(), radius[of]))
        below, above = torch.cat(least).chunk(2, 1)
        off = self.gamma * size.gather(1, at)
        _narrow(lo, hi, at, below - off, off - above)

    def _parts(self, layer: Layer, at: Tensor) -> list[tuple[Tensor, slice]]:
        """Parts of a choice of neurons whose matrices of coefficients stay in the cache, and which boxes they are."""
        step = max(8, CACHED // (at.shape[1] * max(layer.weight.shape)))
        return [(part, slice(i * step, i * step + len(part))) for i, part in enumerate(at.split(step))]

    def _through(self, a: Tensor, b: Tensor, strips: list[Strip], of: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of what follows the strips, of some of the boxes, as `a x + b` of the inputs, up to the strips' `off`.

        `a` is overwritten.
        """
        off = torch.zeros_like(b)
        for k in range(len(strips) - 1, -1, -1):
            before, strip = self.layers[k], strips[k]
            if before.function is not None:
                half = strip.half[of].unsqueeze(2)
                b = torch.baddbmm(b.unsqueeze(2), a, half if strip.shift is None else strip.shift[of].unsqueeze(2))
                off = torch.baddbmm(off.unsqueeze(2), a.abs(), half).squeeze(2)
                b, a = b.squeeze(2), a.mul_(strip.slope[of].unsqueeze(1))
            b, a = b + a @ before.bias, a @ before.weight
        return a, b, off

    def _below(self, a: Tensor, b: Tensor, strips: list[Strip]) -> tuple[Tensor, Tensor]:
        """Rows of what follows the strips, bounded from below by `a x + b`: by the lines below and above functions."""
        for k in range(len(strips) - 1, -1, -1):
            before, strip = self.layers[k], strips[k]
            if before.function is not None:
                positive, negative = a.clamp(min=0), a.clamp(max=0)
                (slope, intercept), (steeper, over) = strip.below, strip.above
                b = torch.baddbmm(b.unsqueeze(2), negative, over.unsqueeze(2)).squeeze(2)
                b = b if intercept is None else b + applied(positive, intercept)
                a = positive.mul_(slope.unsqueeze(1)).add_(negative.mul_(steeper.unsqueeze(1)))
            b, a = b + a @ before.bias, a @ before.weight
        return a, b

    def rows(self, found: Bounded, rows: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Lower lines `a x + b` of rows of the outputs: by the lines below and above, then by the strips."""
        last = self.layers[-1]
        a, b = rows @ last.weight, offsets + rows @ last.bias
        one = self._below(a, b, found.strips)
        two, middle, off = self._through(a, b, found.strips, slice(None))
        return torch.cat([one[0], two], 1), torch.cat([one[1], middle - off], 1)


def _chosen(where: Tensor) -> Tensor | None:
    """The places that are true, as many in each row as the fullest one has; None for none."""
    most = int(where.sum(1).max()) if len(where) else 0
    return where.to(torch.int8).topk(most, 1).indices if most else None


def _narrow(lo: Tensor, hi: Tensor, at: Tensor, below: Tensor, above: Tensor) -> None:
    """Intersects, in place, what is known of some entries with further bounds of them."""
    lo.scatter_(1, at, torch.maximum(lo.gather(1, at), below))
    hi.scatter_(1, at, torch.minimum(hi.gather(1, at), above))


def _strip(layer: Layer, lo: Tensor, hi: Tensor, size: Tensor) -> tuple[Strip, Tensor]:
    """The strip of a layer's functions between bounds on their arguments, and the size behind it."""
    if layer.function is None:
        one, none = torch.ones_like(lo), torch.zeros_like(lo)
        return Strip(one, None, none, (one, None), (one, none)), size
    if layer.bends:
        below, above = lo.clamp(max=0), hi.clamp(min=0)
        slope = above / (above - below).clamp(min=1e-300)
        over, flat = -below * slope, (above > -below * (1 + TIE)).to(slope)
        strip = Strip(slope, None, over / 2, (flat, None), (slope, over))
        return strip, torch.where(flat > 0, size, slope * size) + over
    with rounding.outward():
        (down, under), (rise, over) = layer.function.lines(Interval(torch.minimum(lo, hi), torch.maximum(lo, hi)))
    slope = (down + rise) / 2
    least = torch.minimum((down - slope) * lo, (down - slope) * hi) + under
    most = torch.maximum((rise - slope) * lo, (rise - slope) * hi) + over
    steep = torch.maximum(torch.maximum(down.abs(), rise.abs()), slope.abs())
    size = 4 * (steep * size + under.abs() + over.abs())
    return Strip(slope, (least + most) / 2, (most - least).clamp(min=0) / 2, (down, under), (rise, over)), size


def applied(matrices: Tensor, vectors: Tensor) -> Tensor:
    """The product of each matrix and its vector."""
    return torch.bmm(matrices, vectors.unsqueeze(2)).squeeze(2)
