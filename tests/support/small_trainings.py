"""A small network, small batches, and their training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import robust_plugins as rp

Batches = list[tuple[Tensor, Tensor]]


def network(outputs: int = 2, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, outputs)).to(dtype)


def data(n: int = 25, size: int = 10, *, classes: int = 2, dtype: torch.dtype = torch.float64) -> Batches:
    g = torch.Generator().manual_seed(0)
    x = torch.randn((n, 3), generator=g, dtype=torch.float64).to(dtype)
    y = (x.sum(1) > 0).long() if classes == 2 else torch.randint(0, classes, (n,), generator=g)
    return [(x[s : s + size], y[s : s + size]) for s in range(0, n, size)]


def train(model: nn.Module, batches: Any, budget: rp.PoisoningBudget | None = None, **how: Any) -> rp.PoisoningRun:
    how = {"loss": "cross_entropy", "optimizer": rp.SGD(lr=0.2), "epochs": 2, "progress": False} | how
    return rp.abstract_gradient_training(model, batches, budget or rp.PoisoningBudget(points=1, eps=0.01), **how)
