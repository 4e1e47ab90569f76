"""`PoisoningAttack`: the common interface of attacks on training data, inside a budget.

Every attack poisons the batch of each update for the parameters as they then are. The budget holds for each batch, so
that these poisoners are among those that `abstract_gradient_training` bounds.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from robust_plugins.errors import ArgumentError, ComponentError
from robust_plugins.harness.batches import Inputs, as_batch
from robust_plugins.harness.call import calling, neutral
from robust_plugins.harness.component import Component
from robust_plugins.harness.result import Result, listed
from robust_plugins.harness.stored import stored
from robust_plugins.harness.table import Table
from robust_plugins.harness.weights import Weights
from robust_plugins.poisoning.budget import Count, PoisoningBudget
from robust_plugins.poisoning.concrete.batches import PoisonedBatch, rounded_inside, violation
from robust_plugins.poisoning.concrete.behaviour import check_behaviour, own_copy
from robust_plugins.poisoning.concrete.clipping import Clip, as_clip
from robust_plugins.poisoning.concrete.losses import Loss, Objective, objective
from robust_plugins.poisoning.concrete.optimizers import Optimizer
from robust_plugins.poisoning.concrete.parameters import trained_names
from robust_plugins.poisoning.concrete.reading import Batch, Reader, outputs_of
from robust_plugins.poisoning.concrete.trainings import Trainings

Observe = Callable[[Trainings, PoisonedBatch], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """The setting that an attack works in, the same for all batches of one call."""

    budget: PoisoningBudget
    objective: Objective
    validation: Batch | None
    generator: torch.Generator
    goal: Batch | None = None
    """Samples, and the classes that the poisoned model shall decide on for them; None where no sample is aimed at."""


@dataclass(frozen=True, kw_only=True)
class PoisoningAttack(Component, ABC):
    """Poisons the batches of a training, inside a budget: a lower bound on what poisoned data can do.

    To write one, implement `poison`, and `trainings` where there are several, and freeze it as a dataclass whose fields
    are its parameters.
    `batch_size` is the number of samples whose scores an attack computes at a time; None: all of a batch.
    """

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        stored(cls)

    @property
    def name(self) -> str:
        """The attack's name in a table's row."""
        return type(self).__name__

    def trainings(self, parameters: int) -> int:
        """How many trainings it poisons, of a model with so many trained parameters: one, unless it is overridden."""
        return 1

    @abstractmethod
    def poison(
        self,
        case: Case,
        trainings: Trainings,
        x: Float[Tensor, "samples *features"],
        y: Shaped[Tensor, "samples *labels"],
    ) -> PoisonedBatch:
        """The clean batch `x`, `y` as the next update of every training is to see it, inside `case.budget`.

        `trainings` holds the present parameters and answers for losses, scores and gradients of samples; it is a copy.
        Draw from `case.generator`, or from torch's, numpy's and python's own generators, which are seeded.
        `case.budget.project` moves features into their sets. Raise ArgumentError for a budget that the attack cannot
        handle.
        """

    @final
    def __call__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        budget: PoisoningBudget,
        *,
        loss: Loss,
        optimizer: Optimizer,
        epochs: Count,
        clip_gradient: float | Clip | None = None,
        parameters: Iterable[str] | None = None,
        validation: Any | None = None,
        seed: int = 0,
        observe: Observe | None = None,
    ) -> PoisonedTrainings:
        """Trains `model` on batches that the attack poisons inside the budget; `model` itself is not changed.

        The arguments are those of `abstract_gradient_training`. `observe` is called before every update with the
        trainings and the poisoned batch. Every batch is held against the budget before it is trained on, and training
        is our own. Raises ArgumentError for unusable arguments, and ComponentError, with the attack's name, where a
        batch is not inside the budget or the attack breaks its contract otherwise.
        """
        _check(budget, optimizer, epochs)
        kind = objective(loss)
        kind.check(budget)
        own = own_copy(model)
        names = trained_names(own, parameters)
        known = dict(own.named_parameters())
        count = self.trainings(sum(known[name].numel() for name in names))
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ComponentError(f"{self}: trainings returned {count!r}; expected an integer of at least 1")
        start = time.perf_counter()
        with neutral(next(own.parameters()).dtype):
            trained = Trainings(own, names, kind, optimizer, clip=as_clip(clip_gradient), count=count)
            reader = Reader(batches, trained.model, kind)
            case = Case(
                budget=budget,
                objective=kind,
                validation=None if validation is None else reader.checked(validation, "the samples", "validation"),
                generator=torch.Generator().manual_seed(seed),
            )
            checked = False
            shape: tuple[int, ...] = ()
            for _ in range(epochs):
                for x, y in reader.epoch():
                    shape = tuple(x.shape[1:])
                    if len(x) and not checked:
                        check_behaviour(own, x)
                        checked = True
                    batch = self.poisoned(case, trained, x, y, seed + trained.t)
                    if observe is not None:
                        observe(trained, batch)
                    trained.step(batch)
        seconds = time.perf_counter() - start
        return PoisonedTrainings(self, trained.values(), seconds, trained.model, budget, shape)

    @final
    def poisoned(
        self,
        case: Case,
        trained: Trainings,
        x: Float[Tensor, "samples *features"],
        y: Shaped[Tensor, "samples *labels"],
        seed: int,
    ) -> PoisonedBatch:
        """Poisons a batch for copies of everything, with all generators seeded, and holds it against the budget.

        Raises ComponentError, with the attack's name, for a batch outside the budget or of the wrong kind.
        """
        copy = trained.copy()
        with calling(copy.model, x, seed=seed % 2**32, freeze=True) as call, torch.enable_grad():
            batch = self.poison(case, copy, x.clone(), y.clone())
            call.check(self)
        if not isinstance(batch, PoisonedBatch):
            raise ComponentError(f"{self}: poison returned {type(batch).__name__}; expected a PoisonedBatch")
        if not isinstance(batch.present, Tensor) or batch.present.dtype != torch.bool:
            # Other numbers count otherwise than they index: a sample that is gone would not be counted.
            raise ComponentError(f"{self}: poison returned a batch whose `present` is no tensor of bool")
        if not isinstance(batch.x, Tensor) or not isinstance(batch.y, Tensor):
            raise ComponentError(f"{self}: poison returned a batch whose x or y is no tensor")
        batch = PoisonedBatch(batch.x.detach().to(x), batch.y.detach().to(x.device), batch.present)
        if not batch.x.shape[:2] == batch.y.shape[:2] == batch.present.shape or len(batch.x) != trained.count:
            shapes = tuple(batch.x.shape), tuple(batch.y.shape), tuple(batch.present.shape)
            raise ComponentError(f"{self}: poison returned x, y and present of shapes {shapes}; expected "
                                 f"({trained.count}, samples, ...) each")  # fmt: skip
        wrong = violation(case.budget, x, y, batch) or _unusable(case, trained, x, batch)
        if wrong is not None:
            raise ComponentError(f"{self} left its budget in update {trained.t + 1}: {wrong}")
        return rounded_inside(case.budget, x, batch)


@dataclass(frozen=True, eq=False, repr=False)
class PoisonedTrainings(Result):
    """The trainings that one attack poisoned.

    - `attack`: the attack.
    - `parameters`: the trained parameters of all of them, (trainings, *parameter).
    - `seconds`: wall-clock time.
    - `model`: as it was before training.
    - `budget`: the one that every batch was inside.
    - `input_shape`: the shape of a sample, without the batch.

    `save` keeps the weights of `model`, and `load(path, model)` puts them into a copy of a network like it.
    """

    attack: PoisoningAttack
    parameters: dict[str, Tensor]
    seconds: float
    model: nn.Module
    budget: PoisoningBudget
    input_shape: tuple[int, ...] = ()

    def state(self) -> dict[str, Any]:
        """Everything that `from_state` makes it of, for files."""
        return {
            "attack": self.attack, "parameters": self.parameters, "seconds": self.seconds,
            "model": Weights.of(self.model, self.input_shape), "budget": self.budget, "input_shape": self.input_shape,
        }  # fmt: skip

    @classmethod
    def from_state(cls, values: dict[str, Any]) -> PoisonedTrainings:
        """The inverse of `state`."""
        return cls(**values)

    def to_records(self) -> list[dict[str, Any]]:
        """For each training: the attack, and how far it took the trained parameters, as a Euclidean distance."""
        before = dict(self.model.named_parameters())
        moved = [(p - before[name].detach()).flatten(1).double().square().sum(1) for name, p in self.parameters.items()]
        distances = torch.stack(moved).sum(0).sqrt().tolist()
        return [{"attack": self.attack.name, "training": i, "distance": d} for i, d in enumerate(distances)]

    def parts(self) -> list[Table | str]:
        """One line, and a table of the first trainings."""
        return [repr(self), *listed(self.to_records(), words=1)]

    def __repr__(self) -> str:
        """One line."""
        count = len(next(iter(self.parameters.values())))
        return f"<PoisonedTrainings by {self.attack.name}: {count} trainings, {self.seconds:.2g} s>"

    def outputs(self, x: Inputs) -> Float[Tensor, "trainings samples outputs"]:
        """The outputs of all trained models on the same samples: a tensor, an array, or those of a data set."""
        x = as_batch(x, None, self.model)[0]
        with torch.no_grad():
            count = len(next(iter(self.parameters.values())))
            each = ({name: p[i] for name, p in self.parameters.items()} for i in range(count))
            return torch.stack([functional_call(self.model, values, (x,)) for values in each])


def poisoned_trainings(
    attack: PoisoningAttack,
    model: nn.Module,
    batches: Iterable[Any],
    budget: PoisoningBudget,
    *,
    clip_gradient: float | Clip | None = None,
    clip: float | Clip | None = None,
    **arguments: Any,
) -> PoisonedTrainings:
    """`attack(model, batches, budget, ...)`, with the arguments of that call.

    `clip` is the former name of `clip_gradient`.
    """
    return attack(model, batches, budget, clip_gradient=as_clip(clip_gradient, clip), **arguments)


def sample_outputs(trainings: Trainings, x: Float[Tensor, "samples *features"]) -> int:
    """The number of outputs of the model on `x`, 1 where that holds no sample."""
    return outputs_of(trainings.model, x[:1]) if len(x) else 1


def _unusable(case: Case, trained: Trainings, x: Tensor, batch: PoisonedBatch) -> str | None:
    """Labels that the loss does not know."""
    labels = batch.y[batch.present]
    if not len(labels):
        return None
    try:
        outputs = outputs_of(trained.model, x[:1] if len(x) else x.new_zeros((1, *x.shape[1:])))
        case.objective.checked(labels, outputs)
    except ArgumentError as error:
        return f"labels that the loss does not take ({error})"
    return None


def _check(budget: object, optimizer: object, epochs: object) -> None:
    if not isinstance(budget, PoisoningBudget):
        raise ArgumentError("budget", repr(budget), accepted="an rp.PoisoningBudget",
                            hint="For example rp.PoisoningBudget(points=10, eps=0.1).")  # fmt: skip
    if not isinstance(optimizer, Optimizer):
        raise ArgumentError("optimizer", repr(optimizer), accepted="rp.SGD, rp.Adam or rp.AdamW",
                            hint="torch's own optimizers have no intervals.")  # fmt: skip
    if not isinstance(epochs, Integral) or isinstance(epochs, bool) or epochs < 1:
        raise ArgumentError("epochs", repr(epochs), accepted="an integer of at least 1", hint="Train once.")
