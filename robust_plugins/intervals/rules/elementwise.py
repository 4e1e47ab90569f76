"""`Activation`: all that the engine knows of an elementwise function, as one record; and its rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.rules.envelopes import Line, Pieces, mixed_lines
from robust_plugins.intervals.rules.registry import (
    LinearBound,
    backward_rule,
    forward_rule,
    relaxation_rule,
    rules_for,
    slopes_rule,
)

_RECORDS: dict[type[nn.Module], Callable[[Any], Activation]] = {}


@dataclass(frozen=True, kw_only=True)
class Activation:
    """An elementwise function: its values and slopes, and the points where their order turns.

    A bound over an interval is the extreme value among its ends and the turning points in it, so that ranges and slope
    ranges are exact.
    """

    f: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    """The derivative; at kinks what automatic differentiation returns."""
    extrema: tuple[float, ...] = ()
    """Where f turns from falling to rising or back, or jumps; none: f never falls."""
    turns: tuple[float, ...] = ()
    """Where the curvature changes its sign, in rising order, twice at most: there the slope is extreme."""
    convex: bool = True
    """Whether f is convex below the first turn (or everywhere)."""
    kinks: tuple[float, ...] = ()
    """Where the slope jumps within an interval that is neither convex nor concave."""
    jump: tuple[float, float] = (torch.inf, 0.0)
    """Above this point, f may lie this far below the convex function that the relaxation sees."""
    relaxable: bool = True
    """Whether straight lines bound f better than constants."""
    image: Callable[[Interval], Interval] | None = None
    """The range itself, for a function whose extreme values are not those at ends and turning points."""
    slope_image: Callable[[Interval], Interval] | None = None
    """The range of what automatic differentiation returns, where that is not extreme at ends and turns or not f's
    slope; a point for points."""
    pieces: Callable[[Interval], Pieces] | None = None
    """The turns of a function with endlessly many."""
    flat: Callable[[Interval], Tensor] | None = None
    """Where constants are taken in place of lines."""
    defined: Callable[[Interval], Tensor] | None = None
    """Where f is defined on all of an interval; a model in which it may not be is refused."""
    name: str = ""
    """What a refusal calls f, and which values it must have."""
    ulps: float = 0.0
    """The error of the library's f and slope, in units in the last place of `1 + |z|`, or of the value itself where
    that is larger; 0 where no rounding happens."""

    least: float | None = None
    """What neither f nor the library's f is ever below: rounding does not pass it, so that a root may follow a square.
    """

    @property
    def shape(self) -> str:
        """`convex` or `concave` for a function that is so everywhere, without jumps, else `mixed`."""
        if self.turns or self.pieces is not None or self.jump[1] or not self.relaxable:
            return "mixed"
        return "convex" if self.convex else "concave"

    def range(self, z: Interval) -> Interval:
        """The smallest interval of `f`. Raises UnsupportedModelError where f may not be defined."""
        self._check(z)
        found = self._extremes(self.f, z, self.extrema, rising=True) if self.image is None else self.image(z)
        found = self._rounded(found, z)
        if self.least is None or not rounding.active():
            return found
        return Interval(found.lower.clamp(min=self.least), found.upper)

    def slopes(self, z: Interval) -> Interval:
        """The smallest interval of the slope. Raises UnsupportedModelError where f may not be defined."""
        self._check(z)
        if self.slope_image is not None:
            found = self.slope_image(z)
        else:
            found = self._extremes(self.slope, z, self.turns, rising=self.convex)
        if self.defined is not None and not bool(found.magnitude.isfinite().all()):
            raise UnsupportedModelError(
                f"{self.name}, and its slope has no bounds at the border: keep it away from there"
            )
        return self._rounded(found, z)

    def lines(self, z: Interval) -> tuple[Line, Line]:
        """A line below f and a line above it on `z`, each as slope and intercept.

        Where f is convex on z the chord and the tangent in the middle, mirrored where it is concave; else those of
        `mixed_lines`. Inside `rounding.outward()` they hold for f as the library computes it, too.
        """
        if not self.relaxable:
            y = self.range(z)
            flat = torch.zeros_like(y.lower)
            return (flat, y.lower), (flat, y.upper)
        self._check(z)
        a, b, m = z.lower, z.upper, z.center
        fa, fb, fm, slope = self.f(a), self.f(b), self.f(m), self.slope(m)
        wide = b - a > 1e-9 * (1 + a.abs() + b.abs()) if a.dtype is torch.float64 else b - a > 1e-4 * (1 + m.abs())
        chord = torch.where(wide, (fb - fa) / torch.where(wide, b - a, 1), slope)
        # Whatever the slope, a convex function lies below the line through the higher of its shifted ends.
        above = torch.maximum(fa - chord * a, fb - chord * b)
        below = torch.minimum(fa - chord * a, fb - chord * b)
        tangent = fm - slope * m
        if self.pieces is None and not self.turns:
            low, up = ((slope, tangent), (chord, above)) if self.convex else ((chord, below), (slope, tangent))
        else:
            pieces = self._turns(z)
            convex, concave = pieces.curvature(a, b)
            low = torch.where(convex, slope, chord), torch.where(convex, tangent, below)
            up = torch.where(concave, slope, chord), torch.where(concave, tangent, above)
            low, up = self._mixed(a, b, pieces, ~(convex | concave), low, up)
        return self._outward(z, *self._bounded(z, *self._lowered(z, low, up)))

    def parallel_lines(self, z: Interval) -> tuple[Line, Line]:
        """Lines as `lines` has them; but where f turns on `z`, one through either end with the least slope there.

        `f(z) - f(a)` is not below `k (z - a)` for slopes of at least k: nearer than the others at the ends, and further
        off in the middle. For a continuous f.
        """
        low, up = self.lines(z)
        convex, concave = self._turns(z).curvature(z.lower, z.upper)
        least, turning = self.slopes(z).lower, ~(convex | concave)

        def through(end: Tensor, line: Line) -> Line:
            return torch.where(turning, least, line[0]), torch.where(turning, self.f(end) - least * end, line[1])

        return self._outward(z, through(z.lower, low), through(z.upper, up))

    def _check(self, z: Interval) -> None:
        if self.defined is not None and not bool((defined := self.defined(z)).all()):
            worst = (~defined).nonzero()[0].tolist()
            ends = z.lower[tuple(worst)].item(), z.upper[tuple(worst)].item()
            raise UnsupportedModelError(
                f"{self.name}, which may lie in [{ends[0]:.4g}, {ends[1]:.4g}] in sample {worst[0] if worst else 0}: "
                "bound it away from there in the model, for example with clamp or a positive constant, or take a "
                "smaller eps"
            )

    def _turns(self, z: Interval) -> Pieces:
        if self.pieces is not None:
            return self.pieces(z)
        ends = [*self.turns, torch.inf, torch.inf]
        first, second = (torch.full_like(z.lower, t) for t in ends[:2])
        return Pieces(first, second, torch.full_like(first, self.convex, dtype=torch.bool))

    def _mixed(self, a: Tensor, b: Tensor, pieces: Pieces, mixed: Tensor, low: Line, up: Line) -> tuple[Line, Line]:
        """The lines with those of intervals on which f is neither convex nor concave put in."""
        index = mixed.nonzero(as_tuple=True)
        if not len(index[0]):
            return low, up
        few = Pieces(pieces.first[index], pieces.second[index], pieces.convex[index])
        found = mixed_lines(self.f, self.slope, a[index], b[index], few, self.kinks)
        (down, under), (rise, over) = found
        return (
            (low[0].index_put(index, down), low[1].index_put(index, under)),
            (up[0].index_put(index, rise), up[1].index_put(index, over)),
        )

    def _lowered(self, z: Interval, low: Line, up: Line) -> tuple[Line, Line]:
        """Lines for a function with a jump."""
        point, size = self.jump
        if not size:
            return low, up
        # The library compares in its own precision: the jump is at a number next to this point, on either side.
        near = 4 * torch.finfo(z.dtype).eps * abs(point)
        gap = torch.where(z.upper >= point - near, size, 0.0)
        return (low[0], low[1] - gap), (up[0], up[1] + gap)

    def _bounded(self, z: Interval, low: Line, up: Line) -> tuple[Line, Line]:
        """Constants in place of lines that overflow, and of those that are of no use."""
        if not self.ulps:  # what does not round does not grow faster than z either
            return low, up
        fine = (low[0] + low[1] + up[0] + up[1]).isfinite()
        if self.flat is not None:
            fine = fine & ~self.flat(z)
        if z.device.type == "cpu" and bool(fine.all()):
            return low, up
        y = self.range(z)
        return (
            (torch.where(fine, low[0], 0.0), torch.where(fine, low[1], y.lower)),
            (torch.where(fine, up[0], 0.0), torch.where(fine, up[1], y.upper)),
        )

    def _outward(self, z: Interval, low: Line, up: Line) -> tuple[Line, Line]:
        """Lines moved apart by the rounding errors of f, of its slopes, of the intercepts, and of coefficients.

        A coefficient times a slope may be off by some roundings of either line's. Where nothing is rounded, as at
        z and 0 for ReLU, lines stay, and the coefficients' errors are left to the layer before.
        """
        if not rounding.active():
            return low, up
        u, tiny = rounding.unit(z.dtype)
        size = z.magnitude
        y = torch.maximum(self.f(z.lower).abs(), self.f(z.upper).abs())
        steep = torch.maximum(low[0].abs(), up[0].abs())
        common, gentle = 8 * (steep * size + y), steep <= 1

        def moved(line: Line, side: int) -> Line:
            slope, intercept = line
            scale = torch.add(common, intercept.abs(), alpha=8)
            if self.ulps:
                scale = scale + self.ulps * (1 + size + y + slope.abs()) * (1 + z.width)
            step = 2 * u * scale + tiny
            found = intercept + step if side else intercept - step
            if not self.ulps and self.shape != "mixed":
                # Slopes of -1, 0 and 1: those that are whole, of gentle ones.
                found = torch.where((intercept == 0) & (slope.trunc() == slope) & gentle, intercept, found)
            return slope, found

        return moved(low, 0), moved(up, 1)

    def _extremes(self, g: Callable[[Tensor], Tensor], z: Interval, at: tuple[float, ...], *, rising: bool) -> Interval:
        low = g(z.lower)
        if z.is_point:
            return Interval.point(low)
        up = g(z.upper)
        if not at:
            return Interval(low, up) if rising else Interval(up, low)
        values = [low, up, *(g(_inside(z, t)) for t in at)]
        least, most = values[0], values[0]
        for value in values[1:]:
            least, most = torch.minimum(least, value), torch.maximum(most, value)
        return Interval(least, most)

    def _rounded(self, y: Interval, z: Interval) -> Interval:
        if not self.ulps or not rounding.active():
            return y
        scale = 1 + z.magnitude + y.magnitude
        return Interval(*rounding.widened(y.lower, y.upper, ulps=self.ulps, scale=scale))


def elementwise(*layers: type[nn.Module]) -> Callable[[Callable[[Any], Activation]], Callable[[Any], Activation]]:
    """Registers forward, backward and relaxation rules for layers that apply an `Activation` to each entry.

    The decorated function returns the record for one layer.
    """

    def decorate(activation: Callable[[Any], Activation]) -> Callable[[Any], Activation]:
        _RECORDS.update(dict.fromkeys(layers, activation))

        @forward_rule(*layers)
        def forward(layer: nn.Module, x: Interval) -> Interval:
            return activation(layer).range(x)

        @backward_rule(*layers)
        def backward(layer: nn.Module, x: Interval, grad: Interval) -> Interval:
            return grad * activation(layer).slopes(x)

        @slopes_rule(*layers)
        def slopes(layer: nn.Module, x: Interval) -> tuple[Interval]:
            return (activation(layer).slopes(x),)

        @relaxation_rule(*layers, outward=True)
        def relaxation(layer: nn.Module, x: Interval) -> tuple[LinearBound, LinearBound]:
            (a, b), (c, d) = activation(layer).lines(x)
            return line(a, b), line(c, d)

        return activation

    return decorate


def activation_of(layer: nn.Module) -> Activation | None:
    """The record of a layer that applies one function to each entry; None for other layers."""
    rules = rules_for(layer)
    record = None if rules is None else _RECORDS.get(rules.layer)
    return None if record is None else record(layer)


def line(slope: Tensor, intercept: Tensor) -> LinearBound:
    """The function `slope z + intercept` of each entry."""
    return LinearBound.elementwise(slope, intercept)


def _inside(z: Interval, point: float) -> Tensor:
    """The point of z nearest to `point`."""
    return torch.minimum(z.lower.clamp(min=point), z.upper)
