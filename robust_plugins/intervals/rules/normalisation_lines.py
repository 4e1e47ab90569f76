"""The lines of normalisations: two parallel functions of the entries of a group, with and without outward rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.products import total
from robust_plugins.intervals.rules.groups import Group, errors


@dataclass(frozen=True, eq=False)
class Lines:
    """`straight d_c + along (c0 d) c0`, of the distance d from the centre, and offsets for a bound below and above."""

    straight: Tensor
    along: Tensor
    low: Tensor
    up: Tensor
    keep: Tensor
    """0 where constants are tighter: there the offsets are these."""


def lines_of(group: Group) -> Lines:
    """In real arithmetic: s between its chord over `[V_min, V_max]` and a tangent, V above its tangent."""
    z, c0, eps = group.x, group.middle, group.eps
    n = z.shape[-1]
    first, last = group.spread.lower, group.spread.upper
    high, small = torch.rsqrt(first + eps), torch.rsqrt(last + eps)
    # The slope of the chord of V^(-1/2), written so that it is right where both ends are near.
    a = -1 / ((first + eps).sqrt() * (last + eps).sqrt() * ((first + eps).sqrt() + (last + eps).sqrt()))
    touching = (-2 * a) ** (-2 / 3)  # V + eps where the tangent has this slope
    center = (c0**2).mean(-1, keepdim=True)
    curved = (z.radius**2).mean(-1, keepdim=True)
    e_low = touching**-0.5 - a * (touching - eps) + a * center + a * curved
    e_up = high - a * first + a * center
    s0, rs = (high + small) / 2, (high - small) / 2
    rest = torch.maximum(group.c.upper - c0, c0 - group.c.lower) * rs
    one, two = c0 * e_low, c0 * e_up
    low, up = torch.minimum(one, two) - rest, torch.maximum(one, two) + rest
    along = 2 * a / n
    # In terms of the input itself: less the value of the linear part at the centre, where c is c0.
    shift = s0 * c0 + along * (c0 * z.center).sum(-1, keepdim=True) * c0
    keep = up - low < group.normal.width
    return Lines(
        s0,
        along,
        torch.where(keep, low - shift, group.normal.lower),
        torch.where(keep, up - shift, group.normal.upper),
        keep.to(c0),
    )


def outward_lines(group: Group) -> Lines:
    """`_lines` for outward rounding: offsets for the function with the slopes as they are computed, by intervals.

    With `t = along c0 z` for the numbers as they are, `y - s0 c - t c0 = c0 (s - s0 - t) + (c - c0) (s - s0)`; and
    with `A = along n / 2`, whatever the number: `t = A (V - mean((c - c0)^2)) + along (|c0|^2 / 2 + mean(z) sum(c0))`.
    """
    z, c0, n = group.x, group.middle, group.x.shape[-1]
    near = lines_of(group)
    s0, along = near.straight, near.along
    axes = (z.lower.dim() - 1,)

    def summed(t: Interval) -> Interval:
        return total(t, axes).map(lambda u: u.unsqueeze(-1))

    point, slope = Interval.point(c0), Interval.point(along) * (n / 2)
    off, square = errors(z, group.centred)
    gap = off.amax(-1, keepdim=True) if group.centred else torch.zeros_like(s0)  # of c0 from the centred centre
    radius = torch.maximum(z.upper - z.center, z.center - z.lower)
    distance = (radius**2).mean(-1, keepdim=True).sqrt() + gap
    curved = rounding.widened(distance**2, distance**2, ulps=4 * (n + 16))[1]
    shift = summed(point * point) * 0.5
    if group.centred:
        shift = shift + summed(z) * (1 / n) * summed(point)
    range_of_s = _over(slope, group.spread, group.eps)
    bracket = range_of_s + slope * Interval(torch.zeros_like(curved), curved) - s0 - Interval.point(along) * shift
    residual = point * bracket + (group.c - c0) * (group.inverse - s0)
    # What the library errs by, and the coefficients on their way back.
    most, size = group.inverse.upper, z.magnitude
    own = off * most + group.c.magnitude * most**3 * square
    own = rounding.widened(own, own, ulps=16, scale=own + group.normal.magnitude)[1]
    mean = size.mean(-1, keepdim=True)
    back = s0 * (size + mean) + along.abs() * c0.abs() * (c0.abs() * size).sum(-1, keepdim=True)
    room = own + 4 * rounding.once(2 * n, z.dtype) * back
    found = Interval(residual.lower - room, residual.upper + room)
    keep = (found.width < group.normal.width) & found.width.isfinite()
    return Lines(
        s0,
        along,
        torch.where(keep, found.lower, group.normal.lower),
        torch.where(keep, found.upper, group.normal.upper),
        keep.to(c0),
    )


def _over(slope: Interval, spread: Interval, eps: float) -> Interval:
    """The range of `(V + eps)^(-1/2) - slope V` over V: convex, so below its ends, and above every tangent."""

    def root(v: Tensor) -> Interval:
        moved = Interval.point(v) + eps
        return Interval(*rounding.widened(torch.rsqrt(moved.upper), torch.rsqrt(moved.lower), ulps=8))

    ends = [root(v) - slope * v for v in (spread.lower, spread.upper)]
    at = ((-2 * slope.center).clamp(min=torch.finfo(spread.dtype).tiny) ** (-2 / 3) - eps).clamp(min=0)
    at = torch.minimum(torch.maximum(at, spread.lower), spread.upper)
    value = root(at)
    tangent = value * value * value * -0.5
    above = value + tangent * (spread - at) - slope * spread
    below = value - slope * at + (tangent - slope) * (spread - at)
    low = torch.maximum(above.lower, below.lower)
    return Interval(low, torch.maximum(ends[0].upper, ends[1].upper))
