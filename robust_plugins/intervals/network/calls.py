"""Functional calls and tensor methods are turned into layers that have rules: what all such meanings share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals.layers import Constant
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


def has_rule(node: fx.Node) -> bool:
    """Whether a functional call or a method means something here, for some arguments."""
    return _build_of(node) is not None


Part = int | str
"""The node for one of several tensors that a call returns, or why it has none."""

Build = Callable[..., Any]
"""Called with `emit`, the call's arguments, and `like`, an example of its result; returns a part for each tensor."""


def build_call(
    node: fx.Node,
    emit: Emit,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    like: Any,
    place: str,
) -> int | tuple[Part, ...]:
    """Adds the nodes that compute a functional call or a method and returns the index of the last, or of several.

    `like` is an example of its result. Raises UnsupportedModelError, naming `place`, for calls without a meaning here.
    """
    build = _build_of(node)
    if build is None:
        raise UnsupportedModelError(
            f"{place} has no interval rule; write it as a module and add one with the hook register_interval_rules"
        )
    try:
        found: int | tuple[Part, ...] = build(emit, *args, like=like, **kwargs)
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


def is_entrywise(node: fx.Node) -> bool:
    """Whether a call acts on each entry, or on pairs of entries, so that it does not matter which axis is the batch."""
    return _build_of(node) in _ENTRYWISE


def is_along_axes(node: fx.Node) -> bool:
    """Whether a call acts along the axes of its argument `dim`, which is its second, and on nothing else."""
    return _build_of(node) in _ALONG


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
_ENTRYWISE: set[Build] = set()
_ALONG: set[Build] = set()


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


def _module(make: Callable[..., nn.Module], *targets: Any) -> Build:
    """A call that does what a module does; `make` takes the call's arguments after the first."""

    def build(emit: Emit, input: Any, *args: Any, like: Tensor, inplace: bool = False, **kwargs: Any) -> int:
        if not all(v is None or isinstance(v, int | float | str | tuple | list) for v in (*args, *kwargs.values())):
            raise _ArgumentsError("its options must be numbers")
        return emit(make(*args, **kwargs), input)

    return _means(*targets)(build)


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
