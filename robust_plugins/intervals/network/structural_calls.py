"""Calls that move, repeat, join or cut: turned into layers that have rules."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from robust_plugins.intervals.layers import (
    Cat,
    Choose,
    Index,
    Moved,
    Permute,
    Reshape,
)
from robust_plugins.intervals.network.calls import (
    _RESHAPING,
    Emit,
    Indexed,
    _ArgumentsError,
    _dependent,
    _known,
    _means,
    _samples,
)


@_means(
    torch.flatten, "flatten", torch.reshape, "reshape", "view", "unflatten", torch.squeeze, "squeeze", torch.unsqueeze,
    "unsqueeze", "view_as", "reshape_as",
)  # fmt: skip
def _reshape(emit: Emit, input: Any, *_: Any, like: Tensor, **__: Any) -> int:
    return emit(Reshape(tuple(like.shape[1:])), input)  # the batch was checked to stay axis 0


_RESHAPING.add(_reshape)


@_means(torch.permute, "permute")
def _permute(emit: Emit, input: Any, *dims: Any, like: Tensor) -> int:
    order = tuple(d % like.dim() for d in (dims[0] if isinstance(dims[0], tuple | list) else dims))
    return _permuted(emit, input, order)


@_means(torch.transpose, "transpose")
def _transpose(emit: Emit, input: Any, dim0: int, dim1: int, *, like: Tensor) -> int:
    order = list(range(like.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _permuted(emit, input, tuple(order))


def _permuted(emit: Emit, input: Any, order: tuple[int, ...]) -> int:
    if order[0] != 0:
        raise _ArgumentsError("the batch must stay axis 0")
    return emit(Permute(order), input)


LOWEST = -1e30
"""What minus infinity is taken for where a mask sets it: `exp` of it is zero in every precision."""


@_means(F.pad)
def _pad(emit: Emit, input: Any, pad: Any, mode: str = "constant", value: Any = None, *, like: Tensor) -> int:
    sides = tuple(pad)
    if mode == "constant" and len(sides) <= 6 and (value is None or isinstance(value, int | float)):
        kind = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)[max(1, len(sides) // 2) - 1]
        return emit(kind(sides, float(value or 0.0)), input)
    return emit(Moved(F.pad, sides, mode=mode, **({} if value is None else {"value": value})), input)


@_means(torch.flip, "flip", torch.fliplr, "fliplr")
def _flip(emit: Emit, input: Any, *dims: Any, like: Tensor) -> int:
    axes = dims[0] if dims and isinstance(dims[0], tuple | list) else dims or (1,)
    return emit(Moved(torch.flip, _samples(axes, like)), input)


@_means(torch.roll, "roll")
def _roll(emit: Emit, input: Any, shifts: Any, dims: Any = None, *, like: Tensor) -> int:
    axes = () if dims is None else (dims,) if isinstance(dims, int) else tuple(dims)
    shifts = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    if not axes:
        raise _ArgumentsError("give it its dims, without the batch")
    return emit(Moved(torch.roll, shifts, _samples(axes, like)), input)


@_means("expand", "expand_as", torch.broadcast_to, "broadcast_to")
def _expand(emit: Emit, input: Any, *_: Any, like: Tensor, **__: Any) -> int:
    return emit(Moved(_expanded, tuple(like.shape[1:])), input)


_RESHAPING.add(_expand)


@_means("repeat", torch.tile, "tile")
def _repeat(emit: Emit, input: Any, *counts: Any, like: Tensor, **dims: Any) -> int:
    given = dims.get("dims", counts[0] if counts and isinstance(counts[0], tuple | list) else counts)
    return emit(Moved(torch.tile, tuple(given)), input)


@_means(torch.repeat_interleave, "repeat_interleave")
def _repeat_interleave(emit: Emit, input: Any, repeats: Any, dim: Any = None, *, like: Tensor) -> int:
    if not isinstance(repeats, int) or dim is None:
        raise _ArgumentsError("give it a number, and its dim")
    return emit(Moved(torch.repeat_interleave, repeats, *_samples((dim,), like)), input)


@_means("unfold")
def _unfold(emit: Emit, input: Any, dimension: int, size: int, step: int, *, like: Tensor) -> int:
    return emit(Moved(Tensor.unfold, *_samples((dimension,), input.like), size, step), input)


@_means(torch.rot90, "rot90")
def _rot90(emit: Emit, input: Any, k: int = 1, dims: Any = (0, 1), *, like: Tensor) -> int:
    return emit(Moved(torch.rot90, k, _samples(dims, like)), input)


@_means(torch.diagonal, "diagonal")
def _diagonal(emit: Emit, input: Any, offset: int = 0, dim1: int = 0, dim2: int = 1, *, like: Tensor) -> int:
    return emit(Moved(torch.diagonal, offset, *_samples((dim1, dim2), input.like)), input)


@_means(torch.tril, "tril")
def _tril(emit: Emit, input: Any, diagonal: int = 0, *, like: Tensor) -> int:
    return emit(Moved(torch.tril, diagonal), _of_matrices(input))


@_means(torch.triu, "triu")
def _triu(emit: Emit, input: Any, diagonal: int = 0, *, like: Tensor) -> int:
    return emit(Moved(torch.triu, diagonal), _of_matrices(input))


def _of_matrices(input: Indexed) -> Indexed:
    if input.like.dim() < 3:
        raise _ArgumentsError("each sample must be a matrix")
    return input


@_means(torch.index_select, "index_select")
def _index_select(emit: Emit, input: Any, dim: int, index: Any, *, like: Tensor) -> int:
    (axis,) = _samples((dim,), like)
    return emit(Moved(torch.index_select, axis, _known(emit, index)), input)


@_means(torch.narrow, "narrow")
def _narrow(emit: Emit, input: Any, dim: int, start: int, length: int, *, like: Tensor) -> int:
    (axis,) = _samples((dim,), like)
    return emit(_cut(axis, slice(start, start + length)), input)


@_means(torch.select, "select")
def _select(emit: Emit, input: Any, dim: int, index: int, *, like: Tensor) -> int:
    (axis,) = _samples((dim,), input.like)
    return emit(_cut(axis, index), input)


_means(torch.swapaxes, "swapaxes", torch.swapdims, "swapdims")(_transpose)


@_means(torch.hstack)
def _hstack(emit: Emit, tensors: Any, *, like: Tensor) -> int:
    return int(_cat(emit, tensors, 1, like=like))


@_means(torch.movedim, "movedim", torch.moveaxis, "moveaxis")
def _movedim(emit: Emit, input: Any, source: Any, destination: Any, *, like: Tensor) -> int:
    order = torch.empty(tuple(range(1, like.dim() + 1)), device="meta").movedim(source, destination)
    return _permuted(emit, input, tuple(n - 1 for n in order.shape))


@_means(getattr)
def _attribute(emit: Emit, input: Any, name: str, *, like: Tensor) -> int:
    if name != "mT":
        raise _ArgumentsError(f"what {name!r} gives is not known; use a function of torch")
    order = list(range(like.dim()))
    order[-1], order[-2] = order[-2], order[-1]
    return _permuted(emit, input, tuple(order))


@_means(operator.getitem)
def _index(emit: Emit, input: Any, index: Any, *, like: Tensor) -> int:
    index = index if isinstance(index, tuple) else (index,)
    if index[0] is Ellipsis:
        index = (slice(None), *index)
    simple = all(i is None or i is Ellipsis or isinstance(i, int | slice) for i in index)
    if index[0] != slice(None) or not all(
        i is None or i is Ellipsis or isinstance(i, int | slice | list | fx.Node) for i in index
    ):
        raise _ArgumentsError("index as x[:, ...], with integers, slices, and lists or constant tensors of integers")
    rest = tuple(_known(emit, i) if isinstance(i, fx.Node) else i for i in index[1:])
    return emit(Index(rest) if simple else Moved(_at, rest), input)


def _parts(emit: Emit, input: Indexed, like: Any, dim: int) -> tuple[int, ...]:
    """A node for each of several slices along an axis, whose sizes are those of the examples."""
    (axis,) = _samples((dim,), input.like)
    found, start = [], 0
    for part in like:
        found.append(emit(_cut(axis, slice(start, start + part.shape[axis])), input))
        start += part.shape[axis]
    return tuple(found)


@_means(torch.chunk, "chunk", torch.split, "split", torch.split_with_sizes, "split_with_sizes")
def _split(emit: Emit, input: Any, size: Any = None, dim: int = 0, *, like: Any, **_: Any) -> tuple[int, ...]:
    return _parts(emit, input, like, dim)


@_means(torch.tensor_split, "tensor_split")
def _tensor_split(emit: Emit, input: Any, at: Any, dim: int = 0, *, like: Any) -> tuple[int, ...]:
    return _parts(emit, input, like, dim)


@_means(torch.unbind, "unbind")
def _unbind(emit: Emit, input: Any, dim: int = 0, *, like: Any) -> tuple[int, ...]:
    (axis,) = _samples((dim,), input.like)
    return tuple(emit(_cut(axis, index), input) for index in range(len(like)))


@_means(torch.cat, torch.concat)
def _cat(emit: Emit, tensors: Any, dim: int = 0, *, like: Tensor) -> int:
    if dim % like.dim() == 0:
        raise _ArgumentsError("join along another axis than the batch")
    return emit(Cat(dim % like.dim()), *_dependent(emit, tensors))


@_means(torch.stack)
def _stack(emit: Emit, tensors: Any, dim: int = 0, *, like: Tensor) -> int:
    axis = dim % like.dim()
    if axis == 0:
        raise _ArgumentsError("stack along another axis than the batch")
    shape = (*like.shape[1:axis], 1, *like.shape[axis + 1 :])
    return emit(Cat(axis), *(emit(Reshape(shape), t) for t in _dependent(emit, tensors)))


@_means(torch.where)
def _where(emit: Emit, condition: Any, input: Any, other: Any, *, like: Tensor) -> int:
    if not isinstance(condition, fx.Node):
        raise _ArgumentsError("its condition must not depend on the input; write (h > 0).float() * a + ... instead")
    chosen = _known(emit, condition).bool()
    for value, rest, mask in ((input, other, chosen), (other, input, ~chosen)):
        if isinstance(value, int | float):
            return emit(Moved(_filled, mask, _finite(value)), rest)
    return emit(Choose(chosen), *_dependent(emit, (input, other), tuple(like.shape[1:])))


@_means(torch.masked_fill, "masked_fill", "masked_fill_")
def _masked_fill(emit: Emit, input: Any, mask: Any, value: Any, *, like: Tensor) -> int:
    if isinstance(value, fx.Node):
        value = float(_known(emit, value))
    return emit(Moved(_filled, _known(emit, mask).bool(), _finite(value)), input)


def _cut(axis: int, index: int | slice) -> Index:
    return Index((*(slice(None),) * (axis - 1), index))


def _finite(value: Any) -> float:
    if not isinstance(value, int | float):
        raise _ArgumentsError("it must be filled with a number")
    return max(float(value), LOWEST)


def _expanded(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.expand(len(x), *shape)


def _filled(x: Tensor, mask: Tensor, value: float) -> Tensor:
    return torch.where(mask, value, x)


def _at(x: Tensor, index: tuple[Any, ...]) -> Tensor:
    return x[(slice(None), *index)]
