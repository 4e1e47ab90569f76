"""`Smooth`: how much the smooth activations bend, which bounds how far they leave a chord."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_plugins.intervals import Interval
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


def smooth_of(layer: nn.Module) -> Smooth | None:
    """The record of a smooth activation; None for other layers."""
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


def _everywhere(second: float, third: float) -> Callable[[Interval], tuple[Tensor, Tensor]]:
    return lambda z: (torch.full_like(z.lower, second), torch.full_like(z.lower, third))
