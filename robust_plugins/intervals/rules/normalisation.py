"""Rules of the normalisations of each sample: LayerNorm, GroupNorm, InstanceNorm and RMSNorm.

All of them are `y = c s`, times a weight and plus a bias: `c = x - mean(x)` over groups of n entries (for RMSNorm
`c = x`), `s = 1 / sqrt(V + eps)` with `V = mean(c^2)`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.products import product, summing, total
from robust_plugins.intervals.rules.groups import PAIRS, Group, centred_range
from robust_plugins.intervals.rules.linear import batch_norm, batch_norm_size, batch_norm_vjp, batch_norm_weights
from robust_plugins.intervals.rules.normalisation_lines import lines_of, outward_lines
from robust_plugins.intervals.rules.registry import (
    LinearBound,
    backward_rule,
    forward_rule,
    relaxation_rule,
    weights_rule,
)

INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
KINDS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, *INSTANCE)


@forward_rule(*KINDS, parameters=("weight", "bias"))
def normalise(layer: Any, x: Interval, weight: Interval | None, bias: Interval | None = None) -> Interval:
    """The normalised entries, times the weight, plus the bias."""
    if _has_statistics(layer):
        return batch_norm(layer, x, weight, bias)
    group = Group.of(layer, x)
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
    group = Group.of(layer, x)
    g = group.grouped(grad if weight is None else grad * group.fitted(weight))
    return group.ungrouped(group.inverse * _projected(group, g))


@weights_rule(*KINDS)
def normalise_weights(
    layer: Any, x: Interval, grad: Interval, weight: Interval | None, bias: Interval | None = None, *, summed: bool
) -> dict[str, Interval]:
    """The normalised entries times the gradient, and the gradient, summed where the parameters were broadcast."""
    if _has_statistics(layer):
        return batch_norm_weights(layer, x, grad, weight, bias, summed=summed)
    group = Group.of(layer, x)
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
    group = Group.of(layer, x)
    lines = outward_lines(group) if rounding.active() else lines_of(group)
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


def _projected(group: Group, g: Interval) -> Interval:
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
    straight = centred_range(g)
    if not rounding.active():
        return straight
    slack = rounding.kappa(4 * g.shape[-1], g.dtype) * (g.magnitude + g.magnitude.mean(-1, keepdim=True))
    return Interval(straight.lower - slack, straight.upper + slack)


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
