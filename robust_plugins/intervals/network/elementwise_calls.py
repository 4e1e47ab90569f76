"""Calls that act on each entry, or on pairs of entries: turned into layers that have rules."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.intervals.layers import Add, Extreme, Multiply, Pointwise, Power, Scale, Shift
from robust_plugins.intervals.network.calls import Build, Emit, Indexed, _ArgumentsError, _means, _module
from robust_plugins.intervals.network.structural_calls import _dependent

_module(nn.SELU, F.selu, F.selu_, torch.selu, torch.selu_)
_module(nn.CELU, F.celu, F.celu_, torch.celu, torch.celu_)
_module(nn.Mish, F.mish)
_module(nn.Hardswish, F.hardswish)
_module(nn.Hardsigmoid, F.hardsigmoid)
_module(nn.Softsign, F.softsign)
_module(nn.Tanhshrink, F.tanhshrink)
_module(nn.Softshrink, F.softshrink)
_module(nn.Hardshrink, F.hardshrink, torch.hardshrink, "hardshrink")
_module(nn.LogSigmoid, F.logsigmoid)
_module(nn.Threshold, F.threshold, torch.threshold, torch.threshold_)
_module(nn.Sigmoid, torch.special.expit)


@_means(F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_)
def _rrelu(
    emit: Emit, input: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False,
    *, like: Tensor,
) -> int:  # fmt: skip
    if training:
        raise _ArgumentsError("it draws slopes in evaluation mode too; pass training=self.training")
    return emit(nn.RReLU(lower, upper), input)


@_means(F.prelu, torch.prelu, "prelu")
def _prelu(emit: Emit, input: Any, weight: Any, *, like: Tensor) -> int:
    return emit(nn.PReLU(device="meta"), input, weight=weight)


@_means(F.glu)
def _glu(emit: Emit, input: Any, dim: int = -1, *, like: Tensor) -> int:
    raise _ArgumentsError("write it as a * torch.sigmoid(b) with a, b = x.chunk(2, dim)")


def _pointwise(name: str) -> Build:
    def build(emit: Emit, input: Any, *, like: Tensor) -> int:
        return emit(Pointwise(name), input)

    return build


_ALIASES = {"abs": ("absolute",), "trunc": ("fix",), "atan": ("arctan",)}
for _name in (
    "abs", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "sin", "cos", "erf", "atan", "sinh", "cosh", "sign",
    "floor", "ceil", "trunc",
):  # fmt: skip
    for _spelling in (_name, *_ALIASES.get(_name, ())):
        _targets = [getattr(torch, _spelling), _spelling, f"{_spelling}_"]
        if hasattr(torch, f"{_spelling}_"):
            _targets.append(getattr(torch, f"{_spelling}_"))
        _means(*_targets)(_pointwise(_name))
_means(operator.abs)(_pointwise("abs"))


@_means(torch.round, "round", "round_")
def _round(emit: Emit, input: Any, *, decimals: int = 0, like: Tensor) -> int:
    if decimals:
        raise _ArgumentsError("round to whole numbers, of h scaled beforehand")
    return emit(Pointwise("round"), input)


@_means(torch.reciprocal, "reciprocal", "reciprocal_")
def _reciprocal(emit: Emit, input: Any, *, like: Tensor) -> int:
    return emit(Pointwise("reciprocal"), input)


@_means(torch.square, "square", "square_")
def _square(emit: Emit, input: Any, *, like: Tensor) -> int:
    return emit(Power(2.0), input)


@_means(operator.pow, operator.ipow, torch.pow, "pow", "pow_")
def _pow(emit: Emit, input: Any, exponent: Any, *, like: Tensor) -> int:
    if isinstance(input, int | float) and isinstance(exponent, Indexed):
        if not input > 0:
            raise _ArgumentsError("the base of a power of h must be above 0")
        return emit(Pointwise("exp"), emit(Scale(), exponent, value=math.log(input)))
    if not isinstance(input, Indexed) or not isinstance(exponent, int | float):
        raise _ArgumentsError("the exponent must be a number, or the base one")
    return emit(Power(float(exponent)), input)


@_means(operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply", "multiply_")
def _mul(emit: Emit, input: Any, other: Any, *, like: Tensor) -> int:
    if isinstance(input, Indexed) and isinstance(other, Indexed):
        return emit(Power(2.0), input) if input.node == other.node else emit(Multiply(), input, other)
    x, value = (input, other) if isinstance(input, Indexed) else (other, input)
    return emit(Scale(), x, value=value)


@_means(
    operator.truediv, operator.itruediv, torch.div, torch.true_divide, torch.divide, "div", "div_", "true_divide",
    "divide", "divide_",
)  # fmt: skip
def _div(emit: Emit, input: Any, other: Any, *, rounding_mode: str | None = None, like: Tensor) -> int:
    if rounding_mode is not None:
        raise _ArgumentsError("divide first, and round the quotient with torch.floor or torch.trunc")
    if not isinstance(other, Indexed):
        return emit(Scale(divide=True), input, value=other)
    inverse = emit(Pointwise("reciprocal"), other)
    if isinstance(input, Indexed):
        return emit(Multiply(), input, inverse)
    return inverse if isinstance(input, int | float) and input == 1 else emit(Scale(), inverse, value=input)


def _extreme(least: bool) -> Build:
    def build(emit: Emit, input: Any, other: Any = None, *, like: Any, **options: Any) -> int:
        if not isinstance(like, Tensor) or isinstance(other, int | None) or options:
            raise _ArgumentsError("take it of two tensors, or of an axis as h.amax(dim) and h.amin(dim)")
        return emit(Extreme(least=least), *_dependent(emit, (input, other), tuple(like.shape[1:])))

    return build


_means(torch.maximum, "maximum", torch.max, "max")(_extreme(least=False))
_means(torch.minimum, "minimum", torch.min, "min")(_extreme(least=True))


@_means(torch.addcmul, "addcmul", "addcmul_")
def _addcmul(emit: Emit, input: Any, one: Any, two: Any, *, value: float = 1, like: Tensor) -> int:
    if not all(isinstance(i, Indexed) for i in (input, one, two)):
        raise _ArgumentsError("write it as h + a * b")
    product = _mul(emit, one, two, like=like)
    return emit(Add(), input, product if value == 1 else emit(Scale(), product, value=value))


@_means(torch.addcdiv, "addcdiv", "addcdiv_")
def _addcdiv(emit: Emit, input: Any, one: Any, two: Any, *, value: float = 1, like: Tensor) -> int:
    if not all(isinstance(i, Indexed) for i in (input, one, two)):
        raise _ArgumentsError("write it as h + a / b")
    quotient = _div(emit, one, two, like=like)
    return emit(Add(), input, quotient if value == 1 else emit(Scale(), quotient, value=value))


@_means(torch.rsub, "rsub")
def _rsub(emit: Emit, input: Any, other: Any, *, alpha: float = 1, like: Tensor) -> int:
    if isinstance(other, Indexed) or alpha != 1:
        raise _ArgumentsError("write it as a - b")
    return emit(Shift(), emit(Scale(), input, value=-1.0), value=other)
