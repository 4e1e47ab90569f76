"""Rules of PReLU, whose slope below zero is a parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.products import total
from robust_plugins.intervals.rules.elementwise import line
from robust_plugins.intervals.rules.registry import (
    LinearBound,
    backward_rule,
    forward_rule,
    relaxation_rule,
    slopes_rule,
    weights_rule,
)


@forward_rule(nn.PReLU, parameters=("weight",))
def prelu(layer: nn.PReLU, x: Interval, weight: Interval) -> Interval:
    """`max(z, 0) + w min(z, 0)`: extreme at the ends of z and w, and at zero."""
    w = _channels(weight, x)
    if x.is_point and w.is_point:
        return x.map(lambda t: _value(t, w.lower))
    found = [_value(z, v) for z in (x.lower, x.upper) for v in (w.lower, w.upper)]
    low, up = torch.stack(found).amin(0), torch.stack(found).amax(0)
    across = (x.lower < 0) & (x.upper > 0)
    low, up = torch.where(across, low.clamp(max=0), low), torch.where(across, up.clamp(min=0), up)
    return Interval(*rounding.widened(low, up))


@slopes_rule(nn.PReLU)
def prelu_slopes(layer: nn.PReLU, x: Interval, weight: Interval) -> tuple[Interval]:
    """The weight up to zero, 1 above."""
    w = _channels(weight, x)
    above, below = x.lower > 0, x.upper <= 0
    low = torch.where(above, 1.0, torch.where(below, w.lower, w.lower.clamp(max=1)))
    if x.is_point and w.is_point:
        return (Interval.point(low),)
    return (Interval(low, torch.where(above, 1.0, torch.where(below, w.upper, w.upper.clamp(min=1)))),)


@backward_rule(nn.PReLU)
def prelu_vjp(layer: nn.PReLU, x: Interval, grad: Interval, weight: Interval) -> Interval:
    """The gradient times the slope."""
    return grad * prelu_slopes(layer, x, weight)[0]


@weights_rule(nn.PReLU)
def prelu_weights(
    layer: nn.PReLU, x: Interval, grad: Interval, weight: Interval, *, summed: bool
) -> dict[str, Interval]:
    """`g min(z, 0)`, summed over what shares a weight."""
    shared = (1,) if len(weight) == 1 and x.lower.dim() > 1 else ()
    dims = (*((0,) if summed else ()), *shared, *range(2, x.lower.dim()))
    found = total(grad * x.map(lambda t: t.clamp(max=0)), dims)
    return {"weight": found.map(lambda t: t.unsqueeze(-1)) if shared else found}


@relaxation_rule(nn.PReLU, outward=True)
def prelu_relaxation(layer: nn.PReLU, x: Interval, weight: Interval) -> tuple[LinearBound, LinearBound]:
    """Above lies the function with the smallest slope, below that with the largest: each convex or concave."""
    w = _channels(weight, x)
    a, b, m = x.lower, x.upper, x.center
    scale = x.magnitude * (1 + w.magnitude)

    def lines(slope: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The slope in the middle, and the chord's with the least and the largest intercept of its ends."""
        tangent = torch.where(m > 0, 1.0, slope)
        fa, fb, wide = _value(a, slope), _value(b, slope), b > a
        chord = torch.where(wide, (fb - fa) / torch.where(wide, b - a, 1), tangent)
        return (
            tangent,
            chord,
            torch.minimum(fa - chord * a, fb - chord * b),
            torch.maximum(fa - chord * a, fb - chord * b),
        )

    tangent, chord, below, _ = lines(w.upper)
    concave = w.upper > 1
    low, under = torch.where(concave, chord, tangent), torch.where(concave, below, 0.0)
    tangent, chord, _, above = lines(w.lower)
    concave = w.lower > 1
    up, over = torch.where(concave, tangent, chord), torch.where(concave, 0.0, above)
    under, over = rounding.widened(under, over, ulps=8, scale=scale)
    return line(low, under), line(up, over)


def _channels(weight: Interval, x: Interval) -> Interval:
    """One weight for all entries, or one for each channel."""
    return weight.map(lambda t: t.view(1, -1, *[1] * (x.lower.dim() - 2)) if x.lower.dim() > 1 else t)


def _value(z: Tensor, weight: Tensor) -> Tensor:
    return z.clamp(min=0) + weight * z.clamp(max=0)
