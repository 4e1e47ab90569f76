"""Functional calls and tensor methods are turned into layers that have rules."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals.layers import (
    Add,
    Clamp,
    Permute,
    Reduce,
    Reshape,
    Scale,
    Shift,
    Step,
)
from robust_plugins.intervals.network.graph import Operand


@dataclass(frozen=True)
class Indexed:
    """An argument that depends on the model's input: the node that computes it, and an example of its value."""

    node: int
    like: Tensor = field(default_factory=lambda: torch.empty(0), compare=False)


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer of the model, by its path there; with `rows` a part of it."""

    path: str
    rows: slice | None = None


@dataclass(frozen=True, eq=False)
class Fixed:
    """A constant tensor that is no part of the model."""

    value: Tensor


@dataclass(frozen=True)
class Emit:
    """Adds a node and returns its index. Arguments are `Indexed`, numbers, or constant tensors of the traced code."""

    operand: Callable[[Any], Operand]
    add: Callable[[nn.Module, tuple[int, ...], Mapping[str, Operand]], int]
    constant: Callable[[fx.Node], Tensor]
    """The value of a tensor that does not depend on the input; of one that is the same for all samples, (1, ...)."""
    source: Callable[[int], nn.Module]
    """The layer that computes a node, where layers that change nothing do not count."""

    def __call__(self, layer: nn.Module, *inputs: Indexed | int, **constants: Any) -> int:
        """A node of `layer` with these inputs and constant parameters; None stands for a parameter not given."""
        if not all(isinstance(i, Indexed | int) and not isinstance(i, bool) for i in inputs):
            raise _ArgumentsError("its inputs must be tensors that depend on the model's input")
        nodes = tuple(i.node if isinstance(i, Indexed) else i for i in inputs)
        return self.add(layer, nodes, {k: self.operand(v) for k, v in constants.items() if v is not None})


Build = Callable[..., Any]
"""Called with `emit`, the call's arguments, and `like`, an example of its result; returns a node for each tensor."""


def build_call(
    node: fx.Node,
    emit: Emit,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    like: Any,
    place: str,
) -> int | tuple[int, ...]:
    """Adds the nodes that compute a functional call or a method and returns the index of the last, or of several.

    `like` is an example of its result. Raises UnsupportedModelError, naming `place`, for calls without a meaning here.
    """
    build = _build_of(node)
    if build is None:
        raise UnsupportedModelError(
            f"{place} has no interval rule; write it as a module and add one with the hook register_interval_rules"
        )
    try:
        found: int | tuple[int, ...] = build(emit, *args, like=like, **kwargs)
        return found
    except (_ArgumentsError, TypeError) as error:
        raise UnsupportedModelError(f"{place} is not supported with these arguments: {error}") from error


def check_dtype(sources: set[torch.dtype], result: torch.dtype, like: torch.dtype, place: str) -> None:
    """Raises UnsupportedModelError for a call that makes another floating-point dtype of its inputs, or integers.

    `like` is the dtype of the model's input, in which all bounds are computed. Truth values, and what is made of them,
    have the same values in every dtype.
    """
    floating = [dtype for dtype in sources if dtype.is_floating_point]
    if not floating or result in (torch.bool, like) or result in floating:
        return
    wider = result.is_floating_point and all(torch.promote_types(dtype, result) == result for dtype in floating)
    raise UnsupportedModelError(
        f"{place} makes {_name(result)} of {_name(floating[0])}, "
        + ("but bounds are computed in one dtype" if wider else "which rounds values or cuts them off")
        + "; convert the model and its inputs to one dtype beforehand"
    )


def reshapes(node: fx.Node) -> bool:
    """Whether a call changes the shape alone, so that the batch size may be among its arguments."""
    return _build_of(node) in _RESHAPING


def known_calls() -> tuple[frozenset[Any], frozenset[str]]:
    """The functions and the names of tensor methods that have a meaning here: what they return is their arguments'."""
    return frozenset(_FUNCTIONS), frozenset(_METHODS)


def _build_of(node: fx.Node) -> Build | None:
    return _METHODS.get(str(node.target)) if node.op == "call_method" else _FUNCTIONS.get(node.target)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _ArgumentsError(Exception):
    pass


_RESHAPING: set[Build] = set()
_FUNCTIONS: dict[Any, Build] = {}
_METHODS: dict[str, Build] = {}


def _means(*targets: Any) -> Callable[[Build], Build]:
    """Registers a meaning for functions, and by their name for methods of tensors."""

    def decorate(build: Build) -> Build:
        for target in targets:
            if isinstance(target, str):
                _METHODS[target] = build
            else:
                _FUNCTIONS[target] = build
        return build

    return decorate


def _module(make: Callable[..., nn.Module], *targets: Any) -> None:
    """A call that does what a module does; `make` takes the call's arguments after the first."""

    def build(emit: Emit, input: Any, *args: Any, like: Tensor, inplace: bool = False, **kwargs: Any) -> int:
        if not all(v is None or isinstance(v, int | float | str | tuple | list) for v in (*args, *kwargs.values())):
            raise _ArgumentsError("its options must be numbers")
        return emit(make(*args, **kwargs), input)

    _means(*targets)(build)


