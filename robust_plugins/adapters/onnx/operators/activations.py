"""Activations become the modules of torch that compute the same."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from robust_plugins.adapters.onnx.translation import Call, Translation, Value, translates

_PLAIN: dict[str, Callable[[], nn.Module]] = {
    "Relu": nn.ReLU, "Sigmoid": nn.Sigmoid, "Tanh": nn.Tanh, "Softsign": nn.Softsign,
    "Mish": nn.Mish, "HardSwish": nn.Hardswish,
}  # fmt: skip


@translates(*_PLAIN)
def _plain(t: Translation, call: Call) -> Value:
    return t.layer(_PLAIN[call.operator](), call.value())


@translates("LeakyRelu")
def _leaky_relu(t: Translation, call: Call) -> Value:
    return t.layer(nn.LeakyReLU(float(call.get("alpha", np.float32(0.01)))), call.value())


@translates("Elu")
def _elu(t: Translation, call: Call) -> Value:
    return t.layer(nn.ELU(float(call.get("alpha", 1.0))), call.value())


@translates("Celu")
def _celu(t: Translation, call: Call) -> Value:
    return t.layer(nn.CELU(float(call.get("alpha", 1.0))), call.value())


@translates("Selu")
def _selu(t: Translation, call: Call) -> Value:
    """By ELU: torch's SELU has constants of its own, which are those of the file up to 3e-8 at best."""
    alpha, gamma = float(call.get("alpha", np.float32(1.6732632))), float(call.get("gamma", np.float32(1.0507009)))
    return t.function(operator.mul, t.layer(nn.ELU(alpha), call.value()), gamma)


@translates("Softplus")
def _softplus(t: Translation, call: Call) -> Value:
    """Above the threshold torch takes the identity: at 40 that is the same in double precision, at its own 20 not."""
    return t.layer(nn.Softplus(threshold=40.0), call.value())


@translates("ThresholdedRelu")
def _thresholded(t: Translation, call: Call) -> Value:
    return t.layer(nn.Threshold(float(call.get("alpha", 1.0)), 0.0), call.value())


@translates("HardSigmoid")
def _hard_sigmoid(t: Translation, call: Call) -> Value:
    alpha, beta = float(call.get("alpha", np.float32(0.2))), float(call.get("beta", 0.5))
    line = t.function(operator.add, t.function(operator.mul, call.value(), alpha), beta)
    return t.function(torch.clamp, line, 0.0, 1.0)


@translates("Gelu")
def _gelu(t: Translation, call: Call) -> Value:
    return t.layer(nn.GELU(call.get("approximate", b"none").decode()), call.value())


@translates("PRelu")
def _prelu(t: Translation, call: Call) -> Value:
    x, slope = call.value(), call.constant(1)
    by_channel = slope.dim() == len(x.shape) - 1 and all(n == 1 for n in slope.shape[1:]) and not x.lifted
    if slope.numel() == 1 or (by_channel and len(x.shape) > 1):
        layer = nn.PReLU(slope.numel(), device="meta")
        layer.weight = nn.Parameter(slope.reshape(-1).clone())
        return t.layer(layer, x)
    below = t.binary(operator.mul, t.function(F.relu, t.function(operator.neg, x)), slope)
    return t.binary(operator.sub, t.function(F.relu, x), below)


@translates("Clip")
def _clip(t: Translation, call: Call) -> Value:
    ends: list[float | None] = []
    for index, name in enumerate(("min", "max"), start=1):
        given = call.optional(index)
        ends.append(call.get(name) if given is None else float(given))
    if ends == [None, None]:
        return call.value()
    return t.function(torch.clamp, call.value(), *ends)


@translates("Softmax", "LogSoftmax")
def _softmax(t: Translation, call: Call) -> Value:
    x, kind = call.value(), nn.Softmax if call.operator == "Softmax" else nn.LogSoftmax
    rank = len(x.shape)
    axis = int(call.get("axis", 1 if call.opset < 13 else -1)) % rank
    if call.opset < 13 and axis < rank - 1:  # earlier versions join all axes from this one on
        flat = t.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))
        return t.reshape(t.layer(kind(-1), flat), x.shape)
    x, (dim,) = t.along(x, [axis])
    return t.layer(kind(dim), x)
