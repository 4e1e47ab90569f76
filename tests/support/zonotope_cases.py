"""Small trainings of every kind that the zonotope domain covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_plugins.intervals import Interval, trace
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.zonotope import Zonotope

BUDGETS = {
    "nothing": PoisoningBudget(),
    "points": PoisoningBudget(points=3, eps=0.05),
    "l2, clip": PoisoningBudget(points=2, eps=0.2, norm="l2", clip=(-1.0, 1.0)),
    "l1, columns": PoisoningBudget(points=4, eps=0.2, norm="l1", columns=(0, 2)),
    "labels": PoisoningBudget(labels=2),
    "target": PoisoningBudget(labels=3, target=1),
    "both": PoisoningBudget(points=3, eps=0.05, labels=1),
    "paired": PoisoningBudget(points=2, eps=0.1, labels=3, paired=True),
    "radius": PoisoningBudget(labels=4, label_radius=0.3),
    "points and radius": PoisoningBudget(points=2, eps=0.1, labels=3, label_radius=0.2),
}


@dataclass(frozen=True)
class Case:
    loss: str
    outputs: int
    hidden: int
    budget: str
    bias: bool = True
    frozen: bool = False
    weight_decay: float = 0.0
    lr: float = 0.3

    def __str__(self) -> str:
        shape = f"{'frozen-' if self.frozen else ''}{self.hidden or 'linear'}-{self.outputs}"
        return f"{self.loss} {shape} {self.budget}{'' if self.bias else ' no bias'}"

    @property
    def limits(self) -> PoisoningBudget:
        return BUDGETS[self.budget]

    def model(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            width = 5 if self.frozen else 4
            before: list[nn.Module] = [nn.Linear(4, 5), nn.Tanh()] if self.frozen else []
            tail = (
                [nn.Linear(width, self.hidden, bias=self.bias), nn.ReLU(), nn.Linear(self.hidden, self.outputs)]
                if self.hidden
                else [nn.Linear(width, self.outputs, bias=self.bias)]
            )
            return nn.Sequential(*before, *tail).double()

    def names(self, model: nn.Module) -> list[str]:
        names = [n for n, _ in model.named_parameters()]
        return names[2:] if self.frozen else names

    def batches(self, seed: int = 1, steps: int = 4) -> list[tuple[Tensor, Tensor]]:
        random = torch.Generator().manual_seed(seed)
        found = []
        for i in range(steps):
            size = 20 if i % 3 else 13
            x = torch.rand((size, 4), generator=random, dtype=torch.float64) * 2 - 1
            if self.loss == "mse":
                y = torch.randn((size, self.outputs), generator=random, dtype=torch.float64) / 2
                y = y[:, 0] if self.outputs == 1 and i % 2 else y
            else:
                y = (x[:, 0] > x[:, 1]).long() + (x[:, 2] > 0.3).long() * (self.outputs > 2)
            found.append((x, y))
        return found

    def start(self, model: nn.Module, **options: int) -> Zonotope:
        x, _ = self.batches()[0]
        return Zonotope.start(trace(model, x), self.names(model), self.loss, self.limits, **options)

    def trained(self, zonotope: Zonotope, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Interval]:
        hull = zonotope.hull()
        for t, (x, y) in enumerate(batches):
            lr = self.lr / (1 + 0.2 * t)
            hull = zonotope.step(x, y, lr=lr, weight_decay=self.weight_decay, box=everything(zonotope))
        return hull


def everything(zonotope: Zonotope) -> dict[str, Interval]:
    """A box that says nothing, so that tests see the zonotope alone."""
    return {n: Interval(torch.full_like(h.lower, -1e9), torch.full_like(h.lower, 1e9)) for n, h in
            zonotope.hull().items()}  # fmt: skip


CASES = [
    Case("cross_entropy", 2, 0, "points"),
    Case("cross_entropy", 2, 6, "points"),
    Case("cross_entropy", 2, 6, "both", weight_decay=0.1),
    Case("cross_entropy", 2, 6, "paired"),
    Case("cross_entropy", 2, 5, "target", bias=False),
    Case("cross_entropy", 3, 0, "both"),
    Case("cross_entropy", 3, 0, "l2, clip", bias=False),
    Case("cross_entropy", 3, 6, "points", weight_decay=0.1),
    Case("cross_entropy", 3, 5, "labels"),
    Case("cross_entropy", 3, 5, "l1, columns"),
    Case("cross_entropy", 3, 0, "target", frozen=True),
    Case("binary_cross_entropy", 1, 0, "labels", weight_decay=0.1),
    Case("binary_cross_entropy", 1, 6, "both"),
    Case("binary_cross_entropy", 1, 5, "l2, clip", frozen=True),
    Case("mse", 1, 0, "points and radius"),
    Case("mse", 2, 0, "points"),
    Case("mse", 1, 6, "points", lr=0.1),
    Case("mse", 2, 5, "radius", lr=0.1),
    Case("mse", 2, 5, "points and radius", frozen=True, lr=0.1),
]
