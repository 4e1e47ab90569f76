"""Rules of the normalisations of each sample: LayerNorm, GroupNorm, InstanceNorm and RMSNorm.

All of them are `y = c s`, times a weight and plus a bias: `c = x - mean(x)` over groups of n entries (for RMSNorm
`c = x`), `s = 1 / sqrt(V + eps)` with `V = mean(c^2)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.products import product, summing, total
from robust_plugins.intervals.rules.linear import batch_norm, batch_norm_size, batch_norm_vjp, batch_norm_weights
from robust_plugins.intervals.rules.registry import (
    LinearBound,
    backward_rule,
    forward_rule,
    relaxation_rule,
    weights_rule,
)

INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
KINDS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, *INSTANCE)
PAIRS = 64
"""Groups of up to so many entries are bounded with a matrix of all pairs, which is tighter."""
STEPS = 12
"""Newton's steps to the point that minimises the variance; any point gives a bound."""


@forward_rule(*KINDS, parameters=("weight", "bias"))
def normalise(layer: Any, x: Interval, weight: Interval | None, bias: Interval | None = None) -> Interval:
    """The normalised entries, times the weight, plus the bias."""
    if _has_statistics(layer):
        return batch_norm(layer, x, weight, bias)
    group = _Group.of(layer, x)
    y = group.ungrouped(group.normal)
    if weight is not None:
        y = y * group.fitted(weight)
    return y if bias is None else y + group.fitted(bias)


@backward_rule(*KINDS)
def normalise_vjp(
    layer: Any, x: Interval, grad: Interval, weight: Interval | None, bias: Interval | None = None
) -> Interval:
    """`s (g - mean(g) - y mean(y g))`, g the gradient times the weight; without `mean(g)` for RMSNorm."""
    if _has_statistics(layer):
        return batch_norm_vjp(layer, x, grad, weight, bias)
    group = _Group.of(layer, x)
    g = group.grouped(grad if weight is None else grad * group.fitted(weight))
    return group.ungrouped(group.inverse * _projected(group, g))


@weights_rule(*KINDS)
def normalise_weights(
    layer: Any, x: Interval, grad: Interval, weight: Interval | None, bias: Interval | None = None, *, summed: bool
) -> dict[str, Interval]:
    """The normalised entries times the gradient, and the gradient, summed where the parameters were broadcast."""
    if _has_statistics(layer):
        return batch_norm_weights(layer, x, grad, weight, bias, summed=summed)
    group = _Group.of(layer, x)
    inside = len(group.shape) - len(layer.normalized_shape) if group.trailing else 2
    spread = tuple(range(1, inside)) if group.trailing else tuple(range(2, len(group.shape)))
    dims = (*((0,) if summed else ()), *spread)
    return {"weight": total(grad * group.ungrouped(group.normal), dims), "bias": total(grad, dims)}


@relaxation_rule(*KINDS, outward=True)
def normalise_relaxation(
    layer: Any, x: Interval, weight: Interval | None, bias: Interval | None = None
) -> tuple[LinearBound, LinearBound]:
    """Two parallel functions, tangent to the normalisation but for terms of second order; constants where those win.

    On `[V_min, V_max]` s lies between its chord and the tangent of the same slope a, and V between its tangent at the
    centre and that plus `mean(r^2)`; so `s = a (2 / n) c0 d + e`, with d the distance from the centre and e of an
    interval; `c s = c0 s + (c - c0) s0 + (c - c0) (s - s0)`, of which the last is bounded by the radii.
    """
    if _has_statistics(layer):
        return _affine(layer, x, weight, bias)
    group = _Group.of(layer, x)
    lines = outward_lines(group) if rounding.active() else _lines(group)
    shape = (1, *x.shape[1:])
    w, b = (
        Interval.point(x.lower.new_full(shape, default))
        if p is None
        else group.fitted(p).map(lambda t: t.expand(shape))
        for p, default in ((weight, 1.0), (bias, 0.0))
    )
    size = group.ungrouped(group.normal).magnitude
    ends = group.ungrouped(Interval(lines.low, lines.up))
    spread = w.radius * size
    if rounding.active():
        off = (w - w.center).magnitude * size
        found = ends * w.center + Interval(-off, off) + b
        low, up = found.lower, found.upper
    else:
        one, two = w.center * ends.lower, w.center * ends.upper
        low, up = torch.minimum(one, two) - spread + b.lower, torch.maximum(one, two) + spread + b.upper
    factor = w.center.unsqueeze(1)

    def transpose(coefficients: Tensor) -> Tensor:
        scaled = coefficients * factor
        k = scaled.expand(len(x), *scaled.shape[1:]).reshape(len(x), scaled.shape[1], *group.normal.shape[1:])
        k = k * lines.keep.unsqueeze(1)
        straight = k - k.mean(-1, keepdim=True) if group.centred else k
        along = (k * group.middle.unsqueeze(1)).sum(-1, keepdim=True)
        below = straight * lines.straight.unsqueeze(1) + along * (lines.along * group.middle).unsqueeze(1)
        return below.reshape(len(x), scaled.shape[1], *x.shape[1:])

    return LinearBound(transpose, low), LinearBound(transpose, up)


