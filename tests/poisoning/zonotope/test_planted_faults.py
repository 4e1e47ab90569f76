"""Unsound changes are found by poisoned trainings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.zonotope_cases import Case
from support.zonotope_search import TOLERANCE, largest_excess, search
from torch import Tensor

from robust_plugins.intervals import Interval
from robust_plugins.poisoning.zonotope import accounting, domain, effects, flips, gradient, update

POINTS = Case("cross_entropy", 2, 6, "points")
LABELS = Case("cross_entropy", 3, 5, "labels")
TARGET = Case("cross_entropy", 3, 0, "target", frozen=True)


def one_sample_less(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = accounting._top
    monkeypatch.setattr(accounting, "_top", lambda values, k: whole(values, k - 1) if k > 1 else whole(values, k) * 0)


def no_remainder(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = update.gradient

    def without(*args: Any, **options: Any) -> gradient.Gradient:
        found = whole(*args, **options)
        names = ("along_inputs", "along_features", "entries")
        return replace(found, **{n: torch.zeros_like(getattr(found, n)) for n in names})

    monkeypatch.setattr(update, "gradient", without)
    no_flips(monkeypatch)


def no_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = update.flips

    def without(*args: Any, **options: Any) -> flips.Flips:
        found = whole(*args, **options)
        return flips.Flips(found.slope, Interval.point(torch.zeros_like(found.along.lower)))

    monkeypatch.setattr(update, "flips", without)


def no_moves_of_hidden_features(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = effects.Poisoned.neurons

    def without(self: effects.Poisoned, change: Any, features: bool, labels: bool, *rest: Any) -> Interval:
        return whole(self, change, False, labels, *rest)

    monkeypatch.setattr(effects.Poisoned, "neurons", without)


def sums_kept_by_generators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def centered(state: Any) -> Any:
        w, v = state.layout.split(state.generators)
        return replace(state, generators=state.layout.join(w, v - v.mean(0, keepdim=True)))

    monkeypatch.setattr(domain, "_centered", centered)


def wrong_jacobian(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gradient._jacobian

    def scaled(*args: Any) -> Tensor:
        return whole(*args) * 1.5

    monkeypatch.setattr(gradient, "_jacobian", scaled)


@pytest.mark.parametrize(
    ("fault", "case"),
    [
        (one_sample_less, POINTS),
        (one_sample_less, LABELS),
        (no_moves_of_hidden_features, POINTS),
        (sums_kept_by_generators_alone, TARGET),
    ],
)
def test_poisoned_trainings_find_it(fault: Callable[[pytest.MonkeyPatch], None], case: Case,
                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    assert search(case, 8) <= TOLERANCE
    fault(monkeypatch)
    assert search(case, 8) > 1e-6


@pytest.mark.parametrize("fault", [no_remainder, no_flips, wrong_jacobian])
@pytest.mark.parametrize("outputs", [2, 3])
def test_one_update_finds_it(fault: Callable[[pytest.MonkeyPatch], None], outputs: int,
                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    case = Case("cross_entropy", outputs, 6, "nothing")
    assert largest_excess(case, 0.01) <= TOLERANCE
    fault(monkeypatch)
    assert largest_excess(case, 0.01) > 1e-4
