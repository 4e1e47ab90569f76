"""Rules of the functions that act on the entries of two inputs, pair by pair."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Extreme, Multiply
from robust_plugins.intervals.products import reduced
from robust_plugins.intervals.rules.registry import (
    LinearBound,
    backward_rule,
    forward_rule,
    relaxation_rule,
    slopes_rule,
)


@forward_rule(Multiply)
def multiply(layer: Multiply, x: Interval, y: Interval) -> Interval:
    """`x * y`; of many factors, for a rounding of each."""
    found = x * y
    return found if layer.factors == 2 else Interval(*rounding.widened(found.lower, found.upper, ulps=layer.factors))


@forward_rule(Extreme)
def extreme(layer: Extreme, x: Interval, y: Interval) -> Interval:
    """The extreme of lower and of upper ends."""
    low = layer.forward(x.lower, y.lower)
    return Interval(low, low if x.is_point and y.is_point else layer.forward(x.upper, y.upper))


@slopes_rule(Multiply)
def multiply_slopes(layer: Multiply, x: Interval, y: Interval) -> tuple[Interval, Interval]:
    """By x it is y, by y it is x."""
    return y, x


@slopes_rule(Extreme)
def extreme_slopes(layer: Extreme, x: Interval, y: Interval) -> tuple[Interval, Interval]:
    """1 for the one that surely wins, 0 for the one that surely loses; equal ones share as the layer says."""
    a, b = (-x, -y) if layer.least else (x, y)
    if a.is_point and b.is_point:
        share = Interval.point((a.lower > b.lower).to(a.lower) + layer.tie * (a.lower == b.lower).to(a.lower))
    else:
        share = Interval((a.lower > b.upper).to(a.lower), (a.upper >= b.lower).to(a.lower))
    return share, -share + 1.0


@backward_rule(Multiply, Extreme)
def pairs_vjp(layer: Multiply | Extreme, x: Interval, y: Interval, grad: Interval) -> tuple[Interval, Interval]:
    """The gradient times the slope by either input, summed where that was broadcast."""
    of_x, of_y = multiply_slopes(layer, x, y) if isinstance(layer, Multiply) else extreme_slopes(layer, x, y)
    return reduced(grad * of_x, tuple(x.shape)), reduced(grad * of_y, tuple(y.shape))


@relaxation_rule(Multiply, outward=True)
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
    ulps = 4 + 2 * layer.factors + 2 * _shared(low, x, y)
    low, up = rounding.widened(low, up, ulps=ulps, scale=x.magnitude * y.magnitude)
    return LinearBound.of_entries(low_slopes, low, shapes), LinearBound.of_entries(up_slopes, up, shapes)


@relaxation_rule(Extreme, outward=True)
def extreme_relaxation(layer: Extreme, x: Interval, y: Interval) -> tuple[LinearBound, LinearBound]:
    """`max(x, y) = y + relu(x - y)` and `min(x, y) = x - relu(x - y)`, with lines for the ReLU."""
    a, b, c, d = torch.broadcast_tensors(x.lower, x.upper, y.lower, y.upper)
    low, up = rounding.widened(a - d, b - c)
    shapes = tuple(x.shape), tuple(y.shape)
    both = (low < 0) & (up > 0)
    chord = torch.where(both, up / torch.where(both, up - low, 1), (low >= 0).to(low))
    # Whatever its slope, the line through the end that lies further out is above the ReLU.
    above = torch.maximum(low.clamp(min=0) - chord * low, up.clamp(min=0) - chord * up)
    above = rounding.widened(above, above, ulps=8, scale=torch.maximum(low.abs(), up.abs()))[1]
    below = torch.where(both, (up >= -low).to(low), (low >= 0).to(low))
    zero = torch.zeros_like(low)
    _, slack = rounding.widened(zero, zero, ulps=4 + _shared(low, x, y), scale=x.magnitude + y.magnitude)
    if layer.least:
        lines = ((1 - chord, chord), -above - slack), ((1 - below, below), slack)
    else:
        lines = ((below, 1 - below), -slack), ((chord, 1 - chord), above + slack)
    (slopes, offset), (more, over) = lines
    return LinearBound.of_entries(slopes, offset, shapes), LinearBound.of_entries(more, over, shapes)


def _shared(result: Tensor, x: Interval, y: Interval) -> int:
    """How many entries of the result share one of an input: the length of the sum of their coefficients."""
    return max(prod(result.shape[1:]) // max(1, prod(i.shape[1:])) for i in (x, y))


def _least_size(low: Tensor, up: Tensor) -> Tensor:
    """The smallest absolute value in an interval."""
    return torch.maximum(low, -up).clamp(min=0)


def _nearest_to_zero(one: Tensor, two: Tensor) -> Tensor:
    """The share t in [0, 1] for which `t one + (1 - t) two` has the least size."""
    apart = one != two
    share = two / torch.where(apart, two - one, 1)
    return torch.where(apart, share, 0.5).clamp(0, 1)
