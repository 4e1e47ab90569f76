"""Concretely poisoned trainings, and how far they leave the bounds."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.poisoning.attacks.builtin import CoordinatePoisoning, GradientAlignment, LossAscent, RandomPoisoning
from robust_plugins.poisoning.attacks.interface import Case, PoisoningAttack, poisoned_trainings
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.losses import Loss
from robust_plugins.poisoning.concrete.optimizers import Optimizer
from robust_plugins.poisoning.concrete.trainings import Trainings


@dataclass(frozen=True, kw_only=True)
class Turning(CoordinatePoisoning):
    """Pushes the other way until `at` updates are made: a velocity that turns late carries parameters farthest."""

    at: int = 2

    def poison(self, case: Case, trainings: Trainings, x: Tensor, y: Tensor) -> PoisonedBatch:
        batch = super().poison(case, trainings, x, y)
        if trainings.t >= self.at:
            return batch
        other = torch.arange(trainings.count).view(-1, 2).flip(1).flatten()  # up and down are neighbours
        return PoisonedBatch(batch.x[other], batch.y[other], batch.present[other])


@dataclass(frozen=True, kw_only=True)
class Both(CoordinatePoisoning):
    """Pushes parameters and, in one more training, the loss: at the cost of one attack."""

    def trainings(self, parameters: int) -> int:
        return super().trainings(parameters) + 2

    def direction(self, case: Case, trainings: Trainings, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        found = super().direction(case, trainings, x, y)
        test = GradientAlignment().direction(case, trainings, x, y)
        return {name: torch.cat([u[:-2], test[name][-2:-1], -test[name][-1:]]) for name, u in found.items()}


ATTACKS: tuple[PoisoningAttack, ...] = (RandomPoisoning(count=38), Both(coordinates=12, steps=1))
MORE: tuple[PoisoningAttack, ...] = (
    RandomPoisoning(count=40),
    CoordinatePoisoning(coordinates=40, steps=3),
    Turning(coordinates=20, steps=1),
    LossAscent(steps=4),
    GradientAlignment(steps=4),
)
FEATURES = 4
CLASSES = 3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A small training and a budget."""

    budget: rp.PoisoningBudget
    loss: Loss = "cross_entropy"
    optimizer: Optimizer = field(default_factory=lambda: rp.SGD(lr=0.3))
    clip: float | rp.Clip | None = None
    net: Literal["mlp", "tanh", "conv", "frozen", "norm", "linear", "weights"] = "mlp"
    domain: Literal["box", "zonotope"] = "box"
    aggregation: Literal["topk", "cvar"] = "topk"
    epochs: int = 2
    dtype: torch.dtype = torch.float64
    rounding: Literal["nearest", "outward"] = "nearest"
    sizes: tuple[int, ...] = (6, 4)
    scale: float = 1.0
    """Of the features."""
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """What both sides are given."""
        return {"loss": self.loss, "optimizer": self.optimizer, "epochs": self.epochs, "clip_gradient": self.clip}

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed + 1)
        outputs = CLASSES if self.loss == "cross_entropy" else 1
        nets: dict[str, Any] = {
            "linear": lambda: nn.Sequential(nn.Linear(FEATURES, outputs)),
            "weights": lambda: nn.Sequential(nn.Linear(FEATURES, outputs, bias=False)),
            "mlp": lambda: nn.Sequential(nn.Linear(FEATURES, 5), nn.ReLU(), nn.Linear(5, outputs)),
            "tanh": lambda: nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 4), nn.Sigmoid(),
                                          nn.Linear(4, outputs)),
            "conv": lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(),
                                          nn.Linear(8, outputs)),
            "frozen": lambda: nn.Sequential(nn.Linear(FEATURES, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(),
                                            nn.Linear(4, outputs)),
            "norm": lambda: nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.LeakyReLU(0.1),
                                          nn.Linear(5, outputs)),
        }  # fmt: skip
        model: nn.Module = nets[self.net]().to(self.dtype).eval()
        if self.net == "frozen":
            for p in list(model.parameters())[:2]:
                p.requires_grad_(False)
        return model

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        draw = torch.Generator().manual_seed(self.seed)
        shape = (1, 4, 4) if self.net == "conv" else (FEATURES,)
        x = self.scale * torch.randn(sum(self.sizes), *shape, generator=draw, dtype=self.dtype)
        if self.budget.clip is not None:
            x = x.clamp(*self.budget.clip)
        value = x.flatten(1).sum(1)
        labels = {
            "cross_entropy": lambda: torch.bucketize(value, torch.tensor([-1.0, 1.0], dtype=self.dtype)),
            "binary_cross_entropy": lambda: (value > 0).to(self.dtype),
            "hinge": lambda: value.sign(),
            "mse": lambda: value.sin(),
        }
        y = labels[self.loss]()
        return list(zip(x.split(self.sizes), y.split(self.sizes), strict=True))


def bounds(setting: Setting) -> rp.PoisoningRun:
    with warnings.catch_warnings():  # how wide the bounds are is not the question here
        warnings.filterwarnings("ignore", message="update .* the bounds decide no sample")
        warnings.filterwarnings("ignore", message="the budget has .*, but no batch holds more")
        return rp.abstract_gradient_training(
            setting.model(), setting.batches(), setting.budget, **setting.arguments(), domain=setting.domain,
            aggregation=setting.aggregation, rounding=setting.rounding, progress=False,
        )  # fmt: skip


def poisoned(setting: Setting, attacks: tuple[PoisoningAttack, ...] = ATTACKS) -> dict[str, Tensor]:
    """The parameters of all poisoned trainings, (trainings, *parameter)."""
    model, batches = setting.model(), setting.batches()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    found = [
        poisoned_trainings(attack, model, batches, setting.budget, **setting.arguments(), validation=(x, y),
                           seed=setting.seed).parameters
        for attack in attacks
    ]  # fmt: skip
    return {name: torch.cat([f[name] for f in found]) for name in found[0]}


def excess(run: rp.PoisoningRun, trained: dict[str, Tensor]) -> float:
    """How far the farthest parameter lies outside, relative to the size of its bounds; negative inside."""
    worst = []
    for name, p in run.parameters.items():
        out = torch.maximum(p.lower - trained[name], trained[name] - p.upper)
        worst.append((out / p.magnitude.clamp(min=1)).max().item())
    return max(worst)
