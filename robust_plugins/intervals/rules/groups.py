"""`Group`: the entries that a normalisation takes together, and the ranges of what it computes of them.

Of entries x it is `c = x - mean(x)` (for RMSNorm `c = x`), `V = mean(c^2)`, `s = 1 / sqrt(V + eps)` and `y = c s`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval

PAIRS = 64
"""Groups of up to so many entries are bounded with a matrix of all pairs, which is tighter."""
STEPS = 12
"""Newton's steps to the point that minimises the variance; any point gives a bound."""


@dataclass(frozen=True, eq=False)
class Group:
    """The entries of an input in groups of n, and bounds on what is computed of each group: (batch, groups, n or 1)."""

    shape: torch.Size
    trailing: bool
    """Whether the parameters have the shape of the last axes, and not that of the channels."""
    centred: bool
    x: Interval
    c: Interval
    middle: Tensor
    """c for the centre of the box."""
    spread: Interval
    """V."""
    inverse: Interval
    """s."""
    normal: Interval
    """y."""
    eps: float

    @classmethod
    def of(cls, layer: Any, x: Interval) -> Group:
        """The groups of a layer, and their bounds."""
        trailing, centred = isinstance(layer, nn.LayerNorm | nn.RMSNorm), not isinstance(layer, nn.RMSNorm)
        if trailing:
            groups = prod(x.shape[1 : x.lower.dim() - len(layer.normalized_shape)])
        else:
            groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else x.shape[1]
        eps = torch.finfo(x.dtype).eps if layer.eps is None else layer.eps
        z = x.map(lambda t: t.reshape(len(t), groups, -1))
        c = centred_range(z) if centred else z
        if z.is_point:
            spread = Interval.point((c.lower**2).mean(-1, keepdim=True))
        else:
            spread = Interval(_least_spread(z, centred), _most_spread(z, centred))
        c, spread = _rounded(z, c, spread, centred)
        inverse = Interval.point(torch.rsqrt(spread.lower + eps)) if spread.is_point else Interval(
            *rounding.widened(torch.rsqrt(spread.upper + eps), torch.rsqrt(spread.lower + eps), ulps=8)
        )  # fmt: skip
        middle = z.center - z.center.mean(-1, keepdim=True) if centred else z.center
        normal = c * inverse if spread.is_point else _normal(z, c, spread, eps, centred)
        return cls(x.shape, trailing, centred, z, c, middle, spread, inverse, normal, eps)

    def fitted(self, parameter: Interval) -> Interval:
        """A parameter as it meets the input."""
        if self.trailing:
            return parameter
        return parameter.map(lambda t: t.view(-1, *[1] * (len(self.shape) - 2)))

    def grouped(self, y: Interval) -> Interval:
        """Values in the input's shape, in groups."""
        return y.map(lambda t: t.expand(len(t), *self.shape[1:]).reshape(len(t), *self.x.shape[1:]))

    def ungrouped(self, y: Interval) -> Interval:
        """Values in groups, in the input's shape."""
        return y.map(lambda t: t.reshape(len(t), *self.shape[1:]))


def centred_range(z: Interval) -> Interval:
    """The range of `z_i - mean(z)`, exact: an entry has the weight `1 - 1/n`, the others `-1/n`."""
    n = z.shape[-1]
    low, up = z.lower.sum(-1, keepdim=True), z.upper.sum(-1, keepdim=True)
    if z.is_point:
        return Interval.point(z.lower - low / n)
    return Interval(z.lower - (z.lower + up - z.upper) / n, z.upper - (z.upper + low - z.lower) / n)


def _least_spread(z: Interval, centred: bool) -> Tensor:
    """The least V of the box: convex, so above its tangent at any point; exact at the point that minimises it."""
    if not centred:
        nearest = torch.maximum(z.lower, -z.upper).clamp(min=0)
        return (nearest**2).mean(-1, keepdim=True)
    t = _meeting(z.lower, z.upper, torch.ones_like(z.lower))
    return _tangent(z.lower, z.upper, t, torch.ones_like(z.lower))


def _meeting(low: Tensor, up: Tensor, among: Tensor) -> Tensor:
    """The t that is the mean of its own nearest points in the intervals: where all of them are gathered."""
    with torch.no_grad():
        count = among.sum(-1, keepdim=True)
        t = (among * (low + up)).sum(-1, keepdim=True) / (2 * count)
        for _ in range(STEPS):
            nearest = torch.minimum(torch.maximum(t, low), up)
            outside = among * (nearest != t)
            number = outside.sum(-1, keepdim=True)
            t = torch.where(number > 0, (outside * nearest).sum(-1, keepdim=True) / number.clamp(min=1), t)
        return t


