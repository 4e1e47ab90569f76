"""Small untrained networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ATTACKS = ("art:fgsm", "art:bim", "art:pgd", "rp:pgd")
"""Those that stand for all where models, labels and batches are tested: each attack has tests of its own."""


class Centred(nn.Module):
    """Inputs in [0, 1] to [-2, 2], so that different inputs are decided differently."""

    def forward(self, z: Tensor) -> Tensor:
        return 4 * z - 2


def mlp(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Centred(), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)).to(dtype)


def cnn(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    body = [nn.Conv2d(1, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(Centred(), *body, nn.Flatten(), nn.Linear(128, 4)).to(dtype)


def decisions(model: nn.Module, x: Tensor) -> Tensor:
    mode = model.training
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    model.train(mode)
    return y