_module(nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
_module(nn.ReLU6, F.relu6)
_module(nn.LeakyReLU, F.leaky_relu, F.leaky_relu_)
_module(nn.ELU, F.elu, F.elu_)
_module(nn.Softplus, F.softplus)
_module(nn.GELU, F.gelu)
_module(nn.SiLU, F.silu)
_module(nn.Sigmoid, F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_")
_module(nn.Tanh, F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_")
_module(nn.Hardtanh, F.hardtanh, F.hardtanh_)
_module(nn.AvgPool1d, F.avg_pool1d, torch.avg_pool1d)
_module(nn.AvgPool2d, F.avg_pool2d)
_module(nn.AvgPool3d, F.avg_pool3d)
_module(nn.AdaptiveAvgPool1d, F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d)
_module(nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d)
_module(nn.AdaptiveAvgPool3d, F.adaptive_avg_pool3d)
_module(nn.Identity, torch.clone)


@_means("contiguous", "clone")
def _same(emit: Emit, input: Any, *_: Any, like: Tensor, **__: Any) -> int:
    return emit(nn.Identity(), input)


@_means("float", "double", "half", "bfloat16", "int", "long", "short", "char", "byte", "bool", "to", "type", "type_as")
def _cast(emit: Emit, input: Any, *_: Any, like: Tensor, **__: Any) -> int:
    if like.dtype is torch.bool:
        raise _ArgumentsError("compare with a number instead, as in h > 0")
    return emit(nn.Identity(), input)  # of the same dtype, or of truth values, which every other dtype has


@_means(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)
def _max_pool(
    emit: Emit, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False, *, like: Tensor,
) -> int:  # fmt: skip
    layer = {3: nn.MaxPool1d, 4: nn.MaxPool2d, 5: nn.MaxPool3d}[like.dim()]
    return emit(layer(kernel_size, stride, padding, dilation, return_indices, ceil_mode), input)


@_means(F.softmax, torch.softmax, "softmax")
def _softmax(
    emit: Emit, input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None, *, like: Tensor
) -> int:
    if dim is None or dtype is not None:
        raise _ArgumentsError("give softmax its dim, and no dtype")
    return emit(nn.Softmax(dim), input)


@_means(torch.clamp, torch.clip, "clamp", "clip", "clamp_")
def _clamp(emit: Emit, input: Any, min: Any = None, max: Any = None, *, like: Tensor) -> int:
    if not all(end is None or isinstance(end, int | float) for end in (min, max)):
        raise _ArgumentsError("its ends must be numbers")
    return emit(Clamp(min, max), input)


@_means(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
def _dropout(
    emit: Emit, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False, *, like: Tensor
) -> int:
    if training and p > 0:
        raise _ArgumentsError("it drops values in evaluation mode too; pass training=self.training")
    return emit(nn.Identity(), input)


@_means(F.linear)
def _linear(emit: Emit, input: Any, weight: Any, bias: Any = None, *, like: Tensor) -> int:
    return emit(nn.Linear(1, 1, device="meta"), input, weight=weight, bias=bias)


def _conv(dims: int) -> Build:
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]

    def build(
        emit: Emit, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1, *, like: Tensor,
    ) -> int:  # fmt: skip
        # The size of the kernel is the weight's; the layer only carries the strides and the padding.
        layer = kind(groups, groups, 1, stride, padding, dilation, groups, device="meta")
        return emit(layer, input, weight=weight, bias=bias)

    return build


_means(F.conv1d, torch.conv1d)(_conv(1))
_means(F.conv2d, torch.conv2d)(_conv(2))
_means(F.conv3d, torch.conv3d)(_conv(3))


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


def _reduce(mean: bool) -> Build:
    def build(emit: Emit, input: Any, dim: Any = None, keepdim: bool = False, *, like: Tensor) -> int:
        dims = (dim,) if isinstance(dim, int) else tuple(dim or ())
        if not dims:
            raise _ArgumentsError("give it its axes, without the batch")
        return emit(Reduce(dims, keepdim, mean), input)

    return build


_means(torch.mean, "mean")(_reduce(True))
_means(torch.sum, "sum")(_reduce(False))


@_means(operator.add, operator.iadd, torch.add, "add", "add_")
def _add(emit: Emit, input: Any, other: Any, *, like: Tensor) -> int:
    return _plus(emit, input, other, 1, like)


@_means(operator.sub, operator.isub, torch.sub, "sub", "sub_")
def _sub(emit: Emit, input: Any, other: Any, *, like: Tensor) -> int:
    return _plus(emit, input, other, -1, like)


def _plus(emit: Emit, x: Any, y: Any, sign: int, like: Tensor) -> int:
    if like.dtype is torch.bool:
        raise _ArgumentsError("truth values add up to truth values; write (h > 0).float()")
    if isinstance(x, Indexed) and isinstance(y, Indexed):
        return emit(Add(sign), x, y)
    if isinstance(x, Indexed):
        return emit(Shift(sign), x, value=y)
    return emit(Shift(), y if sign == 1 else emit(Scale(), y, value=-1.0), value=x)


@_means(operator.neg, torch.neg, "neg")
def _neg(emit: Emit, input: Any, *, like: Tensor) -> int:
    return emit(Scale(), input, value=-1.0)


def _compare(closed: bool, below: bool) -> Build:
    """`h > number` and its relatives; from below it is one less the step of the others."""

    def build(emit: Emit, input: Any, other: Any, *, like: Tensor) -> int:
        if not isinstance(input, Indexed) or not isinstance(other, int | float):
            raise _ArgumentsError("compare with a number")
        step = emit(Step(float(other), closed=closed != below), input)
        return emit(Shift(), emit(Scale(), step, value=-1.0), value=1.0) if below else step

    return build


_means(operator.gt, torch.gt, "gt")(_compare(closed=False, below=False))
_means(operator.ge, torch.ge, "ge")(_compare(closed=True, below=False))
_means(operator.lt, torch.lt, "lt")(_compare(closed=False, below=True))
_means(operator.le, torch.le, "le")(_compare(closed=True, below=True))
