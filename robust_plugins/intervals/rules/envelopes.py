"""One construction of lines for all functions: S-shaped, non-monotone and periodic ones, with kinks or without.

A function is given by its values, its slopes and the points that cut an interval into pieces on which it is convex or
concave, three of them at most. The best line above it in the middle of the interval touches its concave hull there:
where it is convex that is a chord; where it is concave, the tangent in the middle or one that bridges a convex piece.
Bridging tangents are found by bisection. They need not be exact: whatever the slope, the intercept is the largest
value of the function less the line, with each concave piece bounded by its tangents at both ends of the last bracket.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
Line = tuple[Tensor, Tensor]
"""Slope and intercept."""

STEPS = 14
"""Bisections. A line errs by the square of the last bracket's width: 2^-28 of the interval's, squared."""


@dataclass(frozen=True)
class Pieces:
    """Where a function turns from convex to concave and back, up to two times for each interval."""

    first: Tensor
    second: Tensor
    """Not below the first; either may be infinite."""
    convex: Tensor
    """Whether it is convex up to the first turn."""

    def curvature(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Where the function is convex on the whole of `[a, b]`, and where it is concave."""
        one = (b <= self.first) | (a >= self.second)
        other = (a >= self.first) & (b <= self.second)
        return (one & self.convex) | (other & ~self.convex), (one & ~self.convex) | (other & self.convex)


def mixed_lines(
    f: Function, slope: Function, a: Tensor, b: Tensor, pieces: Pieces, kinks: tuple[float, ...]
) -> tuple[Line, Line]:
    """A line below f and one above it on intervals that are neither convex nor concave.

    All tensors are vectors; `kinks` are points where the slope jumps, each in a piece of its own or at its border.
    """
    n = len(a)
    sign = torch.cat([a.new_ones(n), -a.new_ones(n)])
    both = _Concave(f, slope, sign, kinks)
    lines = both.lines(
        a.repeat(2), b.repeat(2), pieces.first.repeat(2), pieces.second.repeat(2), pieces.convex.repeat(2) ^ (sign < 0)
    )
    return (-lines[0][n:], -lines[1][n:]), (lines[0][:n], lines[1][:n])


