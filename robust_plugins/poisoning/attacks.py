"""Data poisoning inside a budget: what a poisoner who sees the training can do to it, batch by batch.

Every attack poisons the batch of each update for the parameters as they then are. The budget holds for each batch, so
that these poisoners are among those that `abstract_gradient_training` bounds.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robust_plugins.errors import ArgumentError
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.clipping import Clip, as_clip
from robust_plugins.poisoning.objectives import Loss, Objective, objective
from robust_plugins.poisoning.optimizers import Optimizer
from robust_plugins.poisoning.poisoned import PoisonedBatch
from robust_plugins.poisoning.search import Score, guided, random_poison
from robust_plugins.poisoning.tail import trained_names
from robust_plugins.poisoning.trainings import Trainings

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


@dataclass(frozen=True, kw_only=True)
class RandomPoisoning(PoisoningAttack):
    """Random samples, with features at random places of their sets (half of them corners) and random labels."""

    count: int = 8

    def __post_init__(self) -> None:
        _at_least_one("count", self.count)

    @property
    def name(self) -> str:  # noqa: D102 (inherited)
        return "random"

    def trainings(self, parameters: int) -> int:  # noqa: D102 (inherited)
        return self.count

    def poison(self, case: Case, trainings: Trainings, x: Tensor, y: Tensor) -> PoisonedBatch:  # noqa: D102
        return random_poison(case.budget, case.objective, x, y, trainings.count, _outputs(trainings, x), case.generator)


@dataclass(frozen=True, kw_only=True)
class LossAscent(PoisoningAttack):
    """The changes that raise the changed samples' own losses most: label flips by loss, features by gradient ascent."""

    steps: int = 4

    def __post_init__(self) -> None:
        _at_least_one("steps", self.steps)

    @property
    def name(self) -> str:  # noqa: D102 (inherited)
        return "loss ascent"

    def trainings(self, parameters: int) -> int:  # noqa: D102 (inherited)
        return 1

    def poison(self, case: Case, trainings: Trainings, x: Tensor, y: Tensor) -> PoisonedBatch:  # noqa: D102
        return _guided(case, trainings, trainings.losses, x, y, self.steps)


@dataclass(frozen=True, kw_only=True)
class GuidedPoisoning(PoisoningAttack):
    """Gives every batch the largest mean gradient along a direction of theta that ascent on its samples finds."""

    steps: int = 4

    def __post_init__(self) -> None:
        _at_least_one("steps", self.steps)

    @abstractmethod
    def direction(self, case: Case, trainings: Trainings, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """One direction for each training, of its parameters' shapes. A step goes against the gradient."""

    def poison(self, case: Case, trainings: Trainings, x: Tensor, y: Tensor) -> PoisonedBatch:  # noqa: D102
        direction = self.direction(case, trainings, x, y)
        return _guided(case, trainings, lambda x, y: trainings.scores(direction, x, y), x, y, self.steps)


@dataclass(frozen=True, kw_only=True)
class CoordinatePoisoning(GuidedPoisoning):
    """Pushes single entries of theta as far as it can: one training up and one down for each.

    `coordinates` count the entries of all trained parameters, flattened one after the other; a number is that many,
    spread evenly.
    """

    coordinates: int | tuple[int, ...] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.coordinates, int):
            _at_least_one("coordinates", self.coordinates)
        elif not self.coordinates or min(self.coordinates) < 0:
            raise ArgumentError("coordinates", self.coordinates, accepted="indices >= 0, at least one, or how many",
                                hint="They count the entries of all trained parameters.")  # fmt: skip

    def chosen(self, parameters: int) -> tuple[int, ...]:
        """The entries for a model with so many."""
        if isinstance(self.coordinates, int):
            return tuple(torch.linspace(0, parameters - 1, min(self.coordinates, parameters)).round().int().tolist())
        if max(self.coordinates) >= parameters:
            raise ArgumentError("coordinates", max(self.coordinates), accepted=f"below {parameters}",
                                hint="They count the entries of all trained parameters.")  # fmt: skip
        return self.coordinates

    @property
    def name(self) -> str:  # noqa: D102 (inherited)
        return "pushed parameters"

    def trainings(self, parameters: int) -> int:  # noqa: D102 (inherited)
        return 2 * len(self.chosen(parameters))

    def direction(self, case: Case, trainings: Trainings, x: Tensor, y: Tensor) -> dict[str, Tensor]:  # noqa: D102
        # The first of each two trainings raises its entry of theta.
        sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(trainings.count // 2)
        entry = torch.tensor(self.chosen(trainings.size)).repeat_interleave(2)
        direction = {}
        starts = accumulate((p[0].numel() for p in trainings.parameters.values()), initial=0)
        for start, (name, p) in zip(starts, trainings.parameters.items(), strict=False):
            u = torch.zeros_like(p).flatten(1)
            own = ((entry >= start) & (entry < start + u.shape[1])).nonzero().flatten()
            u[own, entry[own] - start] = sign[own].to(u)
            direction[name] = u.view_as(p)
        return direction


@dataclass(frozen=True, kw_only=True)
class GradientAlignment(GuidedPoisoning):
    """Aligns every update with the ascent of the test loss: `-g` of the poisoned batch with its gradient.

    Test samples are those of `validation`, or without them the clean batch.
    """

    @property
    def name(self) -> str:  # noqa: D102 (inherited)
        return "gradient alignment"

    def trainings(self, parameters: int) -> int:  # noqa: D102 (inherited)
        return 1

    def direction(self, case: Case, trainings: Trainings, x: Tensor, y: Tensor) -> dict[str, Tensor]:  # noqa: D102
        test = trainings.loss_gradient(*(case.validation or (x, y)))
        return {name: -g.nan_to_num() for name, g in test.items()}


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


def _guided(case: Case, trainings: Trainings, score: Score, x: Tensor, y: Tensor, steps: int) -> PoisonedBatch:
    return guided(
        case.budget, case.objective, score, x, y, trainings.count, _outputs(trainings, x), steps, case.generator
    )


def _outputs(trainings: Trainings, x: Tensor) -> int:
    if not len(x):
        return 1
    with torch.no_grad():
        return int(trainings.model(x[:1]).shape[1])


def _checked(kind: Objective, trainings: Trainings, x: Tensor, y: Tensor) -> Batch:
    device = next(iter(trainings.parameters.values())).device
    x, y = x.to(device), y.to(device)
    return x, kind.checked(y, _outputs(trainings, x)) if len(x) else y


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ArgumentError(name, value, accepted="an integer of at least 1", hint="More is stronger, and slower.")
