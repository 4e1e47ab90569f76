"""The elementwise activations: one record each."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Clamp, Step
from robust_plugins.intervals.rules.elementwise import Activation, elementwise


@elementwise(nn.ReLU)
def relu(layer: nn.ReLU) -> Activation:
    """`max(z, 0)`; the slope at 0 is 0."""
    return Activation(f=torch.relu, slope=lambda z: (z > 0).to(z))


@elementwise(nn.LeakyReLU)
def leaky_relu(layer: nn.LeakyReLU) -> Activation:
    """`z` above zero, `a z` below."""
    a = layer.negative_slope
    return Activation(
        f=lambda z: F.leaky_relu(z, a),
        slope=lambda z: torch.where(z > 0, torch.ones_like(z), a),
        extrema=(0.0,) if a < 0 else (),
        convex=a <= 1,
        ulps=1,
    )


@elementwise(nn.ELU)
def elu(layer: nn.ELU) -> Activation:
    """`z` above zero, `a (e^z - 1)` below; for a > 1 the slope drops at zero, from a to 1."""
    a = layer.alpha
    return Activation(
        f=lambda z: F.elu(z, a),
        slope=lambda z: torch.where(z > 0, 1.0, a * z.clamp(max=0).exp()),
        extrema=(0.0,) if a < 0 else (),
        turns=() if 0 <= a <= 1 else (0.0,),
        kinks=() if 0 <= a <= 1 else (0.0,),
        convex=a >= 0,
        ulps=8 * max(1.0, abs(a)),
    )


@elementwise(nn.Softplus)
def softplus(layer: nn.Softplus) -> Activation:
    """`log(1 + e^(b z)) / b`; beyond the threshold torch returns z, and jumps down to it."""
    b, threshold = float(layer.beta), float(layer.threshold)
    if not b > 0:
        raise UnsupportedModelError(f"Softplus with beta={b:g} has no interval rule: beta must be above 0")
    edge = threshold / b

    def smooth(z: Tensor) -> Tensor:
        return z.clamp(min=0) + torch.log1p(torch.exp(-(b * z).abs())) / b

    def image(z: Interval) -> Interval:
        """Both branches rise; where the jump may be in z, the lower end is beyond it and the upper end before it.

        The library multiplies and compares in its own precision, so that the jump may be at a number next to the edge.
        """
        low, up = F.softplus(z.lower, b, threshold), F.softplus(z.upper, b, threshold)
        if z.is_point:
            return Interval.point(low)
        near = 4 * torch.finfo(z.dtype).eps * abs(edge) + torch.finfo(z.dtype).tiny
        jumps = (z.lower <= edge + near) & (z.upper >= edge - near)
        least, most = z.lower.clamp(min=edge - near), smooth(z.upper.clamp(max=edge + near))
        return Interval(
            torch.where(jumps, torch.minimum(low, least), low), torch.where(jumps, torch.maximum(up, most), up)
        )

    return Activation(
        f=lambda z: F.softplus(z, b, threshold),
        slope=lambda z: torch.where(b * z > threshold, 1.0, torch.sigmoid(b * z)),
        image=image,
        jump=(edge, (max(-threshold, 0.0) + math.log1p(math.exp(-abs(threshold)))) / b),
        ulps=8 * max(1.0, b, 1 / b),
    )


@elementwise(nn.Sigmoid)
def sigmoid(layer: nn.Sigmoid) -> Activation:
    """`1 / (1 + e^-z)`."""

    def slope(z: Tensor) -> Tensor:
        p = torch.sigmoid(z)
        return p * (1 - p)

    return Activation(f=torch.sigmoid, slope=slope, turns=(0.0,), ulps=8)


@elementwise(nn.Tanh)
def tanh(layer: nn.Tanh) -> Activation:
    """The hyperbolic tangent."""
    return Activation(f=torch.tanh, slope=lambda z: 1 - torch.tanh(z) ** 2, turns=(0.0,), ulps=16)


@elementwise(nn.SiLU)
def silu(layer: nn.SiLU) -> Activation:
    """`z sigmoid(z)`: falls, then rises; concave, convex, concave."""

    def slope(z: Tensor) -> Tensor:
        p = torch.sigmoid(z)
        return p * (1 + z * (1 - p))

    turn = 2.399357280515468
    return Activation(f=F.silu, slope=slope, extrema=(-1.278464542761074,), turns=(-turn, turn), convex=False, ulps=16)


@elementwise(nn.GELU)
def gelu(layer: nn.GELU) -> Activation:
    """`z Phi(z)`, or its approximation by tanh; shaped as SiLU."""
    if layer.approximate == "tanh":
        return _GELU_TANH
    return _GELU


@elementwise(nn.Hardtanh, nn.ReLU6)
def hardtanh(layer: nn.Hardtanh) -> Activation:
    """`min(max(z, low), high)`; the slope at both ends is 0."""
    low, high = layer.min_val, layer.max_val
    if low > high:
        raise UnsupportedModelError(f"{type(layer).__name__} with min_val={low} above max_val={high} has no values")
    both = math.isfinite(low) and math.isfinite(high)
    return Activation(
        f=lambda z: F.hardtanh(z, low, high),
        slope=lambda z: ((z > low) & (z < high)).to(z),
        turns=((low + high) / 2,) if both else (),
        kinks=(low, high) if both else (),
        convex=both or math.isfinite(low),
    )


@elementwise(Clamp)
def clamp(layer: Clamp) -> Activation:
    """Clamping is Hardtanh with slope 1 at the ends, of which one may be missing."""
    low = -math.inf if layer.low is None else layer.low
    high = math.inf if layer.high is None else layer.high
    both = math.isfinite(low) and math.isfinite(high)
    return Activation(
        f=lambda z: z.clamp(low, high),
        slope=lambda z: ((z >= low) & (z <= high)).to(z),
        turns=((low + high) / 2,) if both else (),
        kinks=(low, high) if both else (),
        convex=both or math.isfinite(low),
    )


@elementwise(Step)
def step(layer: Step) -> Activation:
    """0 or 1, with slope 0."""
    return Activation(f=layer.forward, slope=torch.zeros_like, relaxable=False)


def _gelu_slope(z: Tensor) -> Tensor:
    return (1 + torch.erf(z / math.sqrt(2))) / 2 + z * torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)


def _gelu_tanh_slope(z: Tensor) -> Tensor:
    t = torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
    inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
    return (1 + t) / 2 + z / 2 * (1 - t**2) * inner


_GELU = Activation(
    f=F.gelu,
    slope=_gelu_slope,
    extrema=(-0.7517915246935645,),
    turns=(-math.sqrt(2), math.sqrt(2)),
    convex=False,
    ulps=16,
)
_GELU_TANH = Activation(
    f=lambda z: F.gelu(z, approximate="tanh"),
    slope=_gelu_tanh_slope,
    extrema=(-0.7524614220710162,),
    turns=(-1.4185040087908285, 1.4185040087908285),
    convex=False,
    ulps=16,
)
