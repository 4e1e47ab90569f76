"""Calls that put values in order, or take some by their place in it: turned into a layer that has rules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robust_plugins.intervals.layers import Largest, Ranked, Reshape
from robust_plugins.intervals.network.calls import Emit, Indexed, Part, _ArgumentsError, _means
from robust_plugins.intervals.network.reducing_calls import PLACES, _axes


@_means(torch.sort, "sort")
def _sort(
    emit: Emit, input: Any, dim: int = -1, descending: bool = False, stable: bool | None = None, *, like: Any
) -> tuple[Part, ...]:
    (axis,) = _axes(input, dim)
    order = range(input.like.shape[axis])
    return emit(Ranked(axis, tuple(reversed(order) if descending else order)), input), PLACES


@_means(torch.topk, "topk")
def _topk(
    emit: Emit, input: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True, *, like: Any
) -> tuple[Part, ...]:
    if not sorted:
        raise _ArgumentsError("leave sorted=True, as without it their order is not known")
    (axis,) = _axes(input, dim)
    n = input.like.shape[axis]
    return emit(Ranked(axis, tuple(range(n - 1, n - 1 - k, -1)) if largest else tuple(range(k))), input), PLACES


@_means(torch.kthvalue, "kthvalue")
def _kthvalue(emit: Emit, input: Any, k: int, dim: int = -1, keepdim: bool = False, *, like: Any) -> tuple[Part, ...]:
    return _at_place(emit, input, dim, k - 1, like[0]), PLACES


@_means(torch.median, "median")
def _median(emit: Emit, input: Any, dim: Any = None, keepdim: bool = False, *, like: Any) -> tuple[Part, ...]:
    (axis,) = _axes(input, dim)
    return _at_place(emit, input, axis, (input.like.shape[axis] - 1) // 2, like[0]), PLACES


def _at_place(emit: Emit, input: Indexed, dim: int, place: int, like: Tensor) -> int:
    (axis,) = _axes(input, dim)
    return emit(Reshape(tuple(like.shape[1:])), emit(Ranked(axis, (place,)), input))


@_means(torch.aminmax, "aminmax")
def _aminmax(emit: Emit, input: Any, *, dim: Any = None, keepdim: bool = False, like: Any) -> tuple[Part, ...]:
    axes = _axes(input, dim)
    return emit(Largest(axes, keepdim, least=True), input), emit(Largest(axes, keepdim), input)
