"""Rules of the layers that make one value of all along some axes: the largest one, also smoothly, and the length."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Largest, Length, LogSumExp
from robust_plugins.intervals.rules.registry import LinearBound, backward_rule, forward_rule, relaxation_rule
from robust_plugins.intervals.rules.selection import largest_of_others, softmax_range
from robust_plugins.intervals.rules.softmax import chords


@forward_rule(Largest)
def largest(layer: Largest, x: Interval) -> Interval:
    """Neither extreme falls when an entry rises."""
    return x.map(layer.forward)


@backward_rule(Largest)
def largest_vjp(layer: Largest, x: Interval, grad: Interval) -> Interval:
    """An entry has the gradient surely where it beats all others, never where it is surely beaten."""
    z = (-x if layer.least else x).map(lambda t: _last(t, layer.dims))
    if not x.is_point:
        share = Interval((z.lower > largest_of_others(z.upper)).to(z.lower), (z.upper >= _best(z)).to(z.lower))
    elif layer.first:
        share = Interval.point(F.one_hot(z.lower.max(-1).indices, z.shape[-1]).to(z.lower))
    else:
        equal = (z.lower == _best(z)).to(z.lower)
        share = Interval.point(equal / equal.sum(-1, keepdim=True))
    return _spread(layer, grad) * share.map(lambda t: _back(t, x.shape, layer.dims))


@relaxation_rule(Largest, outward=True)
def largest_relaxation(layer: Largest, x: Interval) -> tuple[LinearBound, LinearBound]:
    """Below: the entry c with the largest lower end L. Above: `x_c + sum chord of relu(x_i - L)`, or a constant.

    No entry that cannot exceed L adds to the sum, so that it is c alone where that surely wins.
    """
    z = (-x if layer.least else x).map(lambda t: _last(t, layer.dims))
    chosen, slopes, offset = over_largest(z, z, ulps=4.0 * (z.shape[-1] + 8))
    zero = torch.zeros_like(offset)
    if layer.least:
        return _line(layer, x, slopes, -offset), _line(layer, x, chosen, zero)
    return _line(layer, x, chosen, zero), _line(layer, x, slopes, offset)


def over_largest(z: Interval, among: Interval, *, ulps: float) -> tuple[Tensor, Tensor, Tensor]:
    """A linear function above the largest of the entries along the last axis: slopes and offset.

    And first, as ones and zeros, the entry with the largest lower end. `among` is z with minus infinity in the place
    of entries that do not count. Rounded outward by `ulps` of all terms.
    """
    best = _best(among)
    chosen = F.one_hot(among.lower.argmax(-1), z.shape[-1]).to(z.lower)
    over = (among.upper - best).clamp(min=0) * (1 - chosen)
    chords = torch.where(over > 0, over / torch.where(over > 0, z.upper - z.lower, 1), 0.0)
    slopes, offset = chosen + chords, -(chords * z.lower).sum(-1)
    ceiling = among.upper.amax(-1)
    flat = (slopes * z.center).sum(-1) + offset > ceiling  # too many may be the largest
    slopes, offset = torch.where(flat.unsqueeze(-1), 0.0, slopes), torch.where(flat, ceiling, offset)
    scale = (slopes * z.magnitude).sum(-1) + offset.abs()
    return chosen, slopes, rounding.widened(offset, offset, ulps=ulps, scale=scale)[1]


@forward_rule(Length)
def length(layer: Length, x: Interval) -> Interval:
    """The lengths of the least and of the largest absolute values."""
    if x.is_point:
        found = Interval.point(layer.forward(x.lower))
    else:
        found = Interval(layer.forward(_least_size(x)), layer.forward(x.magnitude))
    low, up = rounding.widened(found.lower, found.upper, ulps=4.0 * (_count(layer, x) + 8))
    return Interval(low.clamp(min=0) if rounding.active() else low, up)


@backward_rule(Length)
def length_vjp(layer: Length, x: Interval, grad: Interval) -> Interval:
    """`x_i / sqrt(x_i^2 + q)`, q of the other entries: rises with `x_i`, and is nearer to zero the larger q is."""
    if x.is_point:
        # As automatic differentiation has it, to the last place.
        norm = _spread(layer, x.map(layer.forward)).lower
        slopes = Interval.point(torch.where(norm == 0, 0.0, x.lower / torch.where(norm == 0, 1.0, norm)))
    else:
        least, most = _of_others(layer, _least_size(x) ** 2), _of_others(layer, x.magnitude**2)
        slopes = Interval(
            torch.where(x.lower < 0, _cosine(x.lower, least), _cosine(x.lower, most)),
            torch.where(x.upper > 0, _cosine(x.upper, least), _cosine(x.upper, most)),
        )
    low, up = rounding.widened(slopes.lower, slopes.upper, ulps=4.0 * (_count(layer, x) + 8), scale=1.0)
    return _spread(layer, grad) * (Interval(low, up) if rounding.active() else slopes)


@relaxation_rule(Length, outward=True)
def length_relaxation(layer: Length, x: Interval) -> tuple[LinearBound, LinearBound]:
    """Below: `u x` for the unit vector u to the middle. Above: `sqrt(S) <= (s + S / s) / 2`, S the chords of squares.

    The first is Cauchy and Schwarz's inequality; the second holds for every s > 0.
    """
    center, ulps = x.center, 4.0 * (_count(layer, x) + 8)
    norm = _spread(layer, Interval.point(layer.forward(center))).lower
    unit = torch.where(norm > 0, center / torch.where(norm > 0, norm, 1.0), 0.0)
    size = x.magnitude.sum(layer.dims)
    zero = torch.zeros_like(size)
    below, _ = rounding.widened(zero, zero, ulps=ulps, scale=size)
    # Not below what is above 0, before the root: its gradient is infinite at 0.
    s = ((x.lower**2 + x.upper**2) / 2).sum(layer.dims, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny).sqrt()
    half = (s / 2).reshape(size.shape)
    offset = half - (x.lower / s * x.upper / 2).sum(layer.dims)
    scale = half + (x.magnitude / s * x.magnitude).sum(layer.dims)
    _, offset = rounding.widened(offset, offset, ulps=ulps, scale=scale)
    return (
        LinearBound(_transposed(layer, unit), _kept(layer, below)),
        LinearBound(_transposed(layer, center / s), _kept(layer, offset)),
    )


@forward_rule(LogSumExp)
def log_sum_exp(layer: LogSumExp, x: Interval) -> Interval:
    """It rises with every entry."""
    found = x.map(layer.forward)
    if not rounding.active():
        return found
    scale = 1 + x.magnitude.amax(layer.dims, layer.keepdim) + found.magnitude
    return Interval(*rounding.widened(found.lower, found.upper, ulps=4.0 * (_count(layer, x) + 16), scale=scale))


@backward_rule(LogSumExp)
def log_sum_exp_vjp(layer: LogSumExp, x: Interval, grad: Interval) -> Interval:
    """Its slopes are the probabilities of softmax."""
    p = softmax_range(x.map(lambda t: _last(t, layer.dims)), -1)
    return _spread(layer, grad) * p.map(lambda t: _back(t, x.shape, layer.dims))


@relaxation_rule(LogSumExp, outward=True)
def log_sum_exp_relaxation(layer: LogSumExp, x: Interval) -> tuple[LinearBound, LinearBound]:
    """Below the tangent in the middle, as it is convex; above that of the logarithm of the chords of `exp`, concave."""
    z = x.map(lambda t: _last(t, layer.dims))
    value, slope = chords(z)
    size, center, n = value.sum(-1, keepdim=True), z.center, z.shape[-1]
    at_center = (center.logsumexp(-1), z.upper.amax(-1) + size.squeeze(-1).log())
    lines = []
    for side, (steep, value) in enumerate(zip((center.softmax(-1), slope / size), at_center, strict=True)):
        offset = value - (steep * center).sum(-1)
        scale = 1 + value.abs() + (steep * z.magnitude).sum(-1) + z.magnitude.amax(-1)
        offset = rounding.widened(offset, offset, ulps=16.0 * (n + 16), scale=scale)[side]
        lines.append(_line(layer, x, steep, offset))
    return lines[0], lines[1]


def _cosine(x: Tensor, others: Tensor) -> Tensor:
    """`x / sqrt(x^2 + others)`; 0 where x is."""
    square = x**2 + others
    seen = square > 0
    # Squares that underflow leave the sign.
    found = torch.where(seen, x / torch.where(seen, square, 1.0).sqrt(), x.sign())
    return torch.where(x == 0, 0.0, found).clamp(-1, 1)


def _of_others(layer: Length, squares: Tensor) -> Tensor:
    """For each entry the sum of the others along the axes."""
    return (squares.sum(layer.dims, keepdim=True) - squares).clamp(min=0)


def _least_size(x: Interval) -> Tensor:
    """The smallest absolute value of each entry."""
    return torch.maximum(x.lower, -x.upper).clamp(min=0)


def _best(z: Interval) -> Tensor:
    return z.lower.amax(-1, keepdim=True)


def _count(layer: Largest | Length | LogSumExp, x: Interval) -> int:
    return prod(x.shape[d] for d in layer.dims)


def _kept(layer: Largest | Length | LogSumExp, t: Tensor) -> Tensor:
    """A value without the axes, of the shape of the layer's output."""
    for dim in layer.dims if layer.keepdim else ():
        t = t.unsqueeze(dim)
    return t


