"""The poisoning attacks of this package, from random changes to pushes of single parameters."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.component import chunks
from robust_plugins.harness.parameters import check_count
from robust_plugins.poisoning.attacks.interface import Case, PoisoningAttack, sample_outputs
from robust_plugins.poisoning.attacks.search import Score, guided, random_poison
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.trainings import Trainings


@dataclass(frozen=True, kw_only=True)
class RandomPoisoning(PoisoningAttack):
    """Random samples, with features at random places of their sets (half of them corners) and random labels.

    - `batch_size`: how many samples are handed to the backend at a time; None lets the component choose.
    - `count`: how many trainings are poisoned.
    """

    count: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("count", self.count)

    @property
    def name(self) -> str:  # noqa: D102 (inherited)
        return "random"

    def trainings(self, parameters: int) -> int:  # noqa: D102 (inherited)
        return self.count

    def poison(  # noqa: D102 (inherited)
        self,
        case: Case,
        trainings: Trainings,
        x: Float[Tensor, "samples *features"],
        y: Shaped[Tensor, "samples *labels"],
    ) -> PoisonedBatch:
        return random_poison(
            case.budget, case.objective, x, y, trainings.count, sample_outputs(trainings, x), case.generator
        )


@dataclass(frozen=True, kw_only=True)
class LossAscent(PoisoningAttack):
    """The changes that raise the changed samples' own losses most: label flips by loss, features by gradient ascent.

    - `batch_size`: how many samples are handed to the backend at a time; None lets the component choose.
    - `steps`: gradient steps on the features, of every update.
    """

    steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)

    @property
    def name(self) -> str:  # noqa: D102 (inherited)
        return "loss ascent"

    def poison(  # noqa: D102 (inherited)
        self,
        case: Case,
        trainings: Trainings,
        x: Float[Tensor, "samples *features"],
        y: Shaped[Tensor, "samples *labels"],
    ) -> PoisonedBatch:
        return _guided(case, trainings, trainings.losses, x, y, self.steps, self.batch_size)


@dataclass(frozen=True, kw_only=True)
class GuidedPoisoning(PoisoningAttack):
    """Gives every batch the largest mean gradient along a direction of theta that ascent on its samples finds."""

    steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)

    @abstractmethod
    def direction(
        self,
        case: Case,
        trainings: Trainings,
        x: Float[Tensor, "samples *features"],
        y: Shaped[Tensor, "samples *labels"],
    ) -> dict[str, Tensor]:
        """One direction for each training, of its parameters' shapes. A step goes against the gradient."""

    def poison(  # noqa: D102 (inherited)
        self,
        case: Case,
        trainings: Trainings,
        x: Float[Tensor, "samples *features"],
        y: Shaped[Tensor, "samples *labels"],
    ) -> PoisonedBatch:
        direction = self.direction(case, trainings, x, y)
        return _guided(
            case, trainings, lambda x, y: trainings.scores(direction, x, y), x, y, self.steps, self.batch_size
        )


@dataclass(frozen=True, kw_only=True)
class CoordinatePoisoning(GuidedPoisoning):
    """Pushes single entries of theta as far as it can: one training up and one down for each.

    `coordinates` count the entries of all trained parameters, flattened one after the other; a number is that many,
    spread evenly.

    - `batch_size`: how many samples are handed to the backend at a time; None lets the component choose.
    - `steps`: gradient steps on the features, of every update.
    - `coordinates`: which entries of all trained parameters, flattened one after the other; a number is that many,
      spread evenly.
    """

    coordinates: int | tuple[int, ...] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.coordinates, int):
            check_count("coordinates", self.coordinates)
        else:
            object.__setattr__(self, "coordinates", tuple(self.coordinates))
        if isinstance(self.coordinates, tuple) and (not self.coordinates or min(self.coordinates) < 0):
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

    def direction(  # noqa: D102 (inherited)
        self,
        case: Case,
        trainings: Trainings,
        x: Float[Tensor, "samples *features"],
        y: Shaped[Tensor, "samples *labels"],
    ) -> dict[str, Tensor]:
        # The first of each two trainings raises its entry of theta.
        sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(trainings.count // 2)
        entry = torch.tensor(self.chosen(trainings.size)).repeat_interleave(2)
        direction = {}
        starts = accumulate((p[0].numel() for p in trainings.parameters.values()), initial=0)
        for start, (name, p) in zip(starts, trainings.parameters.items(), strict=False):
            u = p.new_zeros((len(p), p[0].numel()))  # of a single number, too
            own = ((entry >= start) & (entry < start + u.shape[1])).nonzero().flatten()
            u[own, entry[own] - start] = sign[own].to(u)
            direction[name] = u.view_as(p)
        return direction


@dataclass(frozen=True, kw_only=True)
class GradientAlignment(GuidedPoisoning):
    """Aligns every update with the ascent of the test loss: `-g` of the poisoned batch with its gradient.

    Test samples are those of `validation`, or without them the clean batch.

    - `batch_size`: how many samples are handed to the backend at a time; None lets the component choose.
    - `steps`: gradient steps on the features, of every update.
    """

    @property
    def name(self) -> str:  # noqa: D102 (inherited)
        return "gradient alignment"

    def direction(  # noqa: D102 (inherited)
        self,
        case: Case,
        trainings: Trainings,
        x: Float[Tensor, "samples *features"],
        y: Shaped[Tensor, "samples *labels"],
    ) -> dict[str, Tensor]:
        test = trainings.loss_gradient(*(case.validation or (x, y)))
        return {name: -g.nan_to_num() for name, g in test.items()}


def _guided(
    case: Case, trainings: Trainings, score: Score, x: Tensor, y: Tensor, steps: int, size: int | None
) -> PoisonedBatch:
    def in_parts(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([score(x[:, part], y[:, part]) for part in chunks(x.shape[1], size)], 1)

    return guided(
        case.budget,
        case.objective,
        in_parts if size else score,
        x,
        y,
        trainings.count,
        sample_outputs(trainings, x),
        steps,
        case.generator,
    )
