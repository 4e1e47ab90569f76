"""Small models and inputs for the certifiers of auto_LiRPA."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.adapters.lirpa import CROWN, CROWNIBP, IBP, AlphaCROWN

CERTIFIERS = [IBP(), CROWNIBP(), CROWN(), AlphaCROWN(steps=3)]

each = pytest.mark.parametrize("certifier", CERTIFIERS, ids=lambda c: type(c).__name__)

BALL = rp.Linf(eps=0.05, clip=(0.0, 1.0))


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 4)
    return nn.Sequential(nn.Flatten(), *layers).eval()


def cnn(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout2d(0.5), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3),
    )  # fmt: skip
    model(torch.randn(16, 1, 4, 4))  # statistics
    return model.eval()


def images(n: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)


def points(n: int = 4) -> Tensor:
    return torch.rand(n, 3, 4, generator=torch.Generator().manual_seed(1))


def close(a: rp.Interval, b: rp.Interval, tolerance: float = 1e-5) -> bool:
    return torch.allclose(a.lower, b.lower, atol=tolerance) and torch.allclose(a.upper, b.upper, atol=tolerance)
