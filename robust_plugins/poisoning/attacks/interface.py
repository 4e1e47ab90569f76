"""Data poisoning inside a budget: what a poisoner who sees the training can do to it, batch by batch.

Every attack poisons the batch of each update for the parameters as they then are. The budget holds for each batch, so
that these poisoners are among those that `abstract_gradient_training` bounds.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robust_plugins.poisoning.abstract.split import trained_names
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.clipping import Clip, as_clip
from robust_plugins.poisoning.concrete.losses import Loss, Objective, objective
from robust_plugins.poisoning.concrete.optimizers import Optimizer
from robust_plugins.poisoning.concrete.trainings import Trainings

Batch = tuple[Tensor, Tensor]
Observe = Callable[[Trainings, PoisonedBatch], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """What an attack knows besides the trainings and the batch."""

    budget: PoisoningBudget
    objective: Objective
    validation: Batch | None
    generator: torch.Generator


@dataclass(frozen=True, kw_only=True)
class PoisoningAttack(ABC):
    """An attack: how many trainings it poisons, and how it poisons a batch of each."""

    @property
    @abstractmethod
    def name(self) -> str:
        """In a table's row."""

    @abstractmethod
    def trainings(self, parameters: int) -> int:
        """How many trainings it makes of a model with so many trained parameters."""

    @abstractmethod
    def poison(self, case: Case, trainings: Trainings, x: Tensor, y: Tensor) -> PoisonedBatch:
        """The batch, inside the budget, as the next update of every training is to see it."""


@dataclass(frozen=True, eq=False)
class PoisonedTrainings:
    """The trainings that one attack poisoned."""

    attack: PoisoningAttack
    parameters: dict[str, Tensor]
    """The trained parameters of all of them, (trainings, *parameter)."""
    seconds: float
    model: nn.Module
    """As it was before training."""

    def outputs(self, x: Tensor) -> Tensor:
        """The outputs of all trained models on the same samples, (trainings, samples, outputs)."""
        with torch.no_grad():
            count = len(next(iter(self.parameters.values())))
            each = ({name: p[i] for name, p in self.parameters.items()} for i in range(count))
            return torch.stack([functional_call(self.model, values, (x,)) for values in each])


def poisoned_trainings(
    attack: PoisoningAttack,
    model: nn.Module,
    batches: Iterable[Batch],
    budget: PoisoningBudget,
    *,
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    clip: float | Clip | None = None,
    parameters: Iterable[str] | None = None,
    validation: Batch | None = None,
    seed: int = 0,
    observe: Observe | None = None,
) -> PoisonedTrainings:
    """Trains `model` on batches that `attack` poisons inside the budget; `model` itself is not changed.

    The arguments are those of `abstract_gradient_training`. `observe` is called before every update with the trainings
    and the poisoned batch.
    """
    kind = objective(loss)
    kind.check(budget)
    names = trained_names(model, parameters)
    known = dict(model.named_parameters())
    count = attack.trainings(sum(known[name].numel() for name in names))
    trainings = Trainings(model, names, kind, optimizer, clip=as_clip(clip), count=count)
    case = Case(
        budget=budget,
        objective=kind,
        validation=None if validation is None else _checked(kind, trainings, *validation),
        generator=torch.Generator().manual_seed(seed),
    )
    start = time.perf_counter()
    for _ in range(epochs):
        for x, y in batches:
            x, y = _checked(kind, trainings, x, y)
            batch = attack.poison(case, trainings, x, y)
            if observe is not None:
                observe(trainings, batch)
            trainings.step(batch)
    model = trainings.model
    return PoisonedTrainings(attack, trainings.values(), time.perf_counter() - start, model)


def outputs_of(trainings: Trainings, x: Tensor) -> int:
    """The number of outputs of the model on `x`, 1 where that holds no sample."""
    if not len(x):
        return 1
    with torch.no_grad():
        return int(trainings.model(x[:1]).shape[1])


def _checked(kind: Objective, trainings: Trainings, x: Tensor, y: Tensor) -> Batch:
    device = next(iter(trainings.parameters.values())).device
    x, y = x.to(device), y.to(device)
    return x, kind.checked(y, outputs_of(trainings, x)) if len(x) else y
