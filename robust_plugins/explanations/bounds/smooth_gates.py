"""The product of a gradient with a smooth activation's slope, relaxed as a function of both and of the slope's input.

The slope s lies between two lines of the activation's input z. With `s = s0 + ds p`, `g = g0 + dg q`, `|p|, |q| <= 1`,

    s g = s0 g + g0 s - s0 g0 + ds dg p q,

which leaves a term of second order. Where a chord over g alone is nearer in the middle, as it is where z may be
anything, that is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_plugins.explanations.bounds.curvature import Smooth
from robust_plugins.explanations.bounds.joint_gates import line_above
from robust_plugins.intervals import Interval
from robust_plugins.intervals.rules.registry import LinearBound, Rules


class SmoothGate(nn.Module):
    """The name of the layer: an activation's slope at its first input, times its second."""


def smooth_gate(smooth: Smooth) -> Rules:
    """The rules of the gate of one activation."""

    def forward(_: nn.Module, z: Interval, grad: Interval) -> Interval:
        return grad * smooth.activation.slopes(z)

    def relaxation(_: nn.Module, z: Interval, grad: Interval) -> tuple[LinearBound, LinearBound]:
        slopes = smooth.activation.slopes(z)
        one = torch.ones_like(z.lower).unsqueeze(1)
        line = line_above(smooth, z, None, torch.cat((one, -one), 1), lambda rise, _: rise)
        (up_slope, low_slope), (up, low) = ((t[:, 0], -t[:, 1]) for t in line)
        shapes = tuple(z.shape), tuple(grad.shape)

        def above(g: Interval, sign: int) -> LinearBound:
            """Of `sign` times the product, as a bound of the product itself."""
            s0, ds, g0, dg = slopes.center, slopes.radius, g.center, g.radius
            rising = g0 > 0
            a = g0 * torch.where(rising, up_slope, low_slope)
            b = g0 * torch.where(rising, up, low) - s0 * g0 + ds * dg
            chord, offset = _chord(slopes, g)
            alone = chord * g0 + offset < a * z.center + s0 * g0 + b
            of_z, of_g = torch.where(alone, 0.0, a), torch.where(alone, chord, s0)
            # `g` is `sign` times the gradient.
            return LinearBound.of_entries((sign * of_z, of_g), sign * torch.where(alone, offset, b), shapes)

        return above(-grad, -1), above(grad, 1)

    def backward(_: nn.Module, z: Interval, grad: Interval, above: Interval) -> tuple[Interval, Interval]:
        return above * grad * smooth.second(z), above * smooth.activation.slopes(z)

    return Rules(SmoothGate, forward=forward, backward=backward, relaxation=relaxation)


def _chord(slopes: Interval, g: Interval) -> tuple[Tensor, Tensor]:
    """A line over g above `max(sl g, su g)`, which is convex."""
    first, last = g.lower, g.upper
    at_first, at_last = (torch.maximum(slopes.lower * t, slopes.upper * t) for t in (first, last))
    wide = last > first
    slope = torch.where(wide, (at_last - at_first) / torch.where(wide, last - first, 1), slopes.center)
    slope = torch.minimum(torch.maximum(slope, slopes.lower), slopes.upper)
    return slope, torch.maximum(at_first - slope * first, at_last - slope * last)
