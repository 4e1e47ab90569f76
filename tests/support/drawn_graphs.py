"""Graphs drawn at random from the layers of the engine, in the model's dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = (
    F.relu, torch.tanh, F.silu, F.gelu, F.softplus, torch.sigmoid, F.elu, F.leaky_relu, F.hardtanh,
    lambda x: x.clamp(min=-0.3),
)  # fmt: skip


class Drawn(nn.Module):
    """A network built from a list of integers: each chooses a layer that fits the shape so far."""

    def __init__(self, image: bool, choices: list[int]) -> None:
        super().__init__()
        self.image, self.choices = image, choices
        self.shape = (2, 4, 4) if image else (4,)
        self.convs = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in choices)
        self.norms = nn.ModuleList(nn.BatchNorm2d(2) for _ in choices)
        self.linears = nn.ModuleList(nn.Linear(4, 4) for _ in choices)
        self.register_buffer("mean", torch.ones(4))
        self.last = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        image, size = self.image, self.shape[-1]  # known while tracing, which cannot branch on x itself
        for index, choice in enumerate(self.choices):
            kind, activation = choice % 6, ACTIVATIONS[choice // 6 % len(ACTIVATIONS)]
            layer = self.convs[index] if image else self.linears[index]
            if kind == 0:
                x = layer(x)
            elif kind == 1:
                x = activation(x)
            elif kind == 2:
                x = x + activation(layer(x))
            elif kind == 3:
                x = self.norms[index](x) if image else (x - self.mean) / 2.0
            elif kind == 4:
                x = x.permute(0, 1, 3, 2) if image else torch.softmax(x, 1) * 3
            elif image and size > 2:
                x, size = (F.max_pool2d(x, 2) if choice % 2 else F.avg_pool2d(x, 2)), size // 2
            else:
                x = activation(layer(x)) * 0.5
        return self.last(x.flatten(1))
