"""How much memory a batch takes: the sizes of a model's activations, and the largest batch that fits a budget."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

BUDGET = 4 * 2**30
"""Bytes that a certifier may use when no `batch_size` is given."""


_PROBE = 3  # samples; tells the batch axis of an activation from the shape of a weight


class _OutputSizes(TorchDispatchMode):
    """Records the number of values per sample that every operation returns, functional calls included."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dim() > 1 and out.shape[0] == _PROBE:
            self.sizes.append(out.numel() // _PROBE)
        return out


def activation_sizes(model: nn.Module, x: Tensor) -> list[int]:
    """The number of values per sample of `x` and of what each operation of the forward pass computes from it."""
    known = _known.setdefault(model, {})
    # A model whose layers changed has other weights; were they of the same number, only an estimate would be off.
    key = (x.shape[1:], x.dtype, sum(p.numel() for p in model.parameters()))
    if key not in known:
        with torch.no_grad(), _OutputSizes() as record:
            model(x[:1].expand(_PROBE, *x.shape[1:]))
        known[key] = [x[0].numel(), *record.sizes]
    return known[key]


_known: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], list[int]]] = WeakKeyDictionary()