def _spread(layer: Largest | Length | LogSumExp, y: Interval) -> Interval:
    """A value of the output's shape that broadcasts against the input's."""

    def wide(t: Tensor) -> Tensor:
        for dim in () if layer.keepdim else layer.dims:
            t = t.unsqueeze(dim)
        return t

    return y.map(wide)


def _transposed(layer: Largest | Length | LogSumExp, slopes: Tensor) -> Callable[[Tensor], Tensor]:
    """Coefficients of the output as those of the input, by the slope of each entry."""

    def transpose(k: Tensor) -> Tensor:
        for dim in () if layer.keepdim else layer.dims:
            k = k.unsqueeze(dim + 1)
        return k * slopes.unsqueeze(1)

    return transpose


def _line(layer: Largest | LogSumExp, x: Interval, slopes: Tensor, offset: Tensor) -> LinearBound:
    return LinearBound(_transposed(layer, _back(slopes, x.shape, layer.dims)), _kept(layer, offset))


def _last(t: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The axes joined to one, which is the last."""
    rest = [d for d in range(t.dim()) if d not in dims]
    return t.permute(*rest, *dims).flatten(len(rest))


def _back(t: Tensor, shape: torch.Size, dims: tuple[int, ...]) -> Tensor:
    """Undoes `_last` for a tensor of the given shape."""
    order = [*(d for d in range(len(shape)) if d not in dims), *dims]
    return t.reshape([shape[d] for d in order]).permute([order.index(d) for d in range(len(shape))])
