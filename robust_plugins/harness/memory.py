"""How much memory a batch takes: the sizes of a model's activations, and the largest batch that fits a budget."""

from __future__ import annotations

import sys
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

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recorded(func(*args, **(kwargs or {})))

    def recorded(self, out: Any) -> Any:
        if isinstance(out, Tensor) and out.dim() > 1 and out.shape[0] == self.batch:
            self.sizes.append(out.numel() // self.batch)
        return out


class _OutputSizesUncompiled(_OutputSizes):
    """The same without torch's guard against being compiled, which imports the compiler: seconds, in a first call."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recorded(func(*args, **(kwargs or {})))


def activation_sizes(model: nn.Module, x: Tensor) -> list[int]:
    """The number of values per sample of `x` and of what each operation of the forward pass computes from it."""
    known = _known.setdefault(model, {})
    # A model whose layers changed has other weights; were they of the same number, only an estimate would be off.
    key = (x.shape[1:], x.dtype, sum(p.numel() for p in model.parameters()))
    if key not in known:
        try:
            sizes = _sizes(model, x[:1].expand(_PROBE, *x.shape[1:]).clone())
        except Exception:  # a model that was exported for the batch size of x, say
            sizes = _sizes(model, x.clone())
        known[key] = [x[0].numel(), *sizes]
    return known[key]


def _sizes(model: nn.Module, x: Tensor) -> list[int]:
    record = (_OutputSizes if "torch._dynamo" in sys.modules else _OutputSizesUncompiled)(len(x))
    with torch.no_grad(), record:
        model(x)
    return record.sizes


_known: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], list[int]]] = WeakKeyDictionary()
