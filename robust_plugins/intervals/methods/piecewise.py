"""Piecewise linear activations as sums of ReLUs: `f(z) = slope z + value + sum_i change_i relu(z - kink_i)`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from robust_plugins.intervals.layers import Clamp, Pointwise
from robust_plugins.intervals.rules.registry import rules_for


@dataclass(frozen=True)
class PiecewiseLinear:
    """A continuous function of one number with finitely many kinks."""

    slope: float
    """Below the first kink."""
    value: float
    """What the line below the first kink is at zero."""
    kinks: tuple[tuple[float, float], ...]
    """Where the slope changes, in rising order, and by how much."""


def piecewise_linear(layer: nn.Module) -> PiecewiseLinear | None:
    """The function that a layer applies to each entry, where it is piecewise linear; None for other layers."""
    rules = rules_for(layer)
    kind = None if rules is None else rules.layer
    if kind is nn.ReLU:
        return PiecewiseLinear(0.0, 0.0, ((0.0, 1.0),))
    if kind is nn.LeakyReLU and isinstance(layer, nn.LeakyReLU):
        return PiecewiseLinear(layer.negative_slope, 0.0, ((0.0, 1.0 - layer.negative_slope),))
    if kind in (nn.Hardtanh, nn.ReLU6) and isinstance(layer, nn.Hardtanh):
        return _clamped(layer.min_val, layer.max_val)
    if kind is Pointwise and isinstance(layer, Pointwise) and layer.name == "abs":
        return PiecewiseLinear(-1.0, 0.0, ((0.0, 2.0),))
    if kind is Clamp and isinstance(layer, Clamp):
        return _clamped(-math.inf if layer.low is None else layer.low, math.inf if layer.high is None else layer.high)
    return None


def _clamped(low: float, high: float) -> PiecewiseLinear | None:
    if low > high:
        return None
    kinks = tuple((at, change) for at, change in ((low, 1.0), (high, -1.0)) if math.isfinite(at))
    return PiecewiseLinear(0.0, low, kinks) if math.isfinite(low) else PiecewiseLinear(1.0, 0.0, kinks)
