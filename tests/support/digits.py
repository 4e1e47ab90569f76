"""The digits, in batches, and small networks for them."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import robust_plugins as rp

EPS = 0.05


def batched(data: rp.Dataset, *, samples: int | None = None, generator: torch.Generator | None = None) -> DataLoader:
    tensors = TensorDataset(data.x_train[:samples], data.y_train[:samples])
    return DataLoader(tensors, batch_size=64, shuffle=True, generator=generator)


def network(data: rp.Dataset, widths: tuple[int, ...] = (64, 64), *, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    model = rp.model("mlp", input_shape=data.input_shape, classes=data.classes, widths=widths)
    return nn.Sequential(*model[:-1], nn.Dropout(dropout), model[-1]) if dropout else model
