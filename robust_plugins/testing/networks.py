"""Small networks and batches for the conformance checks: fixed seeds, every kind of layer that usually breaks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_plugins.balls import Ball, Linf


@dataclass(frozen=True, eq=False)
class Case:
    """A network, a batch of which it misclassifies the last sample, and a ball."""

    model: nn.Module
    x: Tensor
    y: Tensor
    ball: Ball

    def to(self, dtype: torch.dtype, device: str) -> Case:
        """The same case in another dtype and on another device; converts the network in place."""
        return Case(self.model.to(device, dtype), self.x.to(device, dtype), self.y.to(device), self.ball)


class Normalised(nn.Module):
    """Scales its input inside the model, as models from the wild do."""

    mean: Tensor

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.4))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (batch, classes)."""
        out: Tensor = self.body((x - self.mean) / 0.5)
        return out


def mlp_case(*, activation: type[nn.Module] = nn.ReLU, normalised: bool = True, batch: int = 6) -> Case:
    """5 features, 4 classes, two hidden layers; inputs normalised inside the model, or a plain nn.Sequential."""
    with _seeded(0):
        body = nn.Sequential(nn.Linear(5, 12), activation(), nn.Linear(12, 8), activation(), nn.Linear(8, 4))
        return _case(Normalised(body) if normalised else body, torch.rand(batch, 5), eps=0.08)


def linear_case(*, batch: int = 5) -> Case:
    """5 features, 4 classes, no hidden layer: bounds over an L-infinity ball can be exact here, and none tighter."""
    with _seeded(2):
        return _case(nn.Sequential(nn.Linear(5, 4)), torch.rand(batch, 5), eps=0.1)


def cnn_case(*, batch: int = 4) -> Case:
    """Images of shape (2, 6, 6), 3 classes: a strided convolution, batch norm, average pooling."""
    with _seeded(1):
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 2),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4, 3),
        )
        model[1].get_buffer("running_mean").uniform_(-0.3, 0.3)
        model[1].get_buffer("running_var").uniform_(0.5, 2)
        return _case(model, torch.rand(batch, 2, 6, 6), eps=0.03)


def _case(model: nn.Module, x: Tensor, *, eps: float) -> Case:
    model.eval()
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    y[-1] = logits[-1].argmin()
    return Case(model, x, y, Linf(eps=eps, clip=(0.0, 1.0)))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
