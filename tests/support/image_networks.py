"""Small convolutional networks with every layer through which windows of coefficients go, and some that stop them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block; the way around it is a convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1)
        same = before == after and stride == 1
        self.around = nn.Identity() if same else nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.norm(self.first(x)))) - 0.5 * self.around(x))


class Crossed(nn.Module):
    """Two branches whose windows differ in size and place."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv2d(2, 4, 3, 1, 1)
        self.one = nn.Conv2d(4, 4, 3, 2, 1)
        self.two = nn.Sequential(nn.Conv2d(4, 4, 2, 2), nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 2))
        self.end = nn.Linear(4 * 25, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.start(x))
        return self.end(torch.relu(torch.tanh(self.one(h)) + self.two(h)).flatten(1))


def _plain() -> list[nn.Module]:
    return [
        nn.Conv2d(2, 4, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, 2, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, 1, 1),
        nn.Tanh(),
        nn.Conv2d(6, 4, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    ]


def _residual() -> list[nn.Module]:
    blocks = [Block(4, 4, 1), Block(4, 6, 2), Block(6, 6, 1)]
    return [nn.Conv2d(2, 4, 3, 1, 1), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)]


def _pooled() -> list[nn.Module]:
    return [
        nn.Conv2d(2, 4, 3, 1, 1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 3, 1, 1),
        nn.Sigmoid(),
        nn.AvgPool2d(3, 1, 1),
        nn.Conv2d(4, 4, 3, 1, 1),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, 1, divisor_override=4),
        nn.Conv2d(4, 3, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 3),
    ]


def _grouped() -> list[nn.Module]:
    return [
        nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 2), dilation=(1, 2), groups=2),
        nn.ReLU(),
        nn.ZeroPad2d((1, 0, 2, 1)),
        nn.Conv2d(4, 8, 3, 1, dilation=2, groups=2),
        nn.LeakyReLU(),
        nn.Conv2d(8, 4, (2, 3), (2, 1), (0, 1), groups=4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Hardtanh(),
        nn.Flatten(),
        nn.Linear(72, 3),
    ]


def _stopped() -> list[nn.Module]:
    return [
        nn.Conv2d(2, 4, 3, 1, 1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, 1, 1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, 1, 1),
        nn.Softplus(),
        nn.Conv2d(4, 4, 3, 1, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(100, 3),
    ]


KINDS = ("plain", "residual", "pooled", "grouped", "stopped", "crossed")


def image_network(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode, its batch norms with statistics of some data, and two inputs."""
    torch.manual_seed(KINDS.index(kind))
    makers = {"plain": _plain, "residual": _residual, "pooled": _pooled, "grouped": _grouped, "stopped": _stopped}
    model = (Crossed() if kind == "crossed" else nn.Sequential(*makers[kind]())).to(dtype).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
    return model, torch.rand(2, 2, 10, 10, dtype=dtype)
