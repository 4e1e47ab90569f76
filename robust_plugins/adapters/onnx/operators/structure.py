"""Operators that move, cut and join entries, or change nothing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robust_plugins.adapters.onnx.translation import Call, Translation, TranslationError, Value, translates


@translates("Identity", "Dropout")
def _identity(t: Translation, call: Call) -> Value:
    if call.operator == "Dropout":
        training = call.optional(2)
        if training is not None and bool(training):
            raise TranslationError("it is in training mode; export the model after model.eval()")
        if call.outputs > 1:
            raise TranslationError("its mask is a result too")
    return call.value()


@translates("Cast")
def _cast(t: Translation, call: Call) -> Value:
    """Between floating-point numbers of the same kind a cast changes nothing."""
    kinds = {1: torch.float32, 11: torch.float64}
    if kinds.get(int(call["to"])) is not t.dtype:
        raise TranslationError(f"a cast of what depends on the input to type {call['to']}, while it is {t.dtype}")
    return call.value()


@translates("Shape")
def _shape(t: Translation, call: Call) -> Tensor:
    shape = call.value().shape
    return torch.tensor(shape[call.get("start", 0) : call.get("end", len(shape))], dtype=torch.int64)


@translates("Size")
def _size(t: Translation, call: Call) -> Tensor:
    return torch.tensor(math.prod(call.value().shape))


@translates("Flatten")
def _flatten(t: Translation, call: Call) -> Value:
    x = call.value()
    axis = int(call.get("axis", 1))
    axis += len(x.shape) if axis < 0 else 0
    return t.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@translates("Reshape")
def _reshape(t: Translation, call: Call) -> Value:
    x, wanted = call.value(), call.integers("shape", 1) or []
    if not call.get("allowzero", 0):
        if any(n == 0 and i >= len(x.shape) for i, n in enumerate(wanted)):
            raise TranslationError(f"{x.shape} cannot be reshaped to {tuple(wanted)}")
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    if -1 in wanted:
        others = math.prod(n for n in wanted if n != -1)
        wanted = [math.prod(x.shape) // others if n == -1 and others else n for n in wanted]
    return t.reshape(x, wanted)


@translates("Squeeze")
def _squeeze(t: Translation, call: Call) -> Value:
    x, axes = call.value(), call.integers("axes", 1)
    gone = [i for i, n in enumerate(x.shape) if n == 1] if axes is None else [axis % len(x.shape) for axis in axes]
    return t.reshape(x, [n for i, n in enumerate(x.shape) if i not in gone])


@translates("Unsqueeze")
def _unsqueeze(t: Translation, call: Call) -> Value:
    x, axes = call.value(), call.integers("axes", 1) or []
    shape = list(x.shape)
    for axis in sorted(axis % (len(x.shape) + len(axes)) for axis in axes):
        shape.insert(axis, 1)
    return t.reshape(x, shape)


@translates("Transpose")
def _transpose(t: Translation, call: Call) -> Value:
    x = call.value()
    order = list(call.get("perm", range(len(x.shape) - 1, -1, -1)))
    shape = [x.shape[i] for i in order]
    if order[0] != 0:
        x = t.lift(x)
    dims = [0, *(i + 1 for i in order)] if x.lifted else order
    return x if dims == sorted(dims) else t.method("permute", x, *dims, shape=shape)


@translates("Concat")
def _concat(t: Translation, call: Call) -> Value:
    found = [v for v in call.inputs if v is not None]
    like = next(v for v in found if isinstance(v, Value))
    axis = int(call["axis"]) % len(like.shape)
    values = [v if isinstance(v, Value) else t.expanded(v, like) for v in found]
    if axis == 0 or any(v.lifted for v in values):
        values = [t.lift(v) for v in values]
    shape = list(like.shape)
    shape[axis] = sum(v.shape[axis] for v in values)
    node = t.graph.call_function(torch.cat, ([v.node for v in values], axis + values[0].lifted))
    return Value(node, tuple(shape), values[0].lifted)


@translates("Split")
def _split(t: Translation, call: Call) -> list[Value | Tensor]:
    x = call.value()
    axis = int(call.get("axis", 0)) % len(x.shape)
    sizes = call.integers("split", 1)
    if not sizes:
        parts = int(call.get("num_outputs", call.outputs))
        size = -(-x.shape[axis] // parts)
        sizes = [min(size, x.shape[axis] - i * size) for i in range(parts)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [t.part(x, axis, start, start + size) for start, size in zip(starts, sizes, strict=True)]


@translates("Slice")
def _slice(t: Translation, call: Call) -> Value:
    x = call.value()
    starts, ends = call.integers("starts", 1) or [], call.integers("ends", 2) or []
    axes = call.integers("axes", 3) or list(range(len(starts)))
    steps = (call.integers("steps", 4) if len(call.inputs) > 4 else None) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(x.shape)
        chosen = range(x.shape[axis])[start:end:step] if step > 0 else _backward(x.shape[axis], start, end, step)
        if not len(chosen):
            raise TranslationError("nothing is left of its input")
        if step == 1:
            if len(chosen) < x.shape[axis]:
                x = t.part(x, axis, chosen[0], chosen[-1] + 1)
        else:
            x = picked(t, x, axis, torch.tensor(list(chosen)))
    return x


def _backward(side: int, start: int, end: int, step: int) -> range:
    """The entries that ONNX means, whose ends before the beginning are large negative numbers."""
    start = min(start + side if start < 0 else start, side - 1)
    return range(start, -1 if end < -side else end + side if end < 0 else end, step)


def picked(t: Translation, x: Value, axis: int, index: Tensor) -> Value:
    """The entries at `index` along an axis of the file."""
    x, (dim,) = t.along(x, [axis])
    shape = [*x.shape[:axis], len(index), *x.shape[axis + 1 :]]
    return t.function(torch.index_select, x, dim, index, shape=shape)


@translates("Gather")
def _gather(t: Translation, call: Call) -> Value:
    if not isinstance(call.inputs[0], Value):
        raise TranslationError("it looks up a table at places that depend on the input")
    x, index = call.value(), call.constant(1).long()
    axis = int(call.get("axis", 0)) % len(x.shape)
    side = x.shape[axis]
    if bool(((index < -side) | (index >= side)).any()):
        raise TranslationError(f"an index lies outside the {side} entries of the axis")
    index = index % side
    one = index.numel() == 1
    found = t.part(x, axis, int(index), int(index) + 1) if one else picked(t, x, axis, index.reshape(-1))
    return t.reshape(found, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


@translates("Expand")
def _expand(t: Translation, call: Call) -> Value:
    x, wanted = call.value(), call.integers("shape", 1) or []
    shape = tuple(torch.broadcast_shapes(tuple(x.shape), tuple(wanted)))
    if shape == x.shape:
        return x
    x = t.lift(x)
    x = t.reshape(x, (1,) * (len(shape) - len(x.shape)) + x.shape)
    x = t.lift(x)
    return t.method("expand", x, -1, *shape, shape=shape)


@translates("Tile")
def _tile(t: Translation, call: Call) -> Value:
    x, counts = t.lift(call.value()), call.integers("repeats", 1) or []
    return t.method("repeat", x, 1, *counts, shape=[n * c for n, c in zip(x.shape, counts, strict=True)])


@translates("DepthToSpace")
def _depth_to_space(t: Translation, call: Call) -> Value:
    x, size, mode = t.lead(call.value()), int(call["blocksize"]), call.get("mode", b"DCR").decode()
    _, channels, height, width = x.shape
    inner = channels // size**2
    split: Any = (1, size, size, inner, height, width) if mode == "DCR" else (1, inner, size, size, height, width)
    order = (0, 3, 4, 1, 5, 2) if mode == "DCR" else (0, 1, 4, 2, 5, 3)
    moved = t.method("permute", t.reshape(x, split), *order, shape=[split[i] for i in order])
    return t.reshape(moved, (1, inner, height * size, width * size))
