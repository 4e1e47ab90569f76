"""Modules that are bounded as several layers, and the layers that each of them is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import nn

from robust_plugins.intervals.layers import Moved
from robust_plugins.intervals.network.calls import Emit, Indexed, Parameter

Expansion = Callable[..., "tuple[int | None, ...]"]
"""Called with `emit`, the module's path, the module, and the call's arguments; returns a node for each result."""

_ORIGINALS = {kind: kind.forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)}


def expansion(layer: nn.Module) -> Expansion | None:
    """How a module is taken apart; None for those that have rules of their own, and for those that are not known."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.padding_mode != "zeros":
        return _padded_convolution if _is_its_own(layer) else None
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


def _at(path: str, name: str, rows: slice | None = None) -> Parameter:
    return Parameter(f"{path}.{name}".lstrip("."), rows)
