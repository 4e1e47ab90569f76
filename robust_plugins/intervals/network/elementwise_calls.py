"""Calls that act on each entry, or on pairs of entries: turned into layers that have rules."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.intervals.layers import (
    Add,
    Clamp,
    Extreme,
    Multiply,
    Pointwise,
    Power,
    Scale,
    Shift,
    Step,
)
from robust_plugins.intervals.network.calls import (
    _ENTRYWISE,
    Build,
    Emit,
    Indexed,
    _ArgumentsError,
    _dependent,
    _means,
    _module,
    _samples,
)
from robust_plugins.intervals.network.structural_calls import _cut


def _entrywise(*targets: Any) -> Callable[[Build], Build]:
    """Registers a meaning of calls for which it does not matter which axis is the batch."""

    def decorate(build: Build) -> Build:
        _ENTRYWISE.add(build)
        return _means(*targets)(build)

    return decorate


def _activation(make: Callable[..., nn.Module], *targets: Any) -> None:
    _ENTRYWISE.add(_module(make, *targets))


_activation(nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
_activation(nn.ReLU6, F.relu6)
_activation(nn.LeakyReLU, F.leaky_relu, F.leaky_relu_)
_activation(nn.ELU, F.elu, F.elu_)
_activation(nn.Softplus, F.softplus)
_activation(nn.GELU, F.gelu)
_activation(nn.SiLU, F.silu)
_activation(nn.Sigmoid, F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_")
_activation(nn.Tanh, F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_")
_activation(nn.Hardtanh, F.hardtanh, F.hardtanh_)
_activation(nn.SELU, F.selu, F.selu_, torch.selu, torch.selu_)
_activation(nn.CELU, F.celu, F.celu_, torch.celu, torch.celu_)
_activation(nn.Mish, F.mish)
_activation(nn.Hardswish, F.hardswish)
_activation(nn.Hardsigmoid, F.hardsigmoid)
_activation(nn.Softsign, F.softsign)
_activation(nn.Tanhshrink, F.tanhshrink)
_activation(nn.Softshrink, F.softshrink)
_activation(nn.Hardshrink, F.hardshrink, torch.hardshrink, "hardshrink")
_activation(nn.LogSigmoid, F.logsigmoid)
_activation(nn.Threshold, F.threshold, torch.threshold, torch.threshold_)
_activation(nn.Sigmoid, torch.special.expit)
_activation(nn.Identity, torch.clone)


@_entrywise("contiguous", "clone")
def _same(emit: Emit, input: Any, *_: Any, like: Tensor, **__: Any) -> int:
    return emit(nn.Identity(), input)


@_entrywise(
    "float", "double", "half", "bfloat16", "int", "long", "short", "char", "byte", "bool", "to", "type", "type_as"
)
def _cast(emit: Emit, input: Any, *_: Any, like: Tensor, **__: Any) -> int:
    if like.dtype is torch.bool:
        raise _ArgumentsError("compare with a number instead, as in h > 0")
    return emit(nn.Identity(), input)  # of the same dtype, or of truth values, which every other dtype has


@_entrywise(torch.clamp, torch.clip, "clamp", "clip", "clamp_")
def _clamp(emit: Emit, input: Any, min: Any = None, max: Any = None, *, like: Tensor) -> int:
    if all(end is None or isinstance(end, int | float) for end in (min, max)):
        return emit(Clamp(min, max), input)
    shape = tuple(like.shape[1:])
    for end, least in ((min, False), (max, True)):
        if end is not None:
            input = Indexed(emit(Extreme(least=least, tie=1.0), *_dependent(emit, (input, end), shape)), like)
    return int(input.node)


@_entrywise(torch.clamp_min, "clamp_min", torch.clamp_min_, "clamp_min_")
def _clamp_min(emit: Emit, input: Any, min: Any, *, like: Tensor) -> int:
    return int(_clamp(emit, input, min, like=like))


@_entrywise(torch.clamp_max, "clamp_max", torch.clamp_max_, "clamp_max_")
def _clamp_max(emit: Emit, input: Any, max: Any, *, like: Tensor) -> int:
    return int(_clamp(emit, input, None, max, like=like))


@_entrywise(F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_)
def _rrelu(
    emit: Emit, input: Any, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, inplace: bool = False,
    *, like: Tensor,
) -> int:  # fmt: skip
    if training:
        raise _ArgumentsError("it draws slopes in evaluation mode too; pass training=self.training")
    return emit(nn.RReLU(lower, upper), input)


@_entrywise(F.prelu, torch.prelu, "prelu")
def _prelu(emit: Emit, input: Any, weight: Any, *, like: Tensor) -> int:
    return emit(nn.PReLU(device="meta"), input, weight=weight)


@_means(F.glu)
def _glu(emit: Emit, input: Any, dim: int = -1, *, like: Tensor) -> int:
    return gated(emit, input, dim)


def gated(emit: Emit, input: Any, dim: int) -> int:
    """The first half along an axis times the sigmoid of the second."""
    (axis,) = _samples((dim,), input.like)
    size = input.like.shape[axis] // 2
    values, gates = (emit(_cut(axis, slice(start, start + size)), input) for start in (0, size))
    return emit(Multiply(), values, emit(nn.Sigmoid(), gates))


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
        _entrywise(*_targets)(_pointwise(_name))


_entrywise(operator.abs)(_pointwise("abs"))


def _of_another(name: str, before: float, after: float, plus: float = 0.0) -> Build:
    """`plus + after * f(before * h)` of another function."""

    def build(emit: Emit, input: Any, *, like: Tensor) -> int:
        found = emit(Pointwise(name), input if before == 1 else emit(Scale(), input, value=before))
        found = emit(Scale(), found, value=after) if after != 1 else found
        return emit(Shift(), found, value=plus) if plus else found

    return build


_entrywise(torch.log2, "log2")(_of_another("log", 1.0, 1 / math.log(2)))
_entrywise(torch.log10, "log10")(_of_another("log", 1.0, 1 / math.log(10)))
_entrywise(torch.erfc, "erfc")(_of_another("erf", 1.0, -1.0, 1.0))


@_entrywise(torch.round, "round", "round_")
def _round(emit: Emit, input: Any, *, decimals: int = 0, like: Tensor) -> int:
    if decimals:
        raise _ArgumentsError("round to whole numbers, of h scaled beforehand")
    return emit(Pointwise("round"), input)


@_entrywise(torch.reciprocal, "reciprocal", "reciprocal_")
def _reciprocal(emit: Emit, input: Any, *, like: Tensor) -> int:
    return emit(Pointwise("reciprocal"), input)


@_entrywise(torch.square, "square", "square_")
def _square(emit: Emit, input: Any, *, like: Tensor) -> int:
    return emit(Power(2.0), input)


@_entrywise(operator.add, operator.iadd, torch.add, "add", "add_")
def _add(emit: Emit, input: Any, other: Any, *, alpha: float = 1, like: Tensor) -> int:
    return _plus(emit, input, _multiple(emit, other, alpha), 1, like)


@_entrywise(operator.sub, operator.isub, torch.sub, "sub", "sub_")
def _sub(emit: Emit, input: Any, other: Any, *, alpha: float = 1, like: Tensor) -> int:
    return _plus(emit, input, _multiple(emit, other, alpha), -1, like)


def _multiple(emit: Emit, other: Any, alpha: float) -> Any:
    """A summand `alpha` times."""
    if alpha == 1:
        return other
    if isinstance(other, int | float):
        return alpha * other
    if not isinstance(other, Indexed):
        raise _ArgumentsError("leave alpha at 1 for constants, and write a + alpha * b")
    return Indexed(emit(Scale(), other, value=alpha), other.like)


def _plus(emit: Emit, x: Any, y: Any, sign: int, like: Tensor) -> int:
    if like.dtype is torch.bool:
        raise _ArgumentsError("truth values add up to truth values; write (h > 0).float()")
    if isinstance(x, Indexed) and isinstance(y, Indexed):
        return emit(Add(sign), x, y)
    if isinstance(x, Indexed):
        return emit(Shift(sign), x, value=y)
    return emit(Shift(), y if sign == 1 else emit(Scale(), y, value=-1.0), value=x)


@_entrywise(operator.neg, torch.neg, "neg")
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


_entrywise(operator.gt, torch.gt, "gt")(_compare(closed=False, below=False))
_entrywise(operator.ge, torch.ge, "ge")(_compare(closed=True, below=False))
_entrywise(operator.lt, torch.lt, "lt")(_compare(closed=False, below=True))
_entrywise(operator.le, torch.le, "le")(_compare(closed=True, below=True))


@_entrywise(operator.pow, operator.ipow, torch.pow, "pow", "pow_")
def _pow(emit: Emit, input: Any, exponent: Any, *, like: Tensor) -> int:
    if isinstance(exponent, int | float):
        return emit(Power(float(exponent)), input)
    if isinstance(input, int | float):
        if not input > 0:
            raise _ArgumentsError("the base of a power of h must be above 0")
        return emit(Pointwise("exp"), emit(Scale(), exponent, value=math.log(input)))
    # Of positive bases; the logarithm refuses others.
    base, power = _dependent(emit, (input, exponent), tuple(like.shape[1:]))
    return emit(Pointwise("exp"), emit(Multiply(), power, emit(Pointwise("log"), base)))


@_entrywise(operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply", "multiply_")
def _mul(emit: Emit, input: Any, other: Any, *, like: Tensor) -> int:
    if isinstance(input, Indexed) and isinstance(other, Indexed):
        return emit(Power(2.0), input) if input.node == other.node else emit(Multiply(), input, other)
    x, value = (input, other) if isinstance(input, Indexed) else (other, input)
    return emit(Scale(), x, value=value)


@_entrywise(
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


@_entrywise(torch.lerp, "lerp")
def _lerp(emit: Emit, input: Any, end: Any, weight: Any, *, like: Tensor) -> int:
    if not (isinstance(input, Indexed) or isinstance(end, Indexed)):
        raise _ArgumentsError("write it as a + weight * (b - a)")
    way = Indexed(_plus(emit, end, input, -1, like), like)
    return _plus(emit, Indexed(_mul(emit, way, weight, like=like), like), input, 1, like)


@_entrywise(torch.addcmul, "addcmul", "addcmul_")
def _addcmul(emit: Emit, input: Any, one: Any, two: Any, *, value: float = 1, like: Tensor) -> int:
    if not any(isinstance(i, Indexed) for i in (one, two)):
        raise _ArgumentsError("write it as h + a * b")
    product = _mul(emit, one, two, like=like)
    product = product if value == 1 else emit(Scale(), product, value=value)
    return _plus(emit, Indexed(product, like), input, 1, like)


@_entrywise(torch.addcdiv, "addcdiv", "addcdiv_")
def _addcdiv(emit: Emit, input: Any, one: Any, two: Any, *, value: float = 1, like: Tensor) -> int:
    if not any(isinstance(i, Indexed) for i in (one, two)):
        raise _ArgumentsError("write it as h + a / b")
    quotient = _div(emit, one, two, like=like)
    quotient = quotient if value == 1 else emit(Scale(), quotient, value=value)
    return _plus(emit, Indexed(quotient, like), input, 1, like)


@_entrywise(torch.rsub, "rsub")
def _rsub(emit: Emit, input: Any, other: Any, *, alpha: float = 1, like: Tensor) -> int:
    if isinstance(other, Indexed) or alpha != 1:
        raise _ArgumentsError("write it as a - b")
    return emit(Shift(), emit(Scale(), input, value=-1.0), value=other)
