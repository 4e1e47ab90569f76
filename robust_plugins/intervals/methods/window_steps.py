"""`WindowSteps`: windows of coefficients sent back over one node, as `Relaxation` does it with whole images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Add, Scale, Shift
from robust_plugins.intervals.methods.reach import Reach, arriving
from robust_plugins.intervals.network.graph import Network
from robust_plugins.intervals.rules.registry import LinearBound
from robust_plugins.intervals.rules.structure import IDENTITIES
from robust_plugins.intervals.windows import Picture, Windows, dot

ENTRYWISE = {*IDENTITIES, nn.BatchNorm2d, Add, Scale, Shift}
"""Affine layers that multiply each entry by a number, where their inputs have the output's shape."""

Lines = tuple[LinearBound, LinearBound] | None


class WindowStep(NamedTuple):
    """A combination of windows after its node was replaced: numbers for each row, and the windows of the inputs."""

    lower: Tensor
    upper: Tensor
    inputs: list[Windows]


@dataclass(frozen=True, eq=False)
class _Affine:
    factors: list[Picture | None]
    """Of an entrywise layer, for each input; None: one everywhere."""
    reach: _Pictures
    """Of the layer's offset."""


@dataclass(frozen=True, eq=False)
class _Bent:
    middle: Picture
    """The mean of both slopes: a coefficient a becomes `a middle + |a| half`, mirrored for the upper bound."""
    half: Picture | None
    under: Picture | None
    """The lower line's offset; None where it is zero."""
    over: Picture | None


@dataclass(frozen=True, eq=False)
class _Pictures:
    """A `Reach` as pictures."""

    center: Picture | None
    """None where it is zero."""
    radius: Picture | None
    floor: Tensor | None

    @classmethod
    def of(cls, reach: Reach) -> _Pictures:
        center = Picture(reach.center) if bool(reach.center.any()) else None
        return cls(center, None if reach.radius is None else Picture(reach.radius), reach.floor)

    def ends(self, w: Windows) -> tuple[Tensor, Tensor]:
        """The least value with the coefficients of lower bounds, and the largest with the others."""
        zero = w.values.new_zeros(w.rows)
        low, up = (zero, zero) if self.center is None else w.dots(self.center)
        if self.radius is None:
            return low, up
        down, more = replace(w, values=w.values.abs()).dots(self.radius)
        if self.floor is not None:
            floor = self.floor.squeeze(1)[w.sample] if len(self.floor) > 1 else self.floor[0]
            down, more = down + floor, more + floor
        return rounding.lessened(low, down), rounding.increased(up, more)


