"""Networks drawn at random from the layers of the engine, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMOOTH = (torch.tanh, F.softplus, torch.sigmoid, F.gelu, F.silu)
OTHERS = (torch.relu, F.leaky_relu, F.elu, F.hardtanh)


class Drawn(nn.Module):
    """Each integer chooses a layer that fits the shape so far; an activation is smooth where all of them are to be."""

    def __init__(self, choices: list[int], *, image: bool, smooth: bool, seed: int) -> None:
        super().__init__()
        self.image, self.choices = image, choices
        self.activations = SMOOTH if smooth else SMOOTH + OTHERS
        self.smooth = smooth
        self.features = (2, 4, 4) if image else (4,)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.convs = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in choices)
            self.norms = nn.ModuleList(nn.BatchNorm2d(2) for _ in choices)
            self.linears = nn.ModuleList(nn.Linear(4, 4) for _ in choices)
            self.last = nn.Linear(self._flat_size(), 3)
        for norm in self.norms:
            norm.running_mean.uniform_(-0.3, 0.3)
            norm.running_var.uniform_(0.5, 2.0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(1.5)
        self.double().eval()

    def _flat_size(self) -> int:
        size = self.features[-1]
        for choice in self.choices:
            size = size // 2 if self.image and choice % 6 == 5 and size > 1 else size
        return 2 * size**2 if self.image else 4

    def forward(self, x: Tensor) -> Tensor:
        size = self.features[-1]
        for index, choice in enumerate(self.choices):
            layer = self.convs[index] if self.image else self.linears[index]
            activation = self.activations[choice // 6 % len(self.activations)]
            kind = choice % 6
            if kind == 0:
                x = activation(x)
            elif kind in (1, 2):
                x = activation(layer(x))
            elif kind == 3:
                x = x + activation(layer(x))
            elif kind == 4:
                x = self.norms[index](x) if self.image else (x - 0.3) * 1.2
            elif self.image and size > 1:
                pool = F.avg_pool2d if self.smooth or choice % 12 < 6 else F.max_pool2d
                x, size = pool(x, 2), size // 2
            elif self.smooth:
                x = torch.cat((x, activation(layer(x))), 1)[:, : x.shape[1]] if not self.image else activation(x)
            else:
                x = x * torch.sigmoid(layer(x)) if choice % 12 < 6 or self.image else torch.softmax(layer(x), 1)
        return self.last(x.flatten(1))
