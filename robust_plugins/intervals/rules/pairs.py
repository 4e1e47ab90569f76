"""Rules of the functions that act on the entries of two inputs, pair by pair."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Multiply
from robust_plugins.intervals.products import reduced
from robust_plugins.intervals.rules.registry import LinearBound, backward_rule, forward_rule, relaxation_rule


@forward_rule(Multiply)
def multiply(layer: Multiply, x: Interval, y: Interval) -> Interval:
    """`x * y`."""
    return x * y


@backward_rule(Multiply)
def multiply_vjp(layer: Multiply, x: Interval, y: Interval, grad: Interval) -> tuple[Interval, Interval]:
    """`g y` and `g x`."""
    return reduced(grad * y, tuple(x.shape)), reduced(grad * x, tuple(y.shape))


@relaxation_rule(Multiply)
def multiply_relaxation(layer: Multiply, x: Interval, y: Interval) -> tuple[LinearBound, LinearBound]:
    """McCormick's planes: below `c x + a y - a c` and `d x + b y - b d`, above `d x + a y - a d` and `c x + b y - b c`.

    All mixtures of the two on one side are as near to the product in the middle of the box `[a, b] x [c, d]`. Taken is
    the one with the least coefficient of one factor: of that which moves the product more, at the other's least size.
    """
    a, b, c, d = torch.broadcast_tensors(x.lower, x.upper, y.lower, y.upper)
    of_x = (b - a) * _least_size(c, d) >= (d - c) * _least_size(a, b)
    shapes = tuple(x.shape), tuple(y.shape)

    def mixed(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Slopes and offset of a mixture of the planes through two corners (x, y) of the box."""
        (x1, y1), (x2, y2) = one, two
        t = torch.where(of_x, _nearest_to_zero(y1, y2), _nearest_to_zero(x1, x2))
        slopes = t * y1 + (1 - t) * y2, t * x1 + (1 - t) * x2
        return slopes, -(t * x1 * y1 + (1 - t) * x2 * y2)

    (low_slopes, low), (up_slopes, up) = mixed((a, c), (b, d)), mixed((a, d), (b, c))
    low, up = rounding.widened(low, up, ulps=8, scale=x.magnitude * y.magnitude)
    return LinearBound.of_entries(low_slopes, low, shapes), LinearBound.of_entries(up_slopes, up, shapes)


def _least_size(low: Tensor, up: Tensor) -> Tensor:
    """The smallest absolute value in an interval."""
    return torch.maximum(low, -up).clamp(min=0)


def _nearest_to_zero(one: Tensor, two: Tensor) -> Tensor:
    """The share t in [0, 1] for which `t one + (1 - t) two` has the least size."""
    apart = one != two
    share = two / torch.where(apart, two - one, 1)
    return torch.where(apart, share, 0.5).clamp(0, 1)
