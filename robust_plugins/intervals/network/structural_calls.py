"""Calls that move, repeat, join, cut or contract: turned into layers that have rules."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals.layers import (
    Cat,
    Choose,
    Constant,
    Contraction,
    Index,
    Moved,
    Permute,
    Product,
    Reshape,
    Scale,
    Shift,
    WeightedMean,
)
from robust_plugins.intervals.network.calls import (
    _FUNCTIONS,
    _RESHAPING,
    Build,
    Emit,
    Fixed,
    Indexed,
    _ArgumentsError,
    _means,
    _module,
    _permuted,
    _transpose,
)
from robust_plugins.intervals.rules.bilinear import ROW, matrix_product

LOWEST = -1e30
"""What minus infinity is taken for where a mask sets it: `exp` of it is zero in every precision."""


@_means(F.pad)
def _pad(emit: Emit, input: Any, pad: Any, mode: str = "constant", value: Any = None, *, like: Tensor) -> int:
    sides = tuple(pad)
    if mode == "constant" and len(sides) <= 6 and (value is None or isinstance(value, int | float)):
        kind = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)[max(1, len(sides) // 2) - 1]
        return emit(kind(sides, float(value or 0.0)), input)
    return emit(Moved(F.pad, sides, mode=mode, **({} if value is None else {"value": value})), input)


@_means(F.interpolate, F.upsample)
def _interpolate(
    emit: Emit, input: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None, recompute_scale_factor: bool | None = None, antialias: bool = False, *,
    like: Tensor,
) -> int:  # fmt: skip
    if antialias:
        raise _ArgumentsError("its weights are not known; leave antialias=False")
    return emit(nn.Upsample(size, scale_factor, mode, align_corners, recompute_scale_factor), input)


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
_module(nn.PixelShuffle, F.pixel_shuffle, torch.pixel_shuffle)
_module(nn.PixelUnshuffle, F.pixel_unshuffle, torch.pixel_unshuffle)
_module(nn.ChannelShuffle, F.channel_shuffle, torch.channel_shuffle)
_module(nn.Unfold, F.unfold)


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


@_means(torch.matmul, "matmul", operator.matmul, torch.bmm, "bmm", torch.mm, "mm")
def _matmul(emit: Emit, input: Any, other: Any, *, like: Tensor) -> int:
    if isinstance(input, Indexed) and isinstance(other, Indexed):
        return _product(emit, input, other, like)
    if isinstance(input, Indexed):
        equation = _times_constant(input.like, _known(emit, other).dim())
        return emit(Contraction(equation), _matching(emit, input, like), value=other)
    equation = _constant_times(other.like, _known(emit, input).dim())
    return emit(Contraction(equation), _matching(emit, other, like), value=input)


def _product(emit: Emit, x: Indexed, y: Indexed, like: Tensor) -> int:
    """The matrix product of two values that depend on the input; by softmax a weighted mean."""
    if not x.like.dim() == y.like.dim() == like.dim() > 2:
        raise _ArgumentsError("both factors must be matrices for each sample, with equally many axes")
    softmax = emit.source(x.node)
    weights = isinstance(softmax, nn.Softmax) and softmax.dim in (-1, like.dim() - 1)
    layer = WeightedMean() if weights else Product(matrix_product(like.dim()))
    return emit(layer, _matching(emit, x, like), _matching(emit, y, like))


@_means(F.scaled_dot_product_attention)
def _attention(
    emit: Emit, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False, *, like: Tensor,
) -> int:  # fmt: skip
    if dropout_p > 0 or enable_gqa:
        raise _ArgumentsError("leave dropout_p at 0 unless self.training, and enable_gqa=False")
    if not all(isinstance(t, Indexed) for t in (query, key, value)):
        raise _ArgumentsError("query, key and value must depend on the model's input")
    mask = None if attn_mask is None else _known(emit, attn_mask)
    if is_causal:
        mask = torch.ones(query.like.shape[-2], key.like.shape[-2], dtype=torch.bool).tril()
    factor = query.like.shape[-1] ** -0.5 if scale is None else scale
    return attended(emit, query, key, value, factor, mask)[0]


def attended(
    emit: Emit, query: Indexed, key: Indexed, value: Indexed, factor: float, mask: Tensor | None
) -> tuple[int, int]:
    """Nodes of `softmax(factor query key^T + mask) value`, and of its weights.

    A mask is true where a query may look, or is added; its rows are one, the same, for every sample.
    """
    turned = emit(Permute((*range(key.like.dim() - 2), key.like.dim() - 1, key.like.dim() - 2)), key)
    scores = query.like @ key.like.mT
    found = emit(Product(matrix_product(scores.dim())), query, turned)
    found = emit(Scale(), found, value=factor)
    if mask is not None:
        away = ~mask if mask.dtype is torch.bool else mask.isneginf()
        if bool(away.all(-1).any()):
            raise UnsupportedModelError(
                "attention with a query that may look nowhere is not supported, as its weights are 0/0; let each query "
                "look at itself, at least"
            )
        if mask.dtype is not torch.bool:
            found = emit(Shift(), found, value=Fixed(mask.masked_fill(away, 0.0)))
        if bool(away.any()):
            found = emit(Moved(_filled, away, LOWEST), found)
    weights = emit(nn.Softmax(-1), found)
    return emit(WeightedMean(), weights, value), weights


@_means(torch.addmm, "addmm", torch.baddbmm, "baddbmm")
def _addmm(emit: Emit, input: Any, one: Any, two: Any, *, like: Tensor) -> int:
    product = Indexed(_matmul(emit, one, two, like=like), like)
    return int(_FUNCTIONS[torch.add](emit, product, input, like=like))


@_means(torch.einsum)
def _einsum(emit: Emit, equation: str, *tensors: Any, like: Tensor) -> int:
    tensors = tuple(tensors[0]) if len(tensors) == 1 and isinstance(tensors[0], tuple | list) else tensors
    first, second, result = _letters(equation, len(tensors))
    x, value = tensors
    if not isinstance(x, Indexed):
        x, value, first, second = value, x, second, first
    if any(letter not in second + result for letter in first):
        raise _ArgumentsError("sum the axes of one tensor alone first, as in x.sum(2)")
    if isinstance(value, Indexed):
        if any(letter not in first + result for letter in second):
            raise _ArgumentsError("sum the axes of one tensor alone first, as in x.sum(2)")
        if not first[0] == second[0] == result[0] or ROW in equation:
            raise _ArgumentsError("the batch must be the first axis of both tensors and of the result")
        return emit(Product(f"{first},{second}->{result}"), x, value)
    return emit(Contraction(f"{first},{second}->{result}"), x, value=value)


@_means(F.layer_norm, torch.layer_norm)
def _layer_norm(
    emit: Emit, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    *_: Any, like: Tensor,
) -> int:  # fmt: skip
    layer = nn.LayerNorm(tuple(normalized_shape), eps, elementwise_affine=False)
    return emit(layer, input, weight=weight, bias=bias)


@_means(F.rms_norm, torch.rms_norm)
def _rms_norm(
    emit: Emit, input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None, *, like: Tensor
) -> int:
    return emit(nn.RMSNorm(tuple(normalized_shape), eps, elementwise_affine=False), input, weight=weight)


@_means(F.group_norm, torch.group_norm)
def _group_norm(
    emit: Emit, input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any,
    like: Tensor,
) -> int:  # fmt: skip
    return emit(nn.GroupNorm(num_groups, like.shape[1], eps, affine=False), input, weight=weight, bias=bias)


@_means(F.instance_norm)
def _instance_norm(
    emit: Emit, input: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5, *, like: Tensor,
) -> int:  # fmt: skip
    if not use_input_stats or running_mean is not None:
        raise _ArgumentsError(
            "write it as torch.nn.InstanceNorm1d, InstanceNorm2d or InstanceNorm3d, which knows its statistics"
        )
    kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[like.dim() - 3]
    return emit(kind(like.shape[1], eps), input, weight=weight, bias=bias)


@_means(F.log_softmax, torch.log_softmax, "log_softmax")
def _log_softmax(
    emit: Emit, input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None, *, like: Tensor
) -> int:
    if dim is None or dtype is not None:
        raise _ArgumentsError("give log_softmax its dim, and no dtype")
    return emit(nn.LogSoftmax(dim), input)


def _conv_transpose(dims: int) -> Build:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]

    def build(
        emit: Emit, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
        output_padding: Any = 0, groups: int = 1, dilation: Any = 1, *, like: Tensor,
    ) -> int:  # fmt: skip
        # The size of the kernel is the weight's; the layer only carries the strides and the padding.
        layer = kind(groups, groups, 1, stride, padding, output_padding, groups, True, dilation, device="meta")
        return emit(layer, input, weight=weight, bias=bias)

    return build


_means(F.conv_transpose1d, torch.conv_transpose1d)(_conv_transpose(1))
_means(F.conv_transpose2d, torch.conv_transpose2d)(_conv_transpose(2))
_means(F.conv_transpose3d, torch.conv_transpose3d)(_conv_transpose(3))


def _matching(emit: Emit, x: Indexed, like: Tensor) -> Any:
    """A factor of a matrix product, repeated along those outer axes on which the other one is longer."""
    outer = tuple(like.shape[1 : x.like.dim() - 2])
    if x.like.dim() != like.dim() or outer == tuple(x.like.shape[1:-2]):
        return x
    return emit(Moved(_expanded, (*outer, *x.like.shape[-2:])), x)


def _letters(equation: str, count: int) -> tuple[str, str, str]:
    """The axes of the two operands and of the result."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    both = inputs.split(",")
    if count != 2 or len(both) != 2 or not arrow or "." in equation or any(len(set(t)) < len(t) for t in both):
        raise _ArgumentsError("give it two tensors, as in 'bij,jk->bik', each axis by one letter")
    return both[0], both[1], result


