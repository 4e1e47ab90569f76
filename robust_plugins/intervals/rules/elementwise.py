"""`Activation`: all that the engine knows of an elementwise function, as one record; and its rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.rules.registry import LinearBound, backward_rule, forward_rule, relaxation_rule, rules_for

PIECES = 16
"""Pieces into which the relaxation cuts an interval on which the function is neither convex nor concave."""


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
    """Where the curvature changes its sign, in rising order: there the slope is extreme."""
    convex: bool = True
    """Whether f is convex below the first turn (or everywhere)."""
    bend: float = 0.0
    """The largest |f''|, kinks apart."""
    kinks: tuple[float, ...] = ()
    """Where the slope jumps within a mixed piece."""
    jump: tuple[float, float] = (torch.inf, 0.0)
    """Above this point, f may lie this far below the convex function that the relaxation sees."""
    relaxable: bool = True
    """Whether straight lines bound f better than constants."""
    image: Callable[[Interval], Interval] | None = None
    """The range itself, for a function whose extreme values are not those at ends and turning points."""
    ulps: float = 0.0
    """The error of the library's f and slope, in units in the last place of `1 + |z|`; 0 where no rounding happens."""

    def range(self, z: Interval) -> Interval:
        """The smallest interval of `f`."""
        found = self._extremes(self.f, z, self.extrema, rising=True) if self.image is None else self.image(z)
        return self._rounded(found, z)

    def slopes(self, z: Interval) -> Interval:
        """The smallest interval of the slope."""
        return self._rounded(self._extremes(self.slope, z, self.turns, rising=self.convex), z)

    def lines(self, z: Interval) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """A line below f and a line above it on `z`, each as slope and intercept.

        Where f is convex on z the chord and the tangent in the middle, mirrored where it is concave; else the line of
        a few candidates that is nearest to f in the middle, with intercepts from a grid and the bound on f'':
        between points h apart f leaves its chord by at most `bend h^2 / 8`.
        """
        a, b, m = z.lower, z.upper, z.center
        fa, fb, fm, slope = self.f(a), self.f(b), self.f(m), self.slope(m)
        wide = b - a > 1e-9 * (1 + a.abs() + b.abs()) if a.dtype is torch.float64 else b - a > 1e-4 * (1 + m.abs())
        chord = torch.where(wide, (fb - fa) / torch.where(wide, b - a, 1), slope)
        # Whatever the slope, a convex function lies below the line through the higher of its shifted ends.
        above = torch.maximum(fa - chord * a, fb - chord * b)
        below = torch.minimum(fa - chord * a, fb - chord * b)
        tangent = fm - slope * m
        convex, concave = self._curvature(z)
        if not self.turns:
            low, up = ((slope, tangent), (chord, above)) if self.convex else ((chord, below), (slope, tangent))
        else:
            mixed_low, mixed_up = self._mixed_lines(z, chord, slope)
            low = (
                torch.where(convex, slope, torch.where(concave, chord, mixed_low[0])),
                torch.where(convex, tangent, torch.where(concave, below, mixed_low[1])),
            )
            up = (
                torch.where(convex, chord, torch.where(concave, slope, mixed_up[0])),
                torch.where(convex, above, torch.where(concave, tangent, mixed_up[1])),
            )
        point, size = self.jump
        if size:
            # The library compares in its own precision: the jump is at a number next to this point, on either side.
            near = 4 * torch.finfo(b.dtype).eps * abs(point)
            gap = torch.where(b >= point - near, size, 0.0)
            low, up = (low[0], low[1] - gap), (up[0], up[1] + gap)
        return low, up

    def _curvature(self, z: Interval) -> tuple[Tensor, Tensor]:
        """Where f is convex on the whole of z, and where it is concave."""
        ends = (-torch.inf, *self.turns, torch.inf)
        found = [torch.zeros_like(z.lower, dtype=torch.bool) for _ in range(2)]
        for index, (a, b) in enumerate(pairwise(ends)):
            side = index % 2 ^ (not self.convex)
            found[side] = found[side] | ((z.lower >= a) & (z.upper <= b))
        return found[0], found[1]

    def _mixed_lines(
        self, z: Interval, chord: Tensor, middle: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        width = z.width
        points = [z.lower + width * (k / PIECES) for k in range(PIECES)] + [z.upper]
        points += [_inside(z, t) for t in (*self.turns, *self.kinks)]
        grid = torch.stack(points)
        values = self.f(grid)
        error = self.bend * (width / PIECES) ** 2 / 8
        # Steepest and flattest lines from either end: among them the tangents of an S-shaped function.
        rises = values - values[0], values[PIECES] - values
        steps = grid - grid[0], grid[PIECES] - grid
        safe = [torch.where(d > 0, r / torch.where(d > 0, d, 1), chord) for r, d in zip(rises, steps, strict=True)]
        m = z.center

        def best(slopes: list[Tensor], sign: int) -> tuple[Tensor, Tensor]:
            """The line with the smallest `sign * value` in the middle."""
            a = torch.stack(slopes)
            b = ((sign * values).unsqueeze(1) - (sign * a) * grid.unsqueeze(1)).amax(0) + error
            # Of equally good lines the first, however they are rounded: bounds must not differ from batch to batch.
            order = torch.arange(len(a), device=m.device, dtype=m.dtype).view(-1, *[1] * m.dim())
            choice = (sign * a * m + b + 1e-5 * width * order).argmin(0, keepdim=True)
            return a.gather(0, choice)[0], sign * b.gather(0, choice)[0]

        low = best([safe[0].amin(0), safe[1].amax(0), chord, middle], -1)
        up = best([safe[0].amax(0), safe[1].amin(0), chord, middle], 1)
        return low, up

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
        return Interval(*rounding.widened(y.lower, y.upper, ulps=self.ulps, scale=1 + z.magnitude))


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

        @relaxation_rule(*layers)
        def relaxation(layer: nn.Module, x: Interval) -> tuple[LinearBound, LinearBound]:
            record = activation(layer)
            if not record.relaxable:
                y = record.range(x)
                zero = torch.zeros_like(y.lower)
                return _line(zero, y.lower), _line(zero, y.upper)
            (a, b), (c, d) = record.lines(x)
            return _line(a, b), _line(c, d)

        return activation

    return decorate


def activation_of(layer: nn.Module) -> Activation | None:
    """The record of a layer that applies one function to each entry; None for other layers."""
    rules = rules_for(layer)
    record = None if rules is None else _RECORDS.get(rules.layer)
    return None if record is None else record(layer)


def _line(slope: Tensor, intercept: Tensor) -> LinearBound:
    return LinearBound(lambda coefficients: coefficients * slope.unsqueeze(1), intercept)


def _inside(z: Interval, point: float) -> Tensor:
    """The point of z nearest to `point`."""
    return torch.minimum(z.lower.clamp(min=point), z.upper)
