"""Modules that are bounded as several layers, and the layers that each of them is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals.layers import Moved, Permute, Reduce, Reshape, Scale
from robust_plugins.intervals.network.calls import Emit, Indexed, Parameter, _ArgumentsError
from robust_plugins.intervals.network.elementwise_calls import gated
from robust_plugins.intervals.network.layer_calls import adaptive_max_pool, interpolated
from robust_plugins.intervals.network.neighbour_calls import power_pool, response_norm
from robust_plugins.intervals.network.product_calls import attended, bilinear
from robust_plugins.intervals.network.reducing_calls import distance, similarity
from robust_plugins.intervals.rules.structure import INTERPOLATIONS

Expansion = Callable[..., "tuple[int | None, ...]"]
"""Called with `emit`, the module's path, the module, and the call's arguments; returns a node for each result."""


def expansion(layer: nn.Module) -> Expansion | None:
    """How a module is taken apart; None for those that have rules of their own, and for those that are not known."""
    kind = next((k for k in _EXPANSIONS if isinstance(layer, k)), None)
    if kind is None or type(layer).forward is not _ORIGINALS[kind] or "forward" in vars(layer):
        return None
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.padding_mode == "zeros":
        return None
    if isinstance(layer, nn.Upsample) and layer.mode in INTERPOLATIONS:
        return None
    return _EXPANSIONS[kind]


def build_module(
    expand: Expansion, emit: Emit, path: str, layer: nn.Module, args: Any, kwargs: Any, *, turned: bool
) -> tuple[int | None, ...]:
    """Adds the nodes of a module that is bounded as several layers, and returns those of its results.

    `turned` says that the batch has been moved to the front of what the model has elsewhere.
    """
    try:
        if isinstance(layer, nn.MultiheadAttention) and not (layer.batch_first or turned):
            raise _ArgumentsError("its batch must be axis 1, or make it with batch_first=True")
        return expand(emit, path, layer, *args, **kwargs)
    except (_ArgumentsError, TypeError) as error:
        kind = type(layer).__name__
        raise UnsupportedModelError(f"layer {path!r} ({kind}) is not supported as it is used: {error}") from error


def _padded_convolution(emit: Emit, path: str, layer: Any, input: Indexed) -> tuple[int, ...]:
    """Pads with what the image holds, then convolves without padding."""
    padded = emit(Moved(F.pad, tuple(layer._reversed_padding_repeated_twice), mode=layer.padding_mode), input)
    kind = next(k for k in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(layer, k))
    # The kernel is the module's own; the layer here carries strides alone.
    plain = kind(layer.groups, layer.groups, 1, layer.stride, 0, layer.dilation, layer.groups, device="meta")
    bias = None if layer.bias is None else _at(path, "bias")
    return (emit(plain, padded, weight=_at(path, "weight"), bias=bias),)


def _multihead_attention(
    emit: Emit, path: str, layer: Any, query: Any, key: Any, value: Any, key_padding_mask: Any = None,
    need_weights: bool = True, attn_mask: Any = None, average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[int | None, ...]:  # fmt: skip
    """Three linear layers, attention of every head, and a linear layer; and the weights where they are wanted."""
    if not all(isinstance(t, Indexed) and t.like.dim() == 3 for t in (query, key, value)):
        raise _ArgumentsError("its query, key and value must be sequences that depend on the model's input")
    if layer.bias_k is not None or layer.add_zero_attn:
        raise _ArgumentsError("make it without add_bias_kv and add_zero_attn")
    heads, size, width = layer.num_heads, layer.head_dim, layer.embed_dim
    parts = []
    for index, (name, x) in enumerate((("q", query), ("k", key), ("v", value))):
        rows = slice(index * width, (index + 1) * width)
        together = layer._qkv_same_embed_dim
        weight = _at(path, "in_proj_weight", rows) if together else _at(path, f"{name}_proj_weight")
        bias = None if layer.in_proj_bias is None else _at(path, "in_proj_bias", rows)
        length = x.like.shape[1]
        found = emit(nn.Linear(1, 1, device="meta"), x, weight=weight, bias=bias)
        found = emit(Permute((0, 2, 1, 3)), emit(Reshape((length, heads, size)), found))
        parts.append(Indexed(found, x.like.new_zeros((len(x.like), heads, length, size))))
    mask = _mask(emit, attn_mask, key_padding_mask, query.like.shape[1])
    mixed, weights = attended(emit, parts[0], parts[1], parts[2], size**-0.5, mask)
    joined = emit(Reshape((query.like.shape[1], width)), emit(Permute((0, 2, 1, 3)), mixed))
    shift = None if layer.out_proj.bias is None else _at(path, "out_proj.bias")
    shown: int | None = None
    if need_weights:
        shown = emit(Reduce((1,), False, True), weights) if average_attn_weights else weights
    result = emit(nn.Linear(1, 1, device="meta"), joined, weight=_at(path, "out_proj.weight"), bias=shift)
    return result, shown


def _mask(emit: Emit, attn_mask: Any, key_padding_mask: Any, queries: int) -> Tensor | None:
    """Both masks as one: true where a query may look, or what is added to the scores."""
    found: Tensor | None = None
    for given, name in ((attn_mask, "attn_mask"), (key_padding_mask, "key_padding_mask")):
        if given is None:
            continue
        mask = emit.constant(given) if isinstance(given, fx.Node) else None
        if mask is None or mask.dim() != 2 or (name == "key_padding_mask" and len(mask) != 1):
            raise _ArgumentsError(
                f"its {name} must be a constant matrix"
                + (", the same for every sample" if name == "key_padding_mask" else "")
            )
        if mask.dtype is torch.bool:
            mask = ~mask  # there true means that a query must not look
        mask = mask.expand(queries, -1)
        if found is None:
            found = mask
        elif found.dtype is torch.bool and mask.dtype is torch.bool:
            found = found & mask
        else:
            found = _added(found) + _added(mask)
    return found


def _added(mask: Tensor) -> Tensor:
    """The numbers that a mask adds to the scores."""
    if mask.dtype is not torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)


def _glu(emit: Emit, path: str, layer: Any, input: Any) -> tuple[int, ...]:
    return (gated(emit, input, layer.dim),)


def _adaptive_max_pool(emit: Emit, path: str, layer: Any, input: Any) -> tuple[int, ...]:
    if layer.return_indices:
        raise _ArgumentsError("make it with return_indices=False")
    return (adaptive_max_pool(emit, input, layer.output_size),)


def _upsample(emit: Emit, path: str, layer: Any, input: Any) -> tuple[int, ...]:
    options = {"align_corners": layer.align_corners, "recompute_scale_factor": layer.recompute_scale_factor}
    return (interpolated(emit, input, layer.size, layer.scale_factor, layer.mode, **options),)


def _cosine(emit: Emit, path: str, layer: Any, x1: Any, x2: Any) -> tuple[int, ...]:
    return (similarity(emit, x1, x2, layer.dim, layer.eps),)


def _distance(emit: Emit, path: str, layer: Any, x1: Any, x2: Any) -> tuple[int, ...]:
    return (distance(emit, x1, x2, layer.norm, layer.eps, layer.keepdim),)


def _bilinear(emit: Emit, path: str, layer: Any, input1: Any, input2: Any) -> tuple[int, ...]:
    bias = None if layer.bias is None else _at(path, "bias")
    return (bilinear(emit, input1, input2, _at(path, "weight"), bias),)


def _response_norm(emit: Emit, path: str, layer: Any, input: Any) -> tuple[int, ...]:
    return (response_norm(emit, input, layer.size, layer.alpha, layer.beta, layer.k),)


def _power_pool(emit: Emit, path: str, layer: Any, input: Any) -> tuple[int, ...]:
    dims = (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d).index(type(layer)) + 1
    return (power_pool(emit, input, layer.norm_type, layer.kernel_size, layer.stride, layer.ceil_mode, dims=dims),)


def _softmin(emit: Emit, path: str, layer: Any, input: Any) -> tuple[int, ...]:
    if layer.dim is None:
        raise _ArgumentsError("give it its dim")
    return (emit(nn.Softmax(layer.dim), emit(Scale(), input, value=-1.0)),)


def _softmax2d(emit: Emit, path: str, layer: Any, input: Any) -> tuple[int, ...]:
    return (emit(nn.Softmax(-3), input),)


def _at(path: str, name: str, rows: slice | None = None) -> Parameter:
    return Parameter(f"{path}.{name}".lstrip("."), rows)


_EXPANSIONS: dict[type[nn.Module], Expansion] = {
    nn.Conv1d: _padded_convolution,
    nn.Conv2d: _padded_convolution,
    nn.Conv3d: _padded_convolution,
    nn.MultiheadAttention: _multihead_attention,
    nn.GLU: _glu,
    nn.AdaptiveMaxPool1d: _adaptive_max_pool,
    nn.AdaptiveMaxPool2d: _adaptive_max_pool,
    nn.AdaptiveMaxPool3d: _adaptive_max_pool,
    nn.Upsample: _upsample,
    nn.CosineSimilarity: _cosine,
    nn.PairwiseDistance: _distance,
    nn.Bilinear: _bilinear,
    nn.LocalResponseNorm: _response_norm,
    nn.LPPool1d: _power_pool,
    nn.LPPool2d: _power_pool,
    nn.LPPool3d: _power_pool,
    nn.Softmin: _softmin,
    nn.Softmax2d: _softmax2d,
}
_ORIGINALS = {kind: kind.forward for kind in _EXPANSIONS}