@dataclass(frozen=True)
class _Concave:
    """Lines above `sign * f`, entry by entry."""

    of: Function
    slope_of: Function
    sign: Tensor
    kinks: tuple[float, ...]

    def f(self, z: Tensor) -> Tensor:
        return self.sign * self.of(z)

    def slope(self, z: Tensor) -> Tensor:
        return self.sign * self.slope_of(z)

    def at(self, index: Tensor) -> _Concave:
        return _Concave(self.of, self.slope_of, self.sign[index], self.kinks)

    def lines(self, a: Tensor, b: Tensor, first: Tensor, second: Tensor, convex: Tensor) -> Line:
        left = first <= a  # an empty first piece
        first, second, convex = torch.where(left, second, first), torch.where(left, b, second), convex ^ left
        two = second < b
        slopes, intercepts = torch.zeros_like(a), torch.zeros_like(a)
        for cases, line in ((~two, _one_turn), (two & convex, _hump), (two & ~convex, _valley)):
            (index,) = cases.nonzero(as_tuple=True)
            if len(index):
                found = line(self.at(index), a[index], b[index], first[index], second[index], convex[index])
                slopes, intercepts = (
                    t.index_put((index,), v) for t, v in zip((slopes, intercepts), found, strict=True)
                )
        return slopes, intercepts

    @torch.no_grad()
    def tangent(self, end: Tensor, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
        """The bracket of the point between `near` and `far` whose tangent passes through the function at `end`.

        The function is concave there, and `near` is nearer to `end`, which lies outside. Both ends are `far` where
        every tangent passes below.
        """
        value, low, high = self.f(end), near, far
        for _ in range(STEPS):
            middle = (low + high) / 2
            above = self.f(middle) + self.slope(middle) * (end - middle) >= value
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return low, high

    def contact(self, low: Tensor, high: Tensor) -> Tensor:
        """The point of a bracket that the line goes through: a kink, if there is one."""
        found = high
        for kink in self.kinks:
            found = torch.where((low - kink) * (high - kink) <= 0, kink, found)
        return found

    def rise(self, slope: Tensor, near: Tensor, low: Tensor, high: Tensor, far: Tensor) -> Tensor:
        """An upper bound of the function less `slope z` on a concave piece, by its tangents at `low` and `high`."""
        at_low, at_high = self.f(low), self.f(high)
        slope_low, slope_high = self.slope(low), self.slope(high)

        def left(z: Tensor) -> Tensor:
            return at_low + slope_low * (z - low) - slope * z

        def right(z: Tensor) -> Tensor:
            return at_high + slope_high * (z - high) - slope * z

        ends = torch.maximum(left(low), right(high))
        between = torch.minimum(torch.maximum(left(low), left(high)), torch.maximum(right(low), right(high)))
        for kink in self.kinks:
            point = torch.full_like(low, kink)
            inside = (low - kink) * (high - kink) <= 0
            at_kink = torch.maximum(ends, torch.maximum(left(point), right(point)))
            between = torch.where(inside, torch.minimum(between, at_kink), between)
        return torch.maximum(torch.maximum(ends, between), torch.maximum(left(near), right(far)))

    def best(self, slope: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The slope, or on intervals of rounding size that in the middle."""
        m = a / 2 + b / 2
        wide = b - a > 16 * torch.finfo(a.dtype).eps * (1 + a.abs() + b.abs())
        return torch.where(wide, slope, self.slope(m))


def _chord(of: _Concave, one: Tensor, two: Tensor) -> Tensor:
    apart = one != two
    return torch.where(apart, (of.f(two) - of.f(one)) / torch.where(apart, two - one, 1), of.slope(one))


def _one_turn(of: _Concave, a: Tensor, b: Tensor, turn: Tensor, second: Tensor, convex: Tensor) -> Line:
    """Convex and concave, or the other way round: the chord, the tangent through the convex end, or in the middle."""
    end, far, m = torch.where(convex, a, b), torch.where(convex, b, a), a / 2 + b / 2
    low, high = of.tangent(end, turn, far)
    beyond = (m - high) * (far - turn) > 0
    slope = of.best(torch.where(beyond, of.slope(m), _chord(of, end, of.contact(low, high))), a, b)
    low, high = torch.where(beyond, m, low), torch.where(beyond, m, high)
    return slope, torch.maximum(of.f(end) - slope * end, of.rise(slope, turn, low, high, far))


def _hump(of: _Concave, a: Tensor, b: Tensor, first: Tensor, second: Tensor, convex: Tensor) -> Line:
    """Convex, concave, convex: a tangent through either end or in the middle, or the chord where it passes above."""
    m = a / 2 + b / 2
    (a_low, a_high), (b_low, b_high) = of.tangent(a, first, second), of.tangent(b, second, first)
    hidden = a_high >= b_high
    from_a, from_b = ~hidden & (m < a_high), ~hidden & (m > b_high)
    slope = torch.where(hidden, _chord(of, a, b), of.slope(m))
    slope = torch.where(from_a, _chord(of, a, of.contact(a_low, a_high)), slope)
    slope = of.best(torch.where(from_b, _chord(of, b, of.contact(b_low, b_high)), slope), a, b)
    inside = torch.minimum(torch.maximum(m, first), second)
    low = torch.where(hidden | from_a, a_low, torch.where(from_b, b_high, inside))
    high = torch.where(hidden, a_low, torch.where(from_a, a_high, torch.where(from_b, b_low, inside)))
    ends = torch.maximum(of.f(a) - slope * a, of.f(b) - slope * b)
    return slope, torch.maximum(ends, of.rise(slope, first, low, high, second))


def _valley(of: _Concave, a: Tensor, b: Tensor, first: Tensor, second: Tensor, convex: Tensor) -> Line:
    """Concave, convex, concave: the tangent that touches both concave pieces, or the one in the middle.

    Near it the slope does not change with either contact, so that the two are found in turns.
    """
    m, right = a / 2 + b / 2, b
    for _ in range(2):
        u_low, u_high = of.tangent(right, first, a)
        v_low, right = of.tangent(u_high, second, b)
    left_side, right_side = m < u_high, m > right
    slope = _chord(of, of.contact(u_low, u_high), of.contact(v_low, right))
    slope = of.best(torch.where(left_side | right_side, of.slope(m), slope), a, b)
    u_low, u_high = torch.where(left_side, m, u_low), torch.where(left_side, m, u_high)
    v_low, v_high = torch.where(right_side, m, v_low), torch.where(right_side, m, right)
    return slope, torch.maximum(of.rise(slope, first, u_low, u_high, a), of.rise(slope, second, v_low, v_high, b))
