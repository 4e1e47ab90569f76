"""Modules that are bounded as several layers, and the layers that each of them is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals.layers import Moved, Permute, Reduce, Reshape
from robust_plugins.intervals.network.calls import Emit, Indexed, Parameter
from robust_plugins.intervals.network.structural_calls import attended

Expansion = Callable[..., "tuple[int | None, ...]"]
"""Called with `emit`, the module's path, the module, and the call's arguments; returns a node for each result."""

_ORIGINALS = {kind: kind.forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)}


def expansion(layer: nn.Module) -> Expansion | None:
    """How a module is taken apart; None for those that have rules of their own, and for those that are not known."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.padding_mode != "zeros":
        return _padded_convolution if _is_its_own(layer) else None
    if isinstance(layer, nn.MultiheadAttention):
        return _multihead_attention if _is_its_own(layer) else None
    return None


def _is_its_own(layer: nn.Module) -> bool:
    """Whether the module computes what its class in torch does."""
    kind = next((k for k in _ORIGINALS if isinstance(layer, k)), None)
    return kind is not None and type(layer).forward is _ORIGINALS[kind] and "forward" not in vars(layer)


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
    why = ""
    if not all(isinstance(t, Indexed) and t.like.dim() == 3 for t in (query, key, value)):
        why = "its query, key and value must be sequences that depend on the model's input"
    elif not layer.batch_first:
        why = "make it with batch_first=True, so that the batch stays axis 0"
    elif key_padding_mask is not None or layer.bias_k is not None or layer.add_zero_attn:
        why = "call it without key_padding_mask, and make it without add_bias_kv and add_zero_attn"
    elif attn_mask is not None and (not isinstance(attn_mask, fx.Node) or emit.constant(attn_mask).dim() != 2):
        why = "its attn_mask must be a constant matrix"
    if why:
        raise UnsupportedModelError(f"layer {path!r} (MultiheadAttention) is not supported as it is used: {why}")
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
    mask = None if attn_mask is None else emit.constant(attn_mask)
    if mask is not None and mask.dtype is torch.bool:
        mask = ~mask  # there true means that a query must not look
    mixed, weights = attended(emit, parts[0], parts[1], parts[2], size**-0.5, mask)
    joined = emit(Reshape((query.like.shape[1], width)), emit(Permute((0, 2, 1, 3)), mixed))
    shift = None if layer.out_proj.bias is None else _at(path, "out_proj.bias")
    shown: int | None = None
    if need_weights:
        shown = emit(Reduce((1,), False, True), weights) if average_attn_weights else weights
    result = emit(nn.Linear(1, 1, device="meta"), joined, weight=_at(path, "out_proj.weight"), bias=shift)
    return result, shown


def _at(path: str, name: str, rows: slice | None = None) -> Parameter:
    return Parameter(f"{path}.{name}".lstrip("."), rows)
