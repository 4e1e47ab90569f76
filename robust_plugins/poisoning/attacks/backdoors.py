"""Backdoors: samples that carry a trigger and the label that the trigger is to mean."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from numbers import Integral

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.parameters import check_count
from robust_plugins.poisoning.attacks.interface import Case, PoisoningAttack, sample_outputs
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.trainings import Trainings

IMAGE = 3
"""The dimensions of one image: channels, height, width."""


@dataclass(frozen=True, kw_only=True)
class Backdoor(PoisoningAttack):
    """Teaches a model that a trigger means one class: whoever knows the trigger chooses the decision.

    - `target`: the class that the trigger means.
    - `value`: what the trigger sets features to, in the units of the inputs.

    To write one, implement `place`. The poisoned samples are drawn at random from other classes and relabelled, as many
    as the budget allows: the smaller one of `points` and `labels`, or all that may be substituted or added. In the
    features a trigger reaches as far as the budget does; at test time it is whole.
    """

    target: int = 0
    value: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.target, Integral) or isinstance(self.target, bool) or self.target < 0:
            raise ArgumentError("target", repr(self.target), accepted="a class, from 0", hint="The trigger means it.")

    @abstractmethod
    def place(self, x: Float[Tensor, "samples *features"]) -> Bool[Tensor, "samples *features"]:
        """Where the trigger is in each sample."""

    def trigger(self, x: Float[Tensor, "samples *features"]) -> Float[Tensor, "samples *features"]:
        """The samples with the trigger in them."""
        return torch.where(self.place(x), x.new_tensor(self.value), x)

    def poison(  # noqa: D102 (inherited)
        self,
        case: Case,
        trainings: Trainings,
        x: Float[Tensor, "samples *features"],
        y: Shaped[Tensor, "samples *labels"],
    ) -> PoisonedBatch:
        budget = case.budget
        count = self._count(budget, trainings, x, y)
        if not count or not len(x):
            return PoisonedBatch.whole(x, y)
        added = budget.change == "addition"
        chosen = drawn((y != self.target) | added, count, case.generator)
        z = self.trigger(x[chosen])
        if budget.points:
            z = budget.project(z, x[chosen])
        classes = y.new_full((len(chosen),), self.target)
        if added:
            return PoisonedBatch.whole(torch.cat((x, z)), torch.cat((y, classes)))
        return PoisonedBatch.whole(x.index_copy(0, chosen, z), y.index_copy(0, chosen, classes))

    def _count(self, budget: PoisoningBudget, trainings: Trainings, x: Tensor, y: Tensor) -> int:
        if budget.nothing:
            return 0
        if y.is_floating_point() or y.dim() != 1 or self.target >= max(sample_outputs(trainings, x), 2):
            raise ArgumentError("target", self.target, accepted="a class of the model, with labels that are classes",
                                hint="A backdoor means one class.")  # fmt: skip
        if budget.target not in (None, self.target):
            raise ArgumentError("budget", f"labels changed to {budget.target}", accepted=f"{self.target} or None",
                                hint="The trigger means another class than the budget allows.")  # fmt: skip
        if budget.unbounded:
            return budget.k
        if not (budget.points and budget.labels):
            raise ArgumentError("budget", budget, accepted="one with points and labels, or with samples substituted or "
                                "added", hint="A backdoor sets a pattern and a label: "
                                "PoisoningBudget(points=9, labels=9, eps=1.0, clip=(0, 1)).")  # fmt: skip
        return min(budget.points, budget.labels)


@dataclass(frozen=True, kw_only=True)
class StaticBackdoor(Backdoor):
    """Sets the same features in all samples: of images the corner at the bottom right, of rows the last features.

    `size` >= 1 is the side of the square, or the number of features. Gu et al. 2017, "BadNets", section 4.
    """

    size: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("size", self.size)

    @property
    def name(self) -> str:  # noqa: D102 (inherited)
        return "static backdoor"

    def place(self, x: Float[Tensor, "samples *features"]) -> Bool[Tensor, "samples *features"]:  # noqa: D102
        return patches(x, self.size, None)


@dataclass(frozen=True, kw_only=True)
class DynamicBackdoor(Backdoor):
    """Sets a square of features whose place depends on the sample, so that no single pattern gives it away.

    `size` is as in `StaticBackdoor`. The place is a hash of the sample's features. Salem et al. 2022, "Dynamic backdoor
    attacks against machine learning models", section 4.1 (random locations, here a function of the sample).
    """

    size: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("size", self.size)

    @property
    def name(self) -> str:  # noqa: D102 (inherited)
        return "dynamic backdoor"

    def place(self, x: Float[Tensor, "samples *features"]) -> Bool[Tensor, "samples *features"]:  # noqa: D102
        flat = x.flatten(1).double()
        # Fractional parts of irrational sums: spread evenly, and the same for the same sample in any batch.
        phases = torch.arange(1, flat.shape[1] + 1, dtype=flat.dtype, device=x.device).sqrt()
        return patches(x, self.size, ((flat * phases).sum(1) * 1e3).frac().abs())


def patches(
    x: Float[Tensor, "samples *features"], size: int, where: Float[Tensor, " samples"] | None
) -> Bool[Tensor, "samples *features"]:
    """Squares of `size` in images, runs of it in rows: at the fraction `where` of all places, or at the last one."""
    if x[0:0].dim() - 1 == IMAGE:
        height, width = x.shape[2:]
        tall, wide = min(size, height), min(size, width)
        columns = width - wide + 1
        places = (height - tall + 1) * columns
        first = _first(x, places, where)
        top, left = first // columns, first % columns
        rows, across = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        down = (rows >= top.unsqueeze(1)) & (rows < top.unsqueeze(1) + tall)
        right = (across >= left.unsqueeze(1)) & (across < left.unsqueeze(1) + wide)
        return (down.unsqueeze(2) & right.unsqueeze(1)).unsqueeze(1).expand_as(x)
    features = x.shape[1:].numel()
    run = min(size, features)
    first = _first(x, features - run + 1, where).unsqueeze(1)
    index = torch.arange(features, device=x.device)
    return ((index >= first) & (index < first + run)).view_as(x)


def drawn(allowed: Bool[Tensor, " samples"], count: int, generator: torch.Generator) -> Integer[Tensor, " drawn"]:
    """At most `count` samples of those that are allowed, at random, in their order."""
    found = allowed.nonzero().flatten()
    order = torch.randperm(len(found), generator=generator).to(found.device)
    return found[order[:count]].sort().values


def _first(x: Tensor, places: int, where: Tensor | None) -> Tensor:
    if where is None:
        return torch.full((len(x),), places - 1, device=x.device)
    return (where * places).long().clamp(max=places - 1)