class WindowSteps:
    """Substitutes a network's nodes in combinations whose coefficients are windows; pictures are made once a node."""

    def __init__(
        self,
        network: Network,
        values: Sequence[Interval],
        reach: Callable[[int], Reach],
        lines: Callable[[int], Lines],
        apart: Callable[[int], Tensor | None],
    ) -> None:
        self.network, self.values, self.reach, self.lines, self.apart = network, values, reach, lines, apart
        self._gaps: dict[int, Picture] = {}
        self._pictures: dict[int, _Affine | _Bent | None] = {}
        self._box: _Pictures | None = None
        self._arriving: dict[int, Picture] = {}

    def starts(self, node: int, shape: Sequence[int]) -> bool:
        """Whether the entries of a node are worth windows: its output is an image, and its own layer knows them."""
        if len(shape) != 3 or prod(shape[1:]) == 1:
            return False
        return node > 0 and self._picture(node, shape) is not None

    def step(self, index: int, w: Windows) -> WindowStep | None:
        """The same combination by the node's inputs; None where whole images have to be used."""
        shape = tuple(self.values[index].shape[1:])
        if w.kind is None and prod(w.size) >= prod(shape[1:]):
            return None
        found = self._picture(index, shape)
        if isinstance(found, _Bent):
            return _bent(found, w, None if w.split else self._apart(index))
        if found is None:
            return None
        if found.factors:
            inputs = [w if factor is None else w.times(factor) for factor in found.factors]
        else:
            rule = self.network.rules[index].windows
            assert rule is not None  # else there is no picture
            below = rule.back(self.network.layers[index], w, shape[1:], **self.centers(index))
            if below is None:
                return None
            inputs = [below]
        return WindowStep(*found.reach.ends(w), inputs)

    def over_inputs(self, w: Windows) -> tuple[Tensor, Tensor]:
        """The least value over all inputs with the coefficients of lower bounds, and the largest with the others."""
        if self._box is None:
            self._box = _Pictures.of(Reach.of(self.values[0]))
        return self._box.ends(w)

    def errors(self, node: int, w: Windows) -> tuple[Tensor, Tensor]:
        """The errors of a node's coefficients, as `Relaxation.errors` has them, for lower and upper bounds."""
        if not rounding.active():
            zero = w.values.new_zeros(w.rows)
            return zero, zero
        if node not in self._arriving:
            self._arriving[node] = Picture(arriving(self.values[node]))
        low, up = replace(w, values=w.values.abs()).dots(self._arriving[node])
        return low, up

    def centers(self, index: int) -> dict[str, Interval | None]:
        """The parameters of a node, or the middles of their intervals."""
        parameters = self.network.parameters[index]
        return {k: p if p is None or p.is_point else Interval.point(p.center) for k, p in parameters.items()}

    def _apart(self, index: int) -> Picture | None:
        if (gap := self.apart(index)) is None:
            return None
        if index not in self._gaps:
            self._gaps[index] = Picture(gap)
        return self._gaps[index]

    def _picture(self, index: int, shape: Sequence[int]) -> _Affine | _Bent | None:
        if index not in self._pictures:
            self._pictures[index] = self._made(index, shape)
        return self._pictures[index]

    def _made(self, index: int, shape: Sequence[int]) -> _Affine | _Bent | None:
        rules, inputs = self.network.rules[index], self.network.nodes[index].inputs
        shapes = [tuple(self.values[j].shape[1:]) for j in inputs]
        if rules.affine and rules.backward is not None:
            if rules.layer in ENTRYWISE and all(s == tuple(shape) for s in shapes):
                factors = self._factors(index, shape)
            elif rules.windows is not None and len(shapes) == 1 and len(shapes[0]) == 3:
                factors = []
            else:
                return None
            return _Affine(factors, _Pictures.of(self.reach(index)))
        lines = None if rules.affine else self.lines(index)
        if lines is None:
            return None
        low, up = lines[0].slope, lines[1].slope
        if low is None or up is None:
            return None
        half = (low - up) / 2
        return _Bent(
            Picture((low + up) / 2),
            Picture(half) if bool(half.any()) else None,
            *(Picture(line.offset) if bool(line.offset.any()) else None for line in lines),
        )

    def _factors(self, index: int, shape: Sequence[int]) -> list[Picture | None]:
        """The diagonals of an entrywise layer: what its gradient rule makes of ones."""
        rule = self.network.rules[index].backward
        assert rule is not None
        ones = Interval.point(self.values[0].lower.new_ones((1, *shape)))
        inputs = [self.values[j] for j in self.network.nodes[index].inputs]
        with rounding.outward(False):
            below = rule(self.network.layers[index], *inputs, ones, **self.centers(index))
        diagonals = [part.lower for part in (below if isinstance(below, tuple) else (below,))]
        return [None if bool((d == 1).all()) else Picture(d) for d in diagonals]


def _bent(found: _Bent, w: Windows, gap: Picture | None) -> WindowStep:
    """`a middle + |a| half` for lower bounds and `a middle - |a| half` for upper ones; offsets by the sign of a.

    With `gap` the upper bounds take the coefficients of the lower ones, as `Substitution.apart` says.

    What is sent on is off by at most ten roundings of `|a| (|slope| + |other slope|)`; for a ReLU relative to itself.
    """
    low, up = w.sides
    size_low = low.abs()
    size_up = size_low if up is low else up.abs()
    below, above = low.new_zeros(w.rows), low.new_zeros(w.rows)
    if found.under is not None:
        shown = found.under.seen(w)
        below, above = dot(low.clamp(min=0), shown), dot(up.clamp(max=0), shown)
    if found.over is not None:
        shown = found.over.seen(w)
        below, above = below + dot(low.clamp(max=0), shown), above + dot(up.clamp(min=0), shown)
    if gap is not None:
        above = below + dot(size_low, gap.seen(w))
    if rounding.active():
        floor = torch.full_like(below, rounding.underflow(2 * low[0].numel(), low.dtype))
        below, above = rounding.lessened(below, floor), rounding.increased(above, floor)
    middle = found.middle.seen(w)
    if found.half is None:
        values = low * middle if up is low else torch.cat((low * middle, up * middle))
        split = up is not low
    else:
        half, split = found.half.seen(w), gap is None
        if gap is not None:
            values = (size_low * half).addcmul_(low, middle)
            return WindowStep(below, above, [replace(w.own, values=values, split=False, inside=True)])
        one, other = size_low * half, (size_low if up is low else size_up) * half
        if up is low:
            straight = low * middle
            values = torch.cat((straight + one, straight - other))
        else:
            values = torch.cat((one.addcmul_(low, middle), other.neg_().addcmul_(up, middle)))
    return WindowStep(below, above, [replace(w.own, values=values, split=split, inside=True)])
