"""Empty batches, batches of one, incomplete ones, and budgets that exceed them: every training stays inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.inclusion import Setting, bounds, excess, poisoned
from support.small_trainings import network, train
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.poisoning.box import mean_gradient
from robust_plugins.poisoning.zonotope import update

pytestmark = [
    pytest.mark.filterwarnings("ignore:update .*decide no sample"),
    pytest.mark.filterwarnings("ignore:.*no finite bounds"),
]
TOLERANCE = 1e-11
Budget = rp.PoisoningBudget
ATTACKS = (rp.RandomPoisoning(count=6), rp.CoordinatePoisoning(coordinates=6, steps=1))
SIZES = st.lists(st.sampled_from([0, 0, 1, 2, 5]), min_size=2, max_size=5).filter(any).map(tuple)
BUDGETS = {
    "points": Budget(points=2, eps=0.2),
    "labels": Budget(labels=2),
    "both": Budget(points=1, eps=0.1, labels=1),
    "paired": Budget(points=1, eps=0.3, labels=2, paired=True),
    "substitution": Budget.substitution(2),
    "addition": Budget.addition(2),
    "removal": Budget.removal(2),
}
DECAYS = (0.0, 0.5, 3.0, 9.0)
"""Of the weights: with a learning rate of 0.4 the larger ones overshoot, lr * decay > 1."""
PLAIN = st.sampled_from([rp.SGD(lr=0.4, weight_decay=w, decay=d, milestones=m, factor=2.0)
                         for w in DECAYS for d in (0.0, 0.6) for m in ((), (1, 3))])  # fmt: skip
OPTIMIZERS = PLAIN | st.sampled_from([
    *(rp.SGD(lr=0.4, weight_decay=w, momentum=0.9, nesterov=n) for w in DECAYS for n in (False, True)),
    *(rp.Adam(lr=0.1, weight_decay=w) for w in DECAYS),
    *(rp.AdamW(lr=0.4, weight_decay=w) for w in DECAYS),
])  # fmt: skip


FEW = settings.default.max_examples // 6
"""Trainings with many poisoned ones each: 5, and 16 in the search of hours."""


@settings(max_examples=FEW)
@given(sizes=SIZES, optimizer=OPTIMIZERS, budget=st.sampled_from(list(BUDGETS)))
def test_boxes(sizes: tuple[int, ...], optimizer: Any, budget: str) -> None:
    _check(Setting(budget=BUDGETS[budget], sizes=sizes, optimizer=optimizer, clip=0.2))


@settings(max_examples=FEW)
@given(sizes=SIZES, optimizer=PLAIN, budget=st.sampled_from(list(BUDGETS)[:4]), net=st.sampled_from(["linear", "mlp"]))
def test_zonotopes(sizes: tuple[int, ...], optimizer: Any, budget: str, net: Any) -> None:
    _check(Setting(budget=BUDGETS[budget], sizes=sizes, optimizer=optimizer, net=net, domain="zonotope"))


@settings(max_examples=FEW // 2)
@given(sizes=SIZES, optimizer=OPTIMIZERS, budget=st.sampled_from(list(BUDGETS)))
def test_single_precision_rounded_outward(sizes: tuple[int, ...], optimizer: Any, budget: str) -> None:
    setting = Setting(budget=BUDGETS[budget], sizes=sizes, optimizer=optimizer, clip=0.2, dtype=torch.float32,
                      rounding="outward")  # fmt: skip
    _check(setting, tolerance=0.0)


def _check(setting: Setting, *, tolerance: float = TOLERANCE) -> None:
    assert excess(bounds(setting), poisoned(setting, ATTACKS)) <= tolerance


def _between() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    x, y = torch.randn(6, 2, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 0, 1])
    return nn.Linear(2, 2).double(), [(x, y), (x[:0], y[:0]), (x, y)]


def _flipped(domain: Any) -> float:
    """How far a training with one flipped label leaves the bounds, with an empty batch in between."""
    model, batches = _between()
    how: dict[str, Any] = {"optimizer": rp.SGD(lr=0.5, weight_decay=3.0), "epochs": 1}
    run = train(model, batches, Budget(labels=1), domain=domain, **how)
    worst = []
    for first in range(6):
        for last in range(6):
            flipped = [(x, torch.where(torch.arange(len(y)) == i, 1 - y, y))
                       for (x, y), i in zip(batches, (first, 0, last), strict=True)]  # fmt: skip
            found = dict(train(model, flipped, Budget(), **how).nominal.named_parameters())
            worst.append(excess(run, {name: found[name].detach()[None] for name in run.parameters}))
    return max(worst)


@pytest.mark.parametrize("domain", ["box", "zonotope"])
def test_weight_decay_that_overshoots_on_an_empty_batch(domain: Any) -> None:
    assert _flipped(domain) <= TOLERANCE


def test_radii_that_change_their_sign_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = update.update

    def planted(state: Any, *given: Any, lr: float, weight_decay: float, **more: Any) -> Any:
        found = whole(state, *given, lr=lr, weight_decay=weight_decay, **more)
        return found if len(given[2]) else replace(found, radii=(1 - lr * weight_decay) * state.radii)

    monkeypatch.setattr("robust_plugins.poisoning.zonotope.domain.update", planted)
    with pytest.raises((AssertionError, rp.ArgumentError)):  # the latter where box and zonotope are disjoint by then
        assert _flipped("zonotope") <= 1e-3


def _with_one_more(budget: Budget, sizes: Sequence[int], at: int, **how: Any) -> float:
    """How far trainings leave the bounds to whose batch `at` one sample is added."""
    g = torch.Generator().manual_seed(1)
    batches = [(torch.randn((n, 3), generator=g, dtype=torch.float64), torch.arange(n) % 2) for n in sizes]
    how = {"clip_gradient": 0.3, "epochs": 1} | how
    run = train(network(), batches, budget, **how)
    worst = []
    for value, label in ((100.0, 0), (-100.0, 0), (1.0, 1)):
        x, y = batches[at]
        more = (torch.cat([x, torch.full((1, 3), value).double()]), torch.cat([y, torch.tensor([label])]))
        other = [*batches[:at], more, *batches[at + 1 :]]
        found = dict(train(network(), other, Budget(), **how).nominal.named_parameters())
        worst.append(excess(run, {name: found[name].detach()[None] for name in run.parameters}))
    return max(worst)


@pytest.mark.parametrize("clip", [0.3, pytest.param(rp.NormClip(0.3), marks=pytest.mark.slow)], ids=repr)
@pytest.mark.parametrize("budget", [Budget.privacy(1), Budget.privacy(3), Budget.addition(1)], ids=repr)
@pytest.mark.parametrize("sizes", [(0, 4, 0), (2, 1)])
@pytest.mark.filterwarnings("ignore:the budget has")
def test_one_sample_added_to_any_batch(budget: Budget, sizes: tuple[int, ...], clip: Any) -> None:
    for at in range(len(sizes)):
        assert _with_one_more(budget, sizes, at, clip_gradient=clip) <= TOLERANCE


def test_an_empty_batch_that_stays_empty_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mean_gradient.Poisoned._replaced

    def planted(self: mean_gradient.Poisoned, clean: Any, size: int) -> Any:
        found = whole(self, clean, size)
        return found if size else {name: s.map(torch.zeros_like) for name, s in found.items()}

    monkeypatch.setattr(mean_gradient.Poisoned, "_replaced", planted)
    assert _with_one_more(Budget.privacy(1), (4, 0, 4), 1) > 1e-3
