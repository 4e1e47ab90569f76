"""`Translation`: what the translators of single operators write into, and how they see a tensor of the file.

A sample is one run of the file with one entry on its batch axis. torch has a batch of samples, so that a tensor of the
file comes in one of two forms: *leading*, where its first axis, which has the size one, is torch's batch, and *lifted*,
where all its axes come after torch's batch. Each form can be turned into the other.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn


class TranslationError(Exception):
    """An operator is used in a way that has no translation; the message says which."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor that depends on the input."""

    node: fx.Node
    shape: tuple[int, ...]
    """Its shape in the file, for one sample."""
    lifted: bool

    @property
    def sample(self) -> tuple[int, ...]:
        """Its shape in torch, without the batch."""
        return self.shape if self.lifted else self.shape[1:]


@dataclass(frozen=True)
class Call:
    """One node of the file."""

    operator: str
    name: str
    inputs: tuple[Value | Tensor | None, ...]
    attributes: dict[str, Any]
    outputs: int
    opset: int
    alone: bool
    """Whether nobody else reads the first input."""

    def __getitem__(self, attribute: str) -> Any:
        return self.attributes[attribute]

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute, or what the operator takes where it is not written."""
        return self.attributes.get(attribute, default)

    def value(self, index: int = 0) -> Value:
        """An input that depends on the model's input. Raises TranslationError where it does not."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(found, Value):
            return found
        raise TranslationError(f"input {index} should depend on the model's input, and is fixed")

    def constant(self, index: int) -> Tensor:
        """An input that is fixed. Raises TranslationError where it depends on the model's input or is missing."""
        found = self.optional(index)
        if found is None:
            raise TranslationError(f"input {index} is missing")
        return found

    def optional(self, index: int) -> Tensor | None:
        """A fixed input, or None where it is left out."""
        found = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(found, Value):
            raise TranslationError(f"input {index} depends on the model's input; only fixed ones are supported")
        return found

    def integers(self, attribute: str, index: int) -> list[int] | None:
        """Integers that older versions of the operator have as an attribute and newer ones as an input."""
        if attribute in self.attributes:
            found = self.attributes[attribute]
            return [found] if isinstance(found, int) else list(found)
        given = self.optional(index)
        return None if given is None else [int(i) for i in given.reshape(-1).tolist()]


