"""The elementwise activations of torch that fewer models have: one record each."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.rules.elementwise import Activation, elementwise

SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


@elementwise(nn.SELU)
def selu(layer: nn.SELU) -> Activation:
    """ELU with its own constants: the slope drops at zero."""

    def slope(z: Tensor) -> Tensor:
        return SELU_SCALE * torch.where(z > 0, 1.0, SELU_ALPHA * z.clamp(max=0).exp())

    return Activation(f=F.selu, slope=slope, turns=(0.0,), kinks=(0.0,), ulps=16)


@elementwise(nn.CELU)
def celu(layer: nn.CELU) -> Activation:
    """`z` above zero, `a (e^(z/a) - 1)` below; for a < 0 it falls ever steeper below."""
    a = layer.alpha
    if a == 0 or not math.isfinite(a):
        raise UnsupportedModelError(f"CELU with alpha={a} has no interval rule: alpha must be finite and not 0")
    inverse = 1 / float(torch.tensor(a, dtype=torch.float32))

    def slope(z: Tensor) -> Tensor:
        return torch.where(z > 0, 1.0, (z.clamp(max=0) / a).exp())

    def derivative(z: Tensor) -> Tensor:
        """What torch returns: the inverse of alpha is one in single precision."""
        return torch.where(z > 0, 1.0, a * inverse * (z.clamp(max=0) * inverse).exp())

    def derivatives(z: Interval) -> Interval:
        if z.is_point:
            return z.map(derivative)
        ends = [g(t) for g in (slope, derivative) for t in (z.lower, z.upper)]
        ends.append(torch.where((z.lower <= 0) & (z.upper > 0), a * inverse, ends[0]))
        return Interval(torch.stack(ends).amin(0), torch.stack(ends).amax(0))

    return Activation(
        f=lambda z: F.celu(z, a),
        slope=slope,
        slope_image=derivatives,
        convex=a > 0,
        ulps=16 * max(1.0, abs(a), 1 / abs(a)),
    )


@elementwise(nn.Mish)
def mish(layer: nn.Mish) -> Activation:
    """`z tanh(softplus(z))`: shaped as SiLU."""

    def slope(z: Tensor) -> Tensor:
        t = torch.tanh(F.softplus(z))
        return t + z * torch.sigmoid(z) * (1 - t * t)

    return Activation(
        f=F.mish, slope=slope, extrema=(-1.1924312145154954,), turns=(-2.2563763963607935, 1.4905711794854282),
        convex=False, ulps=32,
    )  # fmt: skip


@elementwise(nn.Hardswish)
def hardswish(layer: nn.Hardswish) -> Activation:
    """`z min(max(z + 3, 0), 6) / 6`: a parabola between two lines, with kinks at -3 and 3."""

    def slope(z: Tensor) -> Tensor:
        return torch.where(z <= -3, 0.0, torch.where(z < 3, z / 3 + 0.5, 1.0))

    def slopes(z: Interval) -> Interval:
        if z.is_point:
            return z.map(slope)
        middle = z.map(lambda t: t.clamp(-3, 3) / 3 + 0.5)
        before, after = z.lower <= -3, z.upper >= 3
        inside = (z.lower <= 3) & (z.upper >= -3)
        low = torch.where(inside, middle.lower, torch.inf)
        up = torch.where(inside, middle.upper, -torch.inf)
        low = torch.where(before, low.clamp(max=0), torch.where(after, low.clamp(max=1), low))
        up = torch.where(after, up.clamp(min=1), torch.where(before, up.clamp(min=0), up))
        return Interval(low, up)

    return Activation(
        f=F.hardswish, slope=slope, slope_image=slopes, extrema=(-1.5,), turns=(-3.0, 3.0), kinks=(-3.0, 3.0),
        convex=False, ulps=8,
    )  # fmt: skip


@elementwise(nn.Hardsigmoid)
def hardsigmoid(layer: nn.Hardsigmoid) -> Activation:
    """`min(max(z + 3, 0), 6) / 6`; the slope at both ends is 0."""
    # Torch's derivative has a sixth in single precision; both are in the interval.
    sixth = float(torch.tensor(1 / 6, dtype=torch.float32))

    def slopes(z: Interval) -> Interval:
        all_inside, some_inside = (z.lower > -3) & (z.upper < 3), (z.lower < 3) & (z.upper > -3)
        if z.is_point:
            return Interval.point(all_inside.to(z.lower) * sixth)
        return Interval(all_inside.to(z.lower) * min(sixth, 1 / 6), some_inside.to(z.lower) * max(sixth, 1 / 6))

    return Activation(
        f=F.hardsigmoid,
        slope=lambda z: ((z > -3) & (z < 3)).to(z) / 6,
        slope_image=slopes,
        turns=(0.0,),
        kinks=(-3.0, 3.0),
        ulps=4,
    )


@elementwise(nn.Softsign)
def softsign(layer: nn.Softsign) -> Activation:
    """`z / (1 + |z|)`."""
    return Activation(f=F.softsign, slope=lambda z: (1 + z.abs()) ** -2.0, turns=(0.0,), ulps=8)


@elementwise(nn.Tanhshrink)
def tanhshrink(layer: nn.Tanhshrink) -> Activation:
    """`z - tanh(z)`: concave, then convex."""
    return Activation(f=F.tanhshrink, slope=lambda z: torch.tanh(z) ** 2, turns=(0.0,), convex=False, ulps=16)


@elementwise(nn.LogSigmoid)
def logsigmoid(layer: nn.LogSigmoid) -> Activation:
    """`-log(1 + e^-z)`: concave."""
    return Activation(f=F.logsigmoid, slope=lambda z: torch.sigmoid(-z), convex=False, ulps=16)


@elementwise(nn.Softshrink)
def softshrink(layer: nn.Softshrink) -> Activation:
    """`z` moved by lambda towards zero, which it stays at within lambda."""
    edge = layer.lambd
    if not edge >= 0:
        raise UnsupportedModelError(f"Softshrink with lambd={edge} has no values: lambd must not be below 0")
    return Activation(
        f=lambda z: F.softshrink(z, edge),
        slope=lambda z: (z.abs() > edge).to(z),
        turns=(0.0,),
        kinks=(-edge, edge),
        convex=False,
        ulps=1,
    )


@elementwise(nn.Hardshrink)
def hardshrink(layer: nn.Hardshrink) -> Activation:
    """`z`, but 0 within lambda of it: it rises, with two jumps."""
    edge = layer.lambd

    def slopes(z: Interval) -> Interval:
        if z.is_point:
            return Interval.point(((z.lower < -edge) | (z.lower > edge)).to(z.lower))
        low = ((z.lower > edge) | (z.upper < -edge)).to(z.lower)
        return Interval(low, ((z.lower < -edge) | (z.upper > edge)).to(z.lower))

    return Activation(
        f=lambda z: F.hardshrink(z, edge),
        slope=lambda z: ((z < -edge) | (z > edge)).to(z),
        slope_image=slopes,
        relaxable=False,
    )


@elementwise(nn.Threshold)
def threshold(layer: nn.Threshold) -> Activation:
    """`z` above the threshold, a number up to it."""
    edge, value = float(layer.threshold), float(layer.value)

    def image(z: Interval) -> Interval:
        """The number where z may lie below, and z where it may lie above."""
        below, above = z.lower <= edge, z.upper > edge
        low = torch.where(above, z.lower.clamp(min=edge), torch.inf)
        up = torch.where(above, z.upper, -torch.inf)
        return Interval(torch.where(below, low.clamp(max=value), low), torch.where(below, up.clamp(min=value), up))

    return Activation(
        f=lambda z: F.threshold(z, edge, value),
        slope=lambda z: (z > edge).to(z),
        image=lambda z: z.map(lambda t: F.threshold(t, edge, value)) if z.is_point else image(z),
        relaxable=False,
    )


@elementwise(nn.RReLU)
def rrelu(layer: nn.RReLU) -> Activation:
    """In evaluation mode a leaky ReLU with the mean of both slopes."""
    a = (layer.lower + layer.upper) / 2
    return Activation(
        f=lambda z: F.leaky_relu(z, a),
        slope=lambda z: torch.where(z > 0, torch.ones_like(z), a),
        extrema=(0.0,) if a < 0 else (),
        convex=a <= 1,
        ulps=1,
    )