def _tangent(low: Tensor, up: Tensor, t: Tensor, among: Tensor) -> Tensor:
    """A lower bound of the variance of the entries `among`: its tangent at the points nearest to t."""
    count = among.sum(-1, keepdim=True)
    nearest = torch.minimum(torch.maximum(t, low), up)
    away = among * (nearest - (among * nearest).sum(-1, keepdim=True) / count)
    fall = torch.minimum(away * (low - nearest), away * (up - nearest))
    return ((away**2 + 2 * fall).sum(-1, keepdim=True) / count).clamp(min=0)


def _most_spread(z: Interval, centred: bool) -> Tensor:
    """The largest mean square of distances from a point, here the mean of the centres: at least the variance."""
    center = z.center
    away = center - center.mean(-1, keepdim=True) if centred else center
    return ((away.abs() + z.radius) ** 2).mean(-1, keepdim=True)


def _normal(z: Interval, c: Interval, spread: Interval, eps: float, centred: bool) -> Interval:
    """The range of `c_i / sqrt(V + eps)`, which rises with c_i: V is `c_i^2 / (n - 1)` and what the others add.

    For RMSNorm V is `c_i^2 / n` and the others' part, and the range is exact. So `|y| <= sqrt(n - 1)`.
    """
    n = z.shape[-1]
    own = n - 1 if centred else n
    if not centred:
        nearest, furthest = torch.maximum(z.lower, -z.upper).clamp(min=0), z.magnitude
        least, most = spread.lower - nearest**2 / n, spread.upper - furthest**2 / n
    elif n <= PAIRS and n > 2:
        least, most = _rest(z)
    else:
        least, most = torch.zeros_like(c.lower), torch.full_like(c.lower, torch.inf)

    def at(end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        part = end**2 / max(own, 1)
        small = torch.maximum(spread.lower, least.clamp(min=0) + part)
        large = torch.minimum(spread.upper, most + part)
        return end, small, large

    end, small, large = at(c.upper)
    up = end * torch.rsqrt(torch.where(end >= 0, small, large) + eps)
    end, small, large = at(c.lower)
    low = end * torch.rsqrt(torch.where(end >= 0, large, small) + eps)
    return Interval(*rounding.widened(low, up, ulps=16))


def _rest(z: Interval) -> tuple[Tensor, Tensor]:
    """The least and the largest part of the variance that comes from all entries but one, for each of them."""
    n = z.shape[-1]
    among = 1 - torch.eye(n, dtype=z.dtype, device=z.device)
    low, up = z.lower.unsqueeze(-2), z.upper.unsqueeze(-2)
    least = _tangent(low, up, _meeting(low, up, among), among).squeeze(-1)
    center = z.center.unsqueeze(-2)
    away = (center - (among * center).sum(-1, keepdim=True) / (n - 1)).abs() + z.radius.unsqueeze(-2)
    most = (among * away**2).sum(-1) / (n - 1)
    slack: Tensor | float = 0.0
    if rounding.active():
        slack = rounding.kappa(4 * n, z.dtype) * (among * 4 * z.magnitude.unsqueeze(-2) ** 2).sum(-1)
    return (least - slack) * ((n - 1) / n), (most + slack) * ((n - 1) / n)


def errors(z: Interval, centred: bool) -> tuple[Tensor, Tensor]:
    """The errors of `c` and of V, ours and the library's, relative to the entries."""
    kappa = rounding.kappa(4 * z.shape[-1], z.dtype)
    size = z.magnitude + z.magnitude.mean(-1, keepdim=True) if centred else z.magnitude
    off = kappa * size + rounding.underflow(z.shape[-1], z.dtype)
    square = 4 * kappa * (size**2).mean(-1, keepdim=True) + rounding.underflow(z.shape[-1], z.dtype)
    return off, square


def _rounded(z: Interval, c: Interval, spread: Interval, centred: bool) -> tuple[Interval, Interval]:
    """Widened by the errors of means and of mean squares."""
    if not rounding.active():
        return c, spread
    off, square = errors(z, centred)
    if centred:
        c = Interval(c.lower - off, c.upper + off)
    return c, Interval((spread.lower - square).clamp(min=0), spread.upper + square)
