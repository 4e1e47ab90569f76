"""Normalisation layers."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn

from robust_plugins.adapters.onnx.translation import Call, Translation, TranslationError, Value, translates


@translates("BatchNormalization")
def _batch_norm(t: Translation, call: Call) -> Value:
    x = call.value()
    scale, shift, mean, variance = (call.constant(i) for i in range(1, 5))
    eps, rank = float(call.get("epsilon", 1e-5)), len(x.shape)
    if call.get("training_mode", 0) or call.outputs > 1:
        raise TranslationError("it is in training mode; export the model after model.eval()")
    if rank < 2 or any(v.numel() != x.shape[1] for v in (scale, shift, mean, variance)):
        raise TranslationError(f"its statistics do not fit an input of shape {x.shape}")
    if x.shape[0] == 1 and rank <= 5:
        kinds: Any = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
        layer = kinds[rank](len(scale), eps=eps)
        layer.weight, layer.bias = nn.Parameter(scale.clone()), nn.Parameter(shift.clone())
        layer.running_mean, layer.running_var = mean.clone(), variance.clone()
        return t.layer(layer, t.lead(x))
    factor = scale / torch.sqrt(variance + eps)
    columns = (-1,) + (1,) * (rank - 2)
    centred = t.binary(operator.sub, x, mean.reshape(columns))
    return t.binary(operator.add, t.binary(operator.mul, centred, factor.reshape(columns)), shift.reshape(columns))


@translates("LayerNormalization")
def _layer_norm(t: Translation, call: Call) -> Value:
    x, scale, shift = call.value(), call.constant(1), call.optional(2)
    if call.outputs > 1:
        raise TranslationError("its mean and deviation are results too")
    axis = int(call.get("axis", -1)) % len(x.shape)
    x, _ = t.along(x, [axis])
    sides = x.shape[axis:]
    layer = nn.LayerNorm(sides, eps=float(call.get("epsilon", 1e-5)), bias=shift is not None)
    layer.weight = nn.Parameter(scale.expand(sides).clone())
    if shift is not None:
        layer.bias = nn.Parameter(shift.expand(sides).clone())
    return t.layer(layer, x)


@translates("InstanceNormalization")
def _instance_norm(t: Translation, call: Call) -> Value:
    x, scale, shift = t.lead(call.value()), call.constant(1), call.constant(2)
    kinds: Any = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
    if len(x.shape) not in kinds:
        raise TranslationError(f"an input of shape {x.shape}")
    layer = kinds[len(x.shape)](len(scale), eps=float(call.get("epsilon", 1e-5)), affine=True)
    layer.weight, layer.bias = nn.Parameter(scale.clone()), nn.Parameter(shift.clone())
    return t.layer(layer, x)


@translates("GroupNormalization")
def _group_norm(t: Translation, call: Call) -> Value:
    x, scale, shift = t.lead(call.value()), call.constant(1), call.constant(2)
    groups, channels = int(call["num_groups"]), x.shape[1]
    repeats = channels // len(scale)  # one number a group, in the first version
    layer = nn.GroupNorm(groups, channels, eps=float(call.get("epsilon", 1e-5)))
    layer.weight = nn.Parameter(scale.repeat_interleave(repeats))
    layer.bias = nn.Parameter(shift.repeat_interleave(repeats))
    return t.layer(layer, x)
