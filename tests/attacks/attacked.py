"""Small untrained networks, whose decisions are near their boundaries."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mlp(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)).to(dtype)


def cnn(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(128, 4)]
    return nn.Sequential(*layers).to(dtype)


def decisions(model: nn.Module, x: Tensor) -> Tensor:
    mode = model.training
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    model.train(mode)
    return y
