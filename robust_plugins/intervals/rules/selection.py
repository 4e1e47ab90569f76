"""Rules of max-pooling, and the range of softmax."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.rules.registry import LinearBound, backward_rule, forward_rule, relaxation_rule

MaxPool = nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d


def softmax_range(z: Interval, dim: int) -> Interval:
    """The exact range of each softmax probability over the box z: its own logit at one end, the others at the other.

    `p_i = sigmoid(z_i - logsumexp_{j != i} z_j)`; differentiable, and without cancellation near 0 and 1.
    """
    if z.is_point:
        result = z.map(lambda t: t.softmax(dim))
    else:
        result = Interval(_softmax_of(z.lower, z.upper, dim), _softmax_of(z.upper, z.lower, dim))
    # An error of e in an exponent shifts p by less than e p (1 - p) |z|, and e^-t t < 1/2.
    low, up = rounding.widened(result.lower, result.upper, ulps=4 * (z.shape[dim] + 16), scale=1.0)
    return Interval(low, up) if not rounding.active() else Interval(low.clamp(min=0), up.clamp(max=1))


@forward_rule(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
def max_pool(layer: MaxPool, x: Interval) -> Interval:
    """The maximum never falls when an entry rises."""
    if layer.return_indices:
        raise UnsupportedModelError(f"{type(layer).__name__} with return_indices=True is not supported")
    return x.map(layer.forward)


@backward_rule(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
def max_pool_vjp(layer: MaxPool, x: Interval, grad: Interval) -> Interval:
    """An entry receives its window's gradient surely where it beats all others, never where it is surely beaten."""
    index, slots = window_entries(layer, x)
    lower, upper = _seen(x.lower, index), _seen(x.upper, index)
    if x.is_point:
        # The first of equal entries wins, as in automatic differentiation.
        wins = F.one_hot(lower.argmax(-1), lower.shape[-1]).to(lower)
        share = Interval.point(wins)
    else:
        best = lower.amax(-1, keepdim=True)
        others = largest_of_others(upper)
        share = Interval((lower > others).to(lower), (upper >= best).to(lower))
    flat = (grad.map(lambda g: g.flatten(2).unsqueeze(-1))) * share

    def gathered(t: Tensor) -> Tensor:
        below = t.new_zeros((*t.shape[:2], slots + 1)).index_add(2, index.flatten(), t.flatten(2))
        return below[..., :slots].reshape(len(t), *x.shape[1:])

    below = flat.map(gathered)
    if rounding.active():
        slack = gathered(flat.magnitude) * rounding.kappa(index.shape[1], x.dtype)
        below = Interval(below.lower - slack, below.upper + slack)
    return below


@relaxation_rule(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, outward=True)
def max_pool_relaxation(layer: MaxPool, x: Interval) -> tuple[LinearBound, LinearBound]:
    """Below: the entry with the largest lower end. Above: that entry too where it surely wins, else a constant."""
    index, slots = window_entries(layer, x)
    lower, upper = _seen(x.lower, index), _seen(x.upper, index)
    best, choice = lower.max(-1)
    position = index.expand(*lower.shape[:2], *index.shape).gather(-1, choice.unsqueeze(-1)).squeeze(-1)
    sure = best > largest_of_others(upper).gather(-1, choice.unsqueeze(-1)).squeeze(-1)
    shape = layer.forward(x.lower).shape

    def chosen(coefficients: Tensor) -> Tensor:
        flat = coefficients.flatten(3)  # (batch or 1, rows, channels, windows)
        flat = flat.expand(len(x), *flat.shape[1:])
        below = flat.new_zeros((*flat.shape[:3], slots + 1))
        below = below.scatter_add(3, position.unsqueeze(1).expand(flat.shape), flat)
        return below[..., :slots].reshape(*flat.shape[:2], *x.shape[1:])

    zero = torch.zeros_like(best).reshape(shape)
    ceiling = torch.where(sure, torch.zeros_like(best), upper.amax(-1)).reshape(shape)
    keep = sure.to(best).reshape(shape)
    if rounding.active():  # for sums of the coefficients of windows that chose the same entry
        size = torch.maximum(best.abs(), upper.amax(-1).abs()).reshape(shape)
        room = rounding.once(index.shape[1], x.dtype) * size + rounding.underflow(index.shape[1], x.dtype)
        zero, ceiling = zero - room, ceiling + room
    return LinearBound(chosen, zero), LinearBound(lambda c: chosen(c * keep.unsqueeze(1)), ceiling)


def _softmax_of(own: Tensor, others: Tensor, dim: int) -> Tensor:
    """`sigmoid(own_i - logsumexp_{j != i} others_j)`."""
    return torch.sigmoid(lead(own.movedim(dim, -1), others.movedim(dim, -1))).movedim(-1, dim)


def lead(own: Tensor, others: Tensor) -> Tensor:
    """`own_i - logsumexp_{j != i} others_j` along the last axis.

    Subtracted first: what all scores share would otherwise be rounded with the logarithm, however large it is.
    """
    itself = torch.eye(own.shape[-1], dtype=torch.bool, device=own.device)
    return -(others.unsqueeze(-2) - own.unsqueeze(-1)).masked_fill(itself, -torch.inf).logsumexp(-1)


def window_entries(layer: MaxPool, x: Interval) -> tuple[Tensor, int]:
    """For each window its entries, (windows, kernel), as positions in the flattened image; and the image's size.

    The position after the last stands for padding.
    """
    sizes = tuple(x.shape[2:])
    dims = len(sizes)
    kernel, stride, padding, dilation = (
        tuple(v) if isinstance(v, tuple | list) else (v,) * dims
        for v in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    )
    outputs = tuple(layer.forward(torch.empty((1, 1, *sizes), dtype=x.dtype, device=x.device)).shape[2:])
    return _positions(sizes, kernel, stride, padding, dilation, outputs).to(x.device), prod(sizes)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # kept for callers that differentiate
def _positions(
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    outputs: tuple[int, ...],
) -> Tensor:
    rows, inside = torch.zeros((1, 1), dtype=torch.long), torch.ones((1, 1), dtype=torch.bool)
    for size, k, s, p, d, n in zip(sizes, kernel, stride, padding, dilation, outputs, strict=True):
        at = torch.arange(n).unsqueeze(1) * s - p + torch.arange(k) * d  # (windows, kernel) along this axis
        valid = (at >= 0) & (at < size)
        rows = (rows[:, None, :, None] * size + at[None, :, None, :]).reshape(len(rows) * n, -1)
        inside = (inside[:, None, :, None] & valid[None, :, None, :]).reshape(rows.shape)
    return torch.where(inside, rows, prod(sizes))


def _seen(x: Tensor, index: Tensor) -> Tensor:
    """The entries of every window, (batch, channels, windows, kernel); padding is minus infinity."""
    return F.pad(x.flatten(2), (0, 1), value=-torch.inf)[:, :, index]


def largest_of_others(upper: Tensor) -> Tensor:
    """For each entry of a window the largest of the others, minus infinity where there is none."""
    if upper.shape[-1] == 1:
        return torch.full_like(upper, -torch.inf)
    top = upper.topk(2, dim=-1)
    first = F.one_hot(top.indices[..., 0], upper.shape[-1]).bool()
    return torch.where(first, top.values[..., 1:], top.values[..., :1])