def _times_constant(x: Tensor, rank: int) -> str:
    """The equation of `x @ constant`."""
    axes = "abcdefghijklmnopqrstuvwxy"[: x.dim()]
    if rank == 1:
        return f"{axes},{axes[-1]}->{axes[:-1]}"
    if rank - 2 > x.dim() - 2 or x.dim() < 2:
        raise _ArgumentsError("its constant has more axes than the value that depends on the input")
    outer = axes[:-2][x.dim() - rank :]
    return f"{axes},{outer}{axes[-1]}z->{axes[:-1]}z"


def _constant_times(x: Tensor, rank: int) -> str:
    """The equation of `constant @ x`."""
    axes = "abcdefghijklmnopqrstuvwxy"[: x.dim()]
    if x.dim() < 3 or rank > x.dim():
        raise _ArgumentsError("it sums over the batch; write h @ W, or (W @ h.unsqueeze(2)).squeeze(2)")
    if rank == 1:
        return f"{axes},{axes[-2]}->{axes[:-2]}{axes[-1]}"
    outer = axes[:-2][x.dim() - rank :]
    return f"{axes},{outer}z{axes[-2]}->{axes[:-2]}z{axes[-1]}"


def _dependent(emit: Emit, tensors: Any, shape: tuple[int, ...] | None = None) -> list[Any]:
    """All of them as nodes: a constant, of samples of `shape` or of its own, is one that takes any input."""
    anchor = next((t for t in tensors if isinstance(t, Indexed)), None)
    if anchor is None:
        raise _ArgumentsError("one of its tensors must depend on the input")
    return [t if isinstance(t, Indexed) else _constant(emit, anchor, t, shape) for t in tensors]


def _constant(emit: Emit, anchor: Indexed, source: Any, shape: tuple[int, ...] | None) -> int:
    if shape is None:
        value = _known(emit, source)
        if not value.dim() or len(value) != 1:
            raise _ArgumentsError("a constant must have one row, the same, for every sample")
        shape = tuple(value.shape[1:])
    return emit(Constant(shape), anchor, value=source)


def _known(emit: Emit, source: Any) -> Tensor:
    if not isinstance(source, fx.Node):
        raise _ArgumentsError("what it takes besides must be a constant tensor")
    return emit.constant(source)


def _samples(dims: Any, like: Tensor) -> tuple[int, ...]:
    """The axes, from 1 on. Raises where the batch is among them."""
    axes = tuple(d % like.dim() for d in dims)
    if 0 in axes:
        raise _ArgumentsError("the batch is axis 0; name axes of each sample")
    return axes


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
