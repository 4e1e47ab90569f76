"""The conformance checks of an attack on training data. Each takes it and fails with a sentence: what is wrong."""

from __future__ import annotations

import random
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robust_plugins.balls import Linf
from robust_plugins.errors import ArgumentError, ComponentError
from robust_plugins.poisoning.attacks.interface import PoisonedTrainings, PoisoningAttack
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.clipping import Clip
from robust_plugins.poisoning.concrete.losses import objective
from robust_plugins.poisoning.concrete.optimizers import SGD
from robust_plugins.poisoning.concrete.trainings import Trainings
from robust_plugins.testing.networks import Case
from robust_plugins.testing.traces import leaves_no_trace

BUDGETS = (
    PoisoningBudget(points=2, eps=0.1),
    PoisoningBudget(points=1, eps=(0.2, 0.0, 0.1), norm="l2", clip=(-1.0, 1.0)),
    PoisoningBudget(points=2, eps=0.3, norm="l1", columns=(0, 2)),
    PoisoningBudget(points=9, eps=0.1),
    PoisoningBudget(labels=2),
    PoisoningBudget(labels=1, target=1),
    PoisoningBudget(points=1, eps=0.1, labels=2),
    PoisoningBudget(points=2, eps=0.1, labels=1, paired=True),
    PoisoningBudget.substitution(2),
    PoisoningBudget.addition(2),
    PoisoningBudget.removal(2),
    PoisoningBudget.removal(9),
)
REGRESSION = (
    PoisoningBudget(labels=2, label_radius=0.2),
    PoisoningBudget(points=1, eps=0.1, labels=1, label_radius=1.0),
)
_SIZES = (6, 4, 0, 1)


def is_frozen_data(attack: PoisoningAttack) -> None:
    """The attack is a frozen dataclass: printable, comparable and hashable by its parameters."""
    assert is_dataclass(attack), "the attack is no dataclass"
    assert attack == replace(attack), "a copy with the same parameters differs"
    assert hash(attack) == hash(replace(attack))
    with pytest.raises(AttributeError):
        setattr(attack, fields(attack)[0].name, None)


def batches_respect_the_budget(attack: PoisoningAttack) -> None:
    """Every batch is inside every budget that the attack handles; it handles one at least."""
    tried = 0
    for budget, loss in (*((b, "cross_entropy") for b in BUDGETS), *((b, "mse") for b in REGRESSION)):
        try:
            found = _attacked(attack, budget, loss=loss)
        except ComponentError as error:
            raise AssertionError(f"within {budget}: {error}") from error
        except ArgumentError:
            continue
        tried += 1
        for name, p in found.parameters.items():
            assert p.isfinite().all(), f"{name} is not finite within {budget}"
    assert tried, "the attack handles none of the budgets"


def no_budget_leaves_the_data(attack: PoisoningAttack) -> None:
    """Where nothing may change, every training is the clean one."""
    seen: list[PoisonedBatch] = []
    try:
        _attacked(attack, PoisoningBudget(), observe=lambda _, batch: seen.append(batch))
    except ArgumentError:
        return
    for (x, y), batch in zip(_batches(), seen, strict=True):
        assert torch.equal(batch.x, x.expand_as(batch.x)), "features changed without a budget"
        assert torch.equal(batch.y, y.expand_as(batch.y)), "labels changed without a budget"
        assert batch.present.all(), "samples vanished without a budget"


def trainings_are_those_of_its_batches(attack: PoisoningAttack) -> None:
    """Training on the batches that the attack made, one after the other, gives the parameters that it reports."""
    budget = _budget(attack)
    seen: list[PoisonedBatch] = []
    found = _attacked(attack, budget, observe=lambda _, batch: seen.append(batch))
    for i in range(len(next(iter(found.parameters.values())))):
        own = Trainings(_model(), list(found.parameters), objective("cross_entropy"), SGD(lr=0.2), clip=Clip(0.5))
        for batch in seen:
            own.step(PoisonedBatch.whole(*batch.of(i)))
        for name, value in own.values().items():
            torch.testing.assert_close(found.parameters[name][i], value[0], rtol=1e-9, atol=1e-9)


def seed_reproduces(attack: PoisoningAttack) -> None:
    """The same seed gives the same trainings, whatever the global random states are."""
    budget = _budget(attack)
    first = _attacked(attack, budget, seed=3)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 (the global state is what backends draw from)
    random.seed(99)
    again = _attacked(attack, budget, seed=3)
    for name, p in first.parameters.items():
        assert torch.equal(p, again.parameters[name]), f"{name} differs for the same seed"


def model_is_left_as_found(attack: PoisoningAttack) -> None:
    """Modes, gradients, flags, data and random states are as before, also under no_grad."""
    budget, (x, y) = _budget(attack), _batches()[0]
    case = Case(_model(), x, y, Linf(eps=0.1, clip=None))
    with leaves_no_trace(case):
        _attacked(attack, budget, model=case.model)
    with torch.no_grad(), leaves_no_trace(case):
        _attacked(attack, budget, model=case.model)


def dtype_is_kept(attack: PoisoningAttack) -> None:
    """float32 works, and comes back."""
    found = _attacked(attack, _budget(attack), dtype=torch.float32)
    for name, p in found.parameters.items():
        assert p.dtype == torch.float32, f"{name} came back as {p.dtype}"


def wrong_arguments_are_refused(attack: PoisoningAttack) -> None:
    """NaN, labels out of range, one label for all samples, another dtype, other batches in each epoch."""
    (x, y), *_ = _batches()
    budget = _budget(attack)
    for batches in ([(torch.full_like(x, torch.nan), y)], [(x, y + 3)], [(x, y[:1])], [(x.float(), y)], (x, y)):
        with pytest.raises(ArgumentError):
            _attacked(attack, budget, batches=batches)


def _model(outputs: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, outputs)).double()


def _batches(loss: str = "cross_entropy") -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand((sum(_SIZES), 3), generator=draw, dtype=torch.float64)
    y = x[:, 0] if loss == "mse" else (3 * x[:, 0]).long()
    return list(zip(x.split(_SIZES), y.split(_SIZES), strict=True))


def _attacked(
    attack: PoisoningAttack,
    budget: PoisoningBudget,
    *,
    loss: Any = "cross_entropy",
    model: nn.Module | None = None,
    batches: Any = None,
    dtype: torch.dtype = torch.float64,
    **more: Any,
) -> PoisonedTrainings:
    model = _model(1 if loss == "mse" else 3).to(dtype) if model is None else model
    if batches is None:
        batches = [(x.to(dtype), y.to(dtype) if loss == "mse" else y) for x, y in _batches(loss)]
    return attack(model, batches, budget, loss=loss, optimizer=SGD(lr=0.2), epochs=1, clip_gradient=0.5, **more)


def _budget(attack: PoisoningAttack) -> PoisoningBudget:
    """The first budget that the attack handles."""
    for budget in BUDGETS:
        try:
            _attacked(attack, budget)
        except ArgumentError:
            continue
        except ComponentError:
            pass
        return budget
    raise AssertionError("the attack handles none of the budgets")


poisoning_attack_checks = [
    is_frozen_data,
    batches_respect_the_budget,
    no_budget_leaves_the_data,
    trainings_are_those_of_its_batches,
    seed_reproduces,
    model_is_left_as_found,
    dtype_is_kept,
    wrong_arguments_are_refused,
]
"""For `pytest.mark.parametrize("check", poisoning_attack_checks)`; each check takes the attack."""
