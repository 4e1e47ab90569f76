"""Attacks on training data: the built-in ones pass the conformance checks, broken ones are caught and named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from support.inclusion import Setting
from torch import Tensor

import robust_plugins as rp
from robust_plugins.errors import ArgumentError, ComponentError, PluginError, UnknownNameError
from robust_plugins.poisoning.attacks.interface import Case
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.trainings import Trainings
from robust_plugins.testing import fresh_registry, poisoning, poisoning_attack_checks  # noqa: F401 (a fixture)

BUILTINS: dict[str, dict[str, Any]] = {
    "poison:random": {"count": 3},
    "poison:loss-ascent": {"batch_size": 2},
    "poison:alignment": {"steps": 2},
    "poison:coordinates": {"coordinates": 2, "steps": 1},
    "poison:backdoor": {"target": 1},
    "poison:dynamic-backdoor": {"target": 1},
    "poison:bullseye": {"steps": 2},
    "art:clean-label-backdoor": {"target": 1, "steps": 2},
    "art:feature-collision": {"steps": 2},
    "art:gradient-matching": {"steps": 2},
    "art:sleeper-agent": {"target": 1, "steps": 2},
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("check", poisoning_attack_checks)
@pytest.mark.parametrize("name", BUILTINS)
def test_built_in_attacks_pass(name: str, check: Any) -> None:
    check(rp.poisoning_attack(name, **BUILTINS[name]))


def test_none_is_forgotten(fresh_registry: Any) -> None:  # noqa: F811
    """An attack that is registered later must be added here."""
    assert set(BUILTINS) == {info.name for info in rp.poisoning_attacks()}


@dataclass(frozen=True, kw_only=True)
class Clean(rp.PoisoningAttack):
    """Changes nothing, and is the base of those that change too much."""

    def poison(self, case: Case, trainings: Trainings, x: Tensor, y: Tensor) -> PoisonedBatch:
        return self.changed(case, trainings, PoisonedBatch.whole(x, y))

    def changed(self, case: Case, trainings: Trainings, batch: PoisonedBatch) -> PoisonedBatch:
        return batch


class Far(Clean):
    def changed(self, case: Case, trainings: Trainings, batch: PoisonedBatch) -> PoisonedBatch:
        return replace(batch, x=batch.x + 100)


class OneTooMany(Clean):
    def changed(self, case: Case, trainings: Trainings, batch: PoisonedBatch) -> PoisonedBatch:
        x, count = batch.x.clone(), case.budget.points + 1
        x[:, :count] = case.budget.box(x[0]).upper[:count] if case.budget.points else x[:, :count]
        return replace(batch, x=x)


class OutOfRange(Clean):
    """Moves one sample by its radius, whatever the valid range of features is."""

    def changed(self, case: Case, trainings: Trainings, batch: PoisonedBatch) -> PoisonedBatch:
        if not case.budget.points:
            return batch
        x = batch.x.clone()
        x[:, :1] += case.budget.radius(x[0])
        return replace(batch, x=x)


class Unknown(Clean):
    """Gives samples a class that the model does not have."""

    def changed(self, case: Case, trainings: Trainings, batch: PoisonedBatch) -> PoisonedBatch:
        y = batch.y.clone()
        y[:, :1] = 7
        return replace(batch, y=y)


class Vanishing(Clean):
    def changed(self, case: Case, trainings: Trainings, batch: PoisonedBatch) -> PoisonedBatch:
        return replace(batch, present=torch.zeros_like(batch.present))


class Uncounted(Clean):
    """Takes all samples away by numbers, of which none counts as missing: ~0 is -1."""

    def changed(self, case: Case, trainings: Trainings, batch: PoisonedBatch) -> PoisonedBatch:
        return replace(batch, present=torch.zeros_like(batch.present, dtype=torch.int64))


class Copied(Clean):
    """Adds every sample once more."""

    def changed(self, case: Case, trainings: Trainings, batch: PoisonedBatch) -> PoisonedBatch:
        return PoisonedBatch(*(torch.cat([t, t], 1) for t in (batch.x, batch.y, batch.present)))


class NotFinite(Clean):
    def changed(self, case: Case, trainings: Trainings, batch: PoisonedBatch) -> PoisonedBatch:
        return replace(batch, x=batch.x * torch.inf)


class Unseeded(Clean):
    def changed(self, case: Case, trainings: Trainings, batch: PoisonedBatch) -> PoisonedBatch:
        unseeded = torch.Generator()
        unseeded.seed()
        far = torch.rand(batch.x.shape, generator=unseeded, dtype=batch.x.dtype)
        x = batch.x.clone()
        if case.budget.points and x.shape[1]:
            x[0, :1] = case.budget.project(x[0] + far[0] - 0.5, x[0])[:1]
        return replace(batch, x=x)


class Writes(Clean):
    """Trains the trainings itself, which are copies, and spoils the data, which are copies too."""

    def changed(self, case: Case, trainings: Trainings, batch: PoisonedBatch) -> PoisonedBatch:
        whole = PoisonedBatch(batch.x.clone(), batch.y.clone(), batch.present)
        for p in trainings.parameters.values():
            p.fill_(100.0)
        batch.x.fill_(100.0)
        return whole


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("check", poisoning_attack_checks)
@pytest.mark.parametrize("attack", [Clean(), Writes()], ids=lambda a: a.name)
def test_what_stays_inside_passes(attack: rp.PoisoningAttack, check: Any) -> None:
    check(attack)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("attack", "check"), [
    (Far(), poisoning.batches_respect_the_budget),
    (OneTooMany(), poisoning.batches_respect_the_budget),
    (OutOfRange(), poisoning.batches_respect_the_budget),
    (Unknown(), poisoning.batches_respect_the_budget),
    (Vanishing(), poisoning.batches_respect_the_budget),
    (Uncounted(), poisoning.batches_respect_the_budget),
    (Copied(), poisoning.batches_respect_the_budget),
    (NotFinite(), poisoning.batches_respect_the_budget),
    (Unseeded(), poisoning.seed_reproduces),
], ids=lambda value: getattr(value, "__name__", type(value).__name__))  # fmt: skip
def test_a_broken_attack_is_caught(attack: rp.PoisoningAttack, check: Any) -> None:
    with pytest.raises(AssertionError):
        check(attack)


SETTING = Setting(budget=rp.PoisoningBudget(points=1, eps=0.01, clip=(-3.0, 3.0)), epochs=1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("attack", "said"), [
    (Far(), r"Far\(.*\) left its budget in update 1: 6 samples moved, 1 are allowed"),
    (OneTooMany(), "2 samples moved, 1 are allowed"), (Unknown(), "1 labels changed, 0 are allowed"),
    (Vanishing(), "6 samples removed, 0 are allowed"), (Uncounted(), "no tensor of bool"),
    (Copied(), "12 places for a batch of 6"),
    (NotFinite(), "not finite"),
], ids=lambda value: getattr(value, "name", ""))  # fmt: skip
def test_the_attack_is_blamed_and_no_certifier(attack: rp.PoisoningAttack, said: str) -> None:
    arguments: dict[str, Any] = {**SETTING.arguments(), "progress": False}
    with pytest.raises(ComponentError, match=said):
        rp.poisoning_bracket(SETTING.model(), SETTING.batches(), SETTING.budget, attacks=[attack], **arguments)


def test_what_rounding_carries_out_is_carried_back() -> None:
    class Rounded(Clean):
        def changed(self, case: Case, trainings: Trainings, batch: PoisonedBatch) -> PoisonedBatch:
            x = batch.x.clone()
            x[:, :1] += case.budget.radius(x[0]) * (1 + 1e-9)
            return replace(batch, x=x)

    seen: list[PoisonedBatch] = []
    Rounded()(SETTING.model(), SETTING.batches(), SETTING.budget, observe=lambda _, b: seen.append(b),
              **SETTING.arguments())  # fmt: skip
    for (x, _), batch in zip(SETTING.batches(), seen, strict=True):
        assert bool((batch.x <= SETTING.budget.box(x).upper).all())
        assert not torch.equal(batch.x[0], x)


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_the_number_of_trainings_is_checked(count: Any, unchecked: None) -> None:
    class Counted(Clean):
        def trainings(self, parameters: int) -> int:
            found: int = count
            return found

    with pytest.raises(ComponentError, match="trainings returned"):
        Counted()(SETTING.model(), SETTING.batches(), SETTING.budget, **SETTING.arguments())


def test_the_call_is_final() -> None:
    with pytest.raises(ComponentError, match="which is final"):

        class Own(Clean):
            def __call__(self, *given: Any, **more: Any) -> Any:  # type: ignore[override, misc]
                return None


class Lab:
    """A third party's plugin."""

    @rp.hookimpl
    def register_poisoning_attacks(self, register: Any) -> None:
        register("lab:clean", Clean)
        register("lab:wrong", dict)


def test_plugins_offer_attacks_by_name(fresh_registry: Any, unchecked: None) -> None:  # noqa: F811
    rp.register(Lab(), "lab")
    assert rp.poisoning_attack("lab:clean", batch_size=3) == Clean(batch_size=3)
    assert {"lab:clean", "poison:random"} <= {info.name for info in rp.poisoning_attacks()}
    found = rp.poisoning_bracket(SETTING.model(), SETTING.batches(), SETTING.budget, **SETTING.arguments(),
                                 attacks=["lab:clean", "poison:random(count=2)"], progress=False)  # fmt: skip
    assert [(row.attack, row.trainings) for row in found.rows] == [("lab:clean", 1), ("poison:random(count=2)", 2)]
    with pytest.raises(UnknownNameError, match="poison:random"):
        rp.poisoning_attack("poison:randm")
    with pytest.raises(PluginError, match=r"no rp.PoisoningAttack"):
        rp.poisoning_attack("lab:wrong")
    with pytest.raises(ArgumentError, match="`attacks`"):
        rp.poisoning_bracket(SETTING.model(), SETTING.batches(), SETTING.budget, **SETTING.arguments(),
                             attacks=[3], progress=False)  # type: ignore[list-item]  # fmt: skip
