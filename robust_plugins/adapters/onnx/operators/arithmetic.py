"""Arithmetic, entry by entry, and sums over axes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from robust_plugins.adapters.onnx.operators.linear import add_bias
from robust_plugins.adapters.onnx.translation import Call, Translation, TranslationError, Value, translates

_BINARY: dict[str, Callable[..., Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.truediv,
}  # fmt: skip
_UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Atan": torch.atan, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf,
    "Exp": torch.exp, "Floor": torch.floor, "Log": torch.log, "Neg": operator.neg, "Reciprocal": torch.reciprocal,
    "Round": torch.round, "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh, "Sqrt": torch.sqrt,
}  # fmt: skip


@translates(*_BINARY)
def _binary(t: Translation, call: Call) -> Value:
    a, b = _two(call)
    zero = isinstance(b, Tensor) and not b.any()  # as many a mean
    if zero and call.operator in ("Add", "Sub") and tuple(torch.broadcast_shapes(a.shape, b.shape)) == a.shape:
        return call.value()
    if call.operator == "Add":
        biased = add_bias(t, call)
        if biased is not None:
            return biased
        if isinstance(a, Tensor):
            a, b = b, a
    return t.binary(_BINARY[call.operator], a, b)


@translates(*_UNARY)
def _unary(t: Translation, call: Call) -> Value:
    return t.function(_UNARY[call.operator], call.value())


@translates("Pow")
def _power(t: Translation, call: Call) -> Value:
    x, exponent = call.value(), call.constant(1)
    if exponent.numel() != 1 or exponent.dim() > len(x.shape):
        raise TranslationError("its exponent must be one number")
    number = exponent.item()
    return t.function(operator.pow, x, int(number) if float(number).is_integer() else number)


@translates("Sum", "Mean", "Max", "Min")
def _several(t: Translation, call: Call) -> Value:
    values = [v for v in call.inputs if v is not None]
    functions = {"Max": torch.maximum, "Min": torch.minimum}
    function: Callable[..., Any] = functions.get(call.operator, operator.add)
    # Fixed ones last, so that what comes first depends on the input.
    values.sort(key=lambda v: isinstance(v, Tensor))
    result: Any = reduce(lambda a, b: _joined(t, function, a, b), values)
    return t.function(operator.truediv, result, float(len(values))) if call.operator == "Mean" else result


def _joined(t: Translation, function: Callable[..., Any], a: Any, b: Value | Tensor) -> Value:
    if function is not operator.add and isinstance(b, Tensor):
        if b.numel() == 1 and b.dim() <= len(a.shape):
            number = float(b)
            return t.function(torch.clamp, a, *((number, None) if function is torch.maximum else (None, number)))
        shape = torch.broadcast_shapes(tuple(a.shape), tuple(b.shape))
        return t.binary(function, a, b.expand(shape).clone())
    return t.binary(function, a, b)


def _two(call: Call) -> tuple[Value | Tensor, Value | Tensor]:
    a, b = call.inputs
    if a is None or b is None:
        raise TranslationError("it has one input only")
    return a, b


@translates("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
def _reduce(t: Translation, call: Call) -> Value:
    x, keep = call.value(), bool(call.get("keepdims", 1))
    axes = call.integers("axes", 1)
    if not axes:
        if call.get("noop_with_empty_axes", 0):
            return x
        axes = list(range(len(x.shape)))
    axes = sorted(axis % len(x.shape) for axis in axes)
    x, dims = t.along(x, axes)
    shape = [1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes]
    kind = call.operator.removeprefix("Reduce")
    if kind in ("L2", "SumSquare"):
        x = t.function(operator.pow, x, 2)
    elif kind == "L1":
        x = t.function(torch.abs, x)
    functions: dict[str, Callable[..., Any]] = {"Mean": torch.mean, "Max": torch.amax, "Min": torch.amin}
    found = t.function(functions.get(kind, torch.sum), x, tuple(dims), keepdim=keep, shape=shape)
    return t.function(torch.sqrt, found) if kind == "L2" else found


@translates("Where")
def _where(t: Translation, call: Call) -> Value:
    condition = call.constant(0).bool()
    chosen = [v for v in call.inputs[1:] if v is not None]
    shape = tuple(torch.broadcast_shapes(condition.shape, *(tuple(v.shape) for v in chosen)))
    args = [t.operand(v, len(shape), leading=False) for v in chosen]
    return Value(t.graph.call_function(torch.where, (t.buffer(condition), *args)), shape, True)
