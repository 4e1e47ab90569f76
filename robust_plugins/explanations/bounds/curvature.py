"""`Smooth`: how much the smooth activations bend, which bounds how far they leave a chord."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from robust_plugins.intervals import Interval
from robust_plugins.intervals.layers import Pointwise, Power
from robust_plugins.intervals.rules.elementwise import Activation, activation_of

PIECES = 16
"""Pieces of equal length into which a line's distance to a function is measured."""


@dataclass(frozen=True, kw_only=True)
class Smooth:
    """An activation f that is three times differentiable, up to one small jump."""

    activation: Activation
    bends: Callable[[Interval], tuple[Tensor, Tensor]]
    """Upper bounds of `|f''|` and of `|f'''|` on an interval."""
    edge: float = math.inf
    """Beyond this point f and f' may differ from the smooth function by `step`."""
    step: float = 0.0

    def gaps(self, z: Interval) -> Tensor | float:
        """How far f and f' may lie from the smooth function on an interval."""
        return torch.where(z.upper > self.edge, self.step, 0.0).to(z.dtype) if self.step else 0.0

    def second(self, z: Interval) -> Interval:
        """The range of the second derivative on an interval without the jump: its value in the middle, and its bend."""
        with torch.enable_grad():
            middle = z.center.detach().requires_grad_()
            (value,) = torch.autograd.grad(self.activation.slope(middle).sum(), middle)
        second, third = self.bends(z)
        reach = third * z.radius
        low, up = torch.maximum(value - reach, -second), torch.minimum(value + reach, second)
        return Interval(torch.minimum(low, up), torch.maximum(low, up))


def smooth_of(layer: nn.Module, *, partly: bool = False) -> Smooth | None:
    """The record of a smooth activation; None for other layers.

    With `partly` also of functions such as logarithms and powers, which are smooth where they are defined.
    """
    activation = activation_of(layer)
    if activation is None:
        return None
    if isinstance(layer, nn.Tanh):
        return Smooth(activation=activation, bends=lambda z: _of_tanh(z, 1.0, 2.0, 2.0))
    if isinstance(layer, nn.Sigmoid):
        # sigmoid(z) = (1 + tanh(z / 2)) / 2
        return Smooth(activation=activation, bends=lambda z: _of_tanh(z, 0.5, 1 / 4, 1 / 8))
    if isinstance(layer, nn.Softplus):
        beta = layer.beta

        def bends(z: Interval) -> tuple[Tensor, Tensor]:
            near, far = _sizes(z, beta / 2)
            return beta / 4 * (1 - near**2), beta**2 / 4 * _odd(near, far)

        step = max(1.0, 1 / beta) * math.exp(-layer.threshold)
        return Smooth(activation=activation, bends=bends, edge=layer.threshold / beta, step=step)
    if isinstance(layer, nn.GELU):
        return Smooth(activation=activation, bends=_everywhere(0.797885, 0.77878))
    if isinstance(layer, nn.SiLU):
        return Smooth(activation=activation, bends=_everywhere(0.5, 0.30819))
    if partly and isinstance(layer, Power):
        p = layer.exponent
        return Smooth(activation=activation, bends=_of_powers((p, p - 1), (p, p - 1, p - 2), p - 2, p - 3))
    if partly and isinstance(layer, Pointwise):
        known = _BENDS.get(layer.name)
        return None if known is None else Smooth(activation=activation, bends=known)
    return None


def _of_tanh(z: Interval, scale: float, second: float, third: float) -> tuple[Tensor, Tensor]:
    """`second |t| (1 - t^2)` and `third (1 - t^2) |1 - 3 t^2|` for `t = tanh(scale z)`, at their largest."""
    near, far = _sizes(z, scale)

    def even(t: Tensor) -> Tensor:  # 1 at 0, falls to 0 at t^2 = 1/3, rises to 1/3 at t^2 = 2/3, falls to 0
        return (1 - t**2) * (1 - 3 * t**2).abs()

    hump = (near**2 <= 2 / 3) & (far**2 >= 2 / 3)
    most = torch.maximum(even(near), even(far))
    return second * _odd(near, far), third * torch.where(hump, most.clamp(min=1 / 3), most)


def _sizes(z: Interval, scale: float) -> tuple[Tensor, Tensor]:
    """The smallest and the largest `|tanh(scale z)|` on an interval."""
    a, b = torch.tanh(scale * z.lower), torch.tanh(scale * z.upper)
    near = torch.where(a * b <= 0, 0.0, torch.minimum(a.abs(), b.abs()))
    return near, torch.maximum(a.abs(), b.abs())


def _odd(near: Tensor, far: Tensor) -> Tensor:
    """The largest `t (1 - t^2)` for t from near to far: it rises to t = 1/sqrt(3), and then falls."""
    t = torch.minimum(near.clamp(min=3**-0.5), far)
    return t * (1 - t**2)


def _of_powers(
    second: Sequence[float], third: Sequence[float], p: float, q: float
) -> Callable[[Interval], tuple[Tensor, Tensor]]:
    """`|c z^p|` and `|d z^q|`, with c and d the products of the given factors, at their largest: at an end, or at 0."""
    c, d = abs(prod(second)), abs(prod(third))

    def largest(z: Interval, factor: float, exponent: float) -> Tensor:
        if not factor:
            return torch.zeros_like(z.lower)
        near = torch.where(z.lower * z.upper <= 0, 0.0, torch.minimum(z.lower.abs(), z.upper.abs()))
        return factor * torch.maximum(near**exponent, z.magnitude**exponent)

    return lambda z: (largest(z, c, p), largest(z, d, q))


def _of_exp(z: Interval) -> tuple[Tensor, Tensor]:
    return z.upper.exp(), z.upper.exp()


_BENDS = {
    "exp": _of_exp,
    "expm1": _of_exp,
    "log": _of_powers((1.0,), (2.0,), -2, -3),
    "sqrt": _of_powers((1 / 4,), (3 / 8,), -1.5, -2.5),
    "rsqrt": _of_powers((3 / 4,), (15 / 8,), -2.5, -3.5),
    "reciprocal": _of_powers((2.0,), (6.0,), -3, -4),
    "sin": lambda z: (torch.ones_like(z.lower), torch.ones_like(z.lower)),
    "cos": lambda z: (torch.ones_like(z.lower), torch.ones_like(z.lower)),
}


def _everywhere(second: float, third: float) -> Callable[[Interval], tuple[Tensor, Tensor]]:
    return lambda z: (torch.full_like(z.lower, second), torch.full_like(z.lower, third))