class Translation:
    """A torch.fx graph under construction, with the layers and constants that it refers to."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.graph = fx.Graph()
        self.root = nn.Module()
        self._names: dict[str, int] = {}

    def layer(self, layer: nn.Module, value: Value, shape: Sequence[int] | None = None) -> Value:
        """The result of a layer, which has the form of its input, and its shape unless another is given."""
        name = self._name(type(layer).__name__.lower())
        self.root.add_module(name, layer)
        return self._like(self.graph.call_module(name, (value.node,)), value, shape)

    def function(
        self, function: Callable[..., Any], value: Value, /, *args: Any, shape: Any = None, **kwargs: Any
    ) -> Value:
        """`function(value, *args, **kwargs)`; tensors among the arguments become buffers."""
        args = tuple(self._argument(a) for a in args)
        return self._like(self.graph.call_function(function, (value.node, *args), kwargs), value, shape)

    def method(self, name: str, value: Value, /, *args: Any, shape: Any = None) -> Value:
        """`value.name(*args)`."""
        args = tuple(self._argument(a) for a in args)
        return self._like(self.graph.call_method(name, (value.node, *args)), value, shape)

    def buffer(self, value: Tensor) -> fx.Node:
        """A constant, as a buffer of the model."""
        name = self._name("constant")
        self.root.register_buffer(name, value.contiguous())
        return self.graph.get_attr(name)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.buffer(value)
        return value.node if isinstance(value, Value) else value

    def _like(self, node: fx.Node, value: Value, shape: Sequence[int] | None) -> Value:
        return Value(node, value.shape if shape is None else tuple(shape), value.lifted)

    def _name(self, stem: str) -> str:
        count = self._names[stem] = self._names.get(stem, 0) + 1
        return f"{stem}{count}"

    def lift(self, value: Value) -> Value:
        """The value with all its axes behind the batch."""
        if value.lifted:
            return value
        return Value(self.graph.call_method("unsqueeze", (value.node, 1)), value.shape, True)

    def lead(self, value: Value) -> Value:
        """The value with its first axis as the batch. Raises TranslationError where that has not the size one."""
        if not value.lifted:
            return value
        if not value.shape or value.shape[0] != 1:
            raise TranslationError(
                f"the batch, the first axis of {value.shape}, must have the size 1 for this operator"
            )
        return Value(self.graph.call_method("squeeze", (value.node, 1)), value.shape, False)

    def along(self, value: Value, axes: Sequence[int]) -> tuple[Value, list[int]]:
        """The value in a form that has `axes` of the file behind the batch, and where they are in torch."""
        axes = [axis + len(value.shape) if axis < 0 else axis for axis in axes]
        if any(not 0 <= axis < len(value.shape) for axis in axes):
            raise TranslationError(f"an axis is outside a tensor of shape {value.shape}")
        if 0 in axes:
            value = self.lift(value)
        return value, [axis + value.lifted for axis in axes]

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """The entries of each sample in another shape of the file."""
        shape = tuple(shape)
        if math.prod(shape) != math.prod(value.shape):
            raise TranslationError(f"{value.shape} cannot be reshaped to {shape}")
        lifted = len(shape) < 2 or shape[0] != 1
        sample = shape if lifted else shape[1:]
        if sample == value.sample:
            return Value(value.node, shape, lifted)
        if len(sample) == 1 and value.sample:  # flattening needs an axis
            flat = self.layer(nn.Flatten(), value)
            return Value(flat.node, shape, lifted)
        return Value(self.graph.call_method("reshape", (value.node, -1, *sample)), shape, lifted)

    def expanded(self, constant: Tensor, like: Value) -> Value:
        """A constant of the file as a lifted value: the same for every sample of the batch that `like` has."""
        size = self.graph.call_method("size", (like.node, 0))
        node = self.graph.call_method("expand", (self.buffer(constant), size, *constant.shape))
        return Value(node, tuple(constant.shape), True)

    def binary(self, function: Callable[..., Any], a: Value | Tensor, b: Value | Tensor) -> Value:
        """`function(a, b)` entry by entry, broadcast by the rules of the file, which are those of torch."""
        shapes = tuple(a.shape), tuple(b.shape)
        try:
            shape = tuple(torch.broadcast_shapes(*shapes))
        except RuntimeError:
            raise TranslationError(f"shapes {shapes[0]} and {shapes[1]} do not fit together") from None
        alike = len(shapes[0]) == len(shapes[1]) and all(isinstance(v, Value) and not v.lifted for v in (a, b))
        values = [v for v in (a, b) if isinstance(v, Value)]
        constants = [v for v in (a, b) if not isinstance(v, Value)]
        fits = all(c.dim() < len(shape) or c.shape[0] == 1 for c in constants)
        leading = alike or (bool(constants) and fits and not values[0].lifted and len(values[0].shape) == len(shape))
        args = [self.operand(v, len(shape), leading=leading) for v in (a, b)]
        return Value(self.graph.call_function(function, tuple(args)), shape, not leading)

    def operand(self, value: Value | Tensor, rank: int, *, leading: bool) -> Any:
        """An argument of a call that broadcasts to `rank` axes of the file, its batch the first of them or before."""
        if isinstance(value, Value):
            if leading:
                return value.node
            value = self.lift(value)
            missing = rank - len(value.shape)
            if missing:
                sample = (1,) * missing + value.shape
                return self.graph.call_method("reshape", (value.node, -1, *sample))
            return value.node
        if value.numel() == 1 and value.is_floating_point():
            return value.item()
        return self.buffer(value[0] if leading and value.dim() == rank else value)

    def part(self, value: Value, axis: int, start: int, stop: int) -> Value:
        """The entries `start` to `stop` along an axis of the file."""
        value, (dim,) = self.along(value, [axis])
        shape = list(value.shape)
        shape[axis] = stop - start
        index = (slice(None),) * dim + (slice(start, stop),)
        return Value(self.graph.call_function(operator.getitem, (value.node, index)), tuple(shape), value.lifted)


Translator = Callable[[Translation, Call], "Value | Tensor | list[Value | Tensor]"]
"""Translates one operator."""

TRANSLATORS: dict[str, Translator] = {}
"""By the operator's name."""


def translates(*operators: str) -> Callable[[Translator], Translator]:
    """Registers the translator of these operators of the standard domain."""

    def register(translator: Translator) -> Translator:
        TRANSLATORS.update(dict.fromkeys(operators, translator))
        return translator

    return register