@dataclass(frozen=True, eq=False)
class _Group:
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
    def of(cls, layer: Any, x: Interval) -> _Group:
        """The groups of a layer, and their bounds."""
        trailing, centred = isinstance(layer, nn.LayerNorm | nn.RMSNorm), not isinstance(layer, nn.RMSNorm)
        if trailing:
            groups = prod(x.shape[1 : x.lower.dim() - len(layer.normalized_shape)])
        else:
            groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else x.shape[1]
        eps = torch.finfo(x.dtype).eps if layer.eps is None else layer.eps
        z = x.map(lambda t: t.reshape(len(t), groups, -1))
        c = _centred(z) if centred else z
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


def _centred(z: Interval) -> Interval:
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


def _errors(z: Interval, centred: bool) -> tuple[Tensor, Tensor]:
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
    off, square = _errors(z, centred)
    if centred:
        c = Interval(c.lower - off, c.upper + off)
    return c, Interval((spread.lower - square).clamp(min=0), spread.upper + square)


def _projected(group: _Group, g: Interval) -> Interval:
    """`g - mean(g) - y mean(y g)`."""
    n, y = g.shape[-1], group.normal
    straight = _straight(g) if group.centred else g
    mean = summing(y * g, lambda t: t.mean(-1, keepdim=True), n)
    if not (y.is_point and g.is_point):
        # The mean of y^2 is at most 1, and with it that of y g at most the root of the mean of g^2.
        most = (g.magnitude**2).mean(-1, keepdim=True).sqrt()
        most = rounding.widened(most, most, ulps=4 * (n + 16))[1]
        mean = Interval(torch.maximum(mean.lower, -most), torch.minimum(mean.upper, most))
    found = straight - y * mean
    if n > PAIRS or y.is_point:
        return found
    itself = torch.eye(n, dtype=torch.bool, device=g.device)
    pairs = y.map(lambda t: t.unsqueeze(-1)) * y.map(lambda t: t.unsqueeze(-2))
    pairs = Interval(torch.where(itself, pairs.lower.clamp(min=0), pairs.lower), pairs.upper)
    share = (pairs + (1.0 if group.centred else 0.0)) * (1 / n)
    matrix = -share + itself.to(g.dtype)
    other = product(lambda m, t: torch.einsum("bgij,bgj->bgi", m, t), matrix, g, terms=n)
    return found.agreeing(other)


def _straight(g: Interval) -> Interval:
    straight = _centred(g)
    if not rounding.active():
        return straight
    slack = rounding.kappa(4 * g.shape[-1], g.dtype) * (g.magnitude + g.magnitude.mean(-1, keepdim=True))
    return Interval(straight.lower - slack, straight.upper + slack)


@dataclass(frozen=True, eq=False)
class _Lines:
    """`straight d_c + along (c0 d) c0`, of the distance d from the centre, and offsets for a bound below and above."""

    straight: Tensor
    along: Tensor
    low: Tensor
    up: Tensor
    keep: Tensor
    """0 where constants are tighter: there the offsets are these."""


def _lines(group: _Group) -> _Lines:
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
    return _Lines(
        s0,
        along,
        torch.where(keep, low - shift, group.normal.lower),
        torch.where(keep, up - shift, group.normal.upper),
        keep.to(c0),
    )


def outward_lines(group: _Group) -> _Lines:
    """`_lines` for outward rounding: offsets for the function with the slopes as they are computed, by intervals.

    With `t = along c0 z` for the numbers as they are, `y - s0 c - t c0 = c0 (s - s0 - t) + (c - c0) (s - s0)`; and
    with `A = along n / 2`, whatever the number: `t = A (V - mean((c - c0)^2)) + along (|c0|^2 / 2 + mean(z) sum(c0))`.
    """
    z, c0, n = group.x, group.middle, group.x.shape[-1]
    near = _lines(group)
    s0, along = near.straight, near.along
    axes = (z.lower.dim() - 1,)

    def summed(t: Interval) -> Interval:
        return total(t, axes).map(lambda u: u.unsqueeze(-1))

    point, slope = Interval.point(c0), Interval.point(along) * (n / 2)
    off, square = _errors(z, group.centred)
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
    return _Lines(
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


def _has_statistics(layer: nn.Module) -> bool:
    """Whether it normalises by running statistics, as batch norm does."""
    return isinstance(layer, INSTANCE) and layer.running_mean is not None


def _affine(layer: Any, x: Interval, weight: Interval | None, bias: Interval | None) -> tuple[LinearBound, LinearBound]:
    """With running statistics: the line itself, and what intervals of the parameters add."""
    zero = Interval.point(torch.zeros_like(x.lower[:1]))
    center = None if weight is None else Interval.point(weight.center)
    deviation = None if weight is None or weight.is_point else weight - weight.center
    offset = batch_norm(layer, zero, center, bias)
    if deviation is not None:
        offset = offset + batch_norm(layer, x, deviation, None)

    def transpose(coefficients: Tensor) -> Tensor:
        flat = Interval.point(coefficients.flatten(0, 1))
        with rounding.outward(False):
            return batch_norm_vjp(layer, x, flat, center, None).lower.view(coefficients.shape)

    if rounding.active():  # of the library, and of coefficients
        sizes = [None if p is None else Interval.point(p.magnitude) for p in (weight, bias)]
        size = batch_norm_size(layer, Interval.point(x.magnitude), *sizes)
        room = 4 * rounding.once(16, x.dtype) * size + rounding.underflow(16, x.dtype)
        offset = Interval(offset.lower - room, offset.upper + room)
    low, up = (t.expand(x.shape) for t in (offset.lower, offset.upper))
    return LinearBound(transpose, low), LinearBound(transpose, up)
