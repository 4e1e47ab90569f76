"""`Sinh`: a layer that the interval engine does not know, and its rules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import robust_plugins as rp


class Sinh(nn.Module):
    """The hyperbolic sine of each entry."""

    def forward(self, z: Tensor) -> Tensor:
        """Of any shape."""
        return z.sinh()


def forward(layer: nn.Module, x: rp.Interval) -> rp.Interval:
    """The sine is monotone, so the bounds map to the bounds."""
    return x.map(torch.sinh)


def backward(layer: nn.Module, x: rp.Interval, grad: rp.Interval) -> rp.Interval:
    """The slope is cosh, least where the interval is nearest to zero and largest at the end that is farther from it."""
    nearest = torch.where((x.lower < 0) & (x.upper > 0), 0, torch.minimum(x.lower.abs(), x.upper.abs()))
    farthest = torch.maximum(x.lower.abs(), x.upper.abs())
    return grad * rp.Interval(nearest.cosh(), farthest.cosh())
