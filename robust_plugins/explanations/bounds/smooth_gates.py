"""The product of a gradient with a smooth activation's slope, relaxed as a function of both and of the slope's input.

The slope s lies between two lines of the activation's input z. With `s = s0 + ds p`, `g = g0 + dg q`, `|p|, |q| <= 1`,

    s g = s0 g + g0 s - s0 g0 + ds dg p q,

which leaves a term of second order. Where a chord over g alone is nearer in the middle, as it is where z may be
anything, that is taken. Inside `rounding.outward()` the lines hold for what automatic differentiation computes, too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_plugins.explanations.bounds.curvature import Smooth
from robust_plugins.explanations.bounds.joint_gates import line_above
from robust_plugins.intervals import Interval, rounding
from robust_plugins.intervals.rules.registry import LinearBound, Rules


class SmoothGate(nn.Module):
    """The name of the layer: an activation's slope at its first input, times its second."""


def smooth_gate(smooth: Smooth) -> Rules:
    """The rules of the gate of one activation."""

    def forward(_: nn.Module, z: Interval, grad: Interval) -> Interval:
        return grad * smooth.activation.slopes(z)

    def relaxation(_: nn.Module, z: Interval, grad: Interval) -> tuple[LinearBound, LinearBound]:
        slopes = smooth.activation.slopes(z)
        (up_slope, up), (low_slope, low) = _lines(smooth, z, slopes)
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
            constant = torch.where(alone, offset, b)
            # Of the product, of centres and radii, and of coefficients.
            size = slopes.magnitude * g.magnitude + a.abs() * z.magnitude + b.abs()
            constant = rounding.widened(constant, constant, ulps=16, scale=size)[1]
            # `g` is `sign` times the gradient.
            return LinearBound.of_entries((sign * of_z, of_g), sign * constant, shapes)

        return above(-grad, -1), above(grad, 1)

    def backward(_: nn.Module, z: Interval, grad: Interval, above: Interval) -> tuple[Interval, Interval]:
        return above * grad * smooth.second(z), above * smooth.activation.slopes(z)

    return Rules(SmoothGate, forward=forward, backward=backward, relaxation=relaxation, outward=True)


def _lines(smooth: Smooth, z: Interval, slopes: Interval) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A line above the slope on z, and one below it, each as slope and intercept."""
    # At an edge the library may be on either side.
    held = Interval(*rounding.widened(z.lower, z.upper, ulps=4))
    one = torch.ones_like(z.lower).unsqueeze(1)
    rises, offsets = line_above(smooth, held, None, torch.cat((one, -one), 1), lambda rise, _: rise)
    if rounding.active():
        # Of the library's slopes, on the line's grid and where they are used; and of the line itself.
        of_f = 3 * smooth.activation.ulps * (1 + z.magnitude + slopes.magnitude)
        _, third = smooth.bends(held)
        of_line = slopes.magnitude + third * held.width**2
        size = (of_f + 16 * of_line).unsqueeze(1) + 16 * (rises.abs() * held.magnitude.unsqueeze(1) + offsets.abs())
        offsets = rounding.widened(offsets, offsets, scale=size)[1]
    return (rises[:, 0], offsets[:, 0]), (-rises[:, 1], -offsets[:, 1])


def _chord(slopes: Interval, g: Interval) -> tuple[Tensor, Tensor]:
    """A line over g above `max(sl g, su g)`, which is convex."""
    first, last = g.lower, g.upper
    at_first, at_last = (torch.maximum(slopes.lower * t, slopes.upper * t) for t in (first, last))
    wide = last > first
    slope = torch.where(wide, (at_last - at_first) / torch.where(wide, last - first, 1), slopes.center)
    slope = torch.minimum(torch.maximum(slope, slopes.lower), slopes.upper)
    return slope, torch.maximum(at_first - slope * first, at_last - slope * last)
