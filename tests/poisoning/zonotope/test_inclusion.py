"""Every poisoned training ends inside the zonotope: parameters, and combinations of outputs."""

from __future__ import annotations

import pytest
import torch
from support.poisoned_training import Poisoner, poisoners
from support.zonotope_cases import CASES, Case, everything
from torch import nn

import robust_plugins as rp
from robust_plugins.intervals import Interval
from robust_plugins.poisoning.zonotope import Zonotope

TOLERANCE = 1e-11


def excess(zonotope: Zonotope, poisoned: list[Poisoner], x: torch.Tensor) -> tuple[float, float]:
    """How far the worst training lies outside the bounds, and outside those on outputs."""
    hull = zonotope.hull()
    outside = max(
        max(float((hull[n].lower - p).max()), float((p - hull[n].upper).max()))
        for training in poisoned
        for n, p in training.parameters.items()
    )
    outputs = torch.stack([training.outputs(x) for training in poisoned])
    rows = torch.randn((len(x), 5, outputs.shape[2]), generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    rows[:, 0] -= rows[:, 0].mean(1, keepdim=True)
    bounds = zonotope.bounds(Interval.point(x), rows)
    values = torch.einsum("bro,tbo->tbr", rows, outputs)
    return outside, max(float((bounds.lower - values).max()), float((values - bounds.upper).max()))


def search(case: Case, trainings: int, seed: int = 0, model: nn.Module | None = None, **options: int) -> float:
    """The largest excess over all updates of a few trainings."""
    model = model or case.model(seed)
    batches = case.batches(seed + 1)
    zonotope = case.start(model, **options)
    poisoned = poisoners(model, case.names(model), case.loss, case.limits, trainings, batches[-1])
    worst = -float("inf")
    for t, (x, y) in enumerate(batches):
        lr = case.lr / (1 + 0.2 * t)
        zonotope.step(x, y, lr=lr, weight_decay=case.weight_decay, box=everything(zonotope))
        for training in poisoned:
            training.step(x, y, lr, case.weight_decay)
        worst = max(worst, *excess(zonotope, poisoned, batches[0][0]))
    return worst


@pytest.mark.parametrize("case", CASES, ids=str)
def test_poisoned_trainings_stay_inside(case: Case) -> None:
    assert search(case, 8) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_many_poisoned_trainings_stay_inside(case: Case, seed: int) -> None:
    assert search(case, 60, seed) <= TOLERANCE


@pytest.mark.parametrize("case", [CASES[1], CASES[5], CASES[7]], ids=str)
def test_few_generators_and_little_memory_are_sound(case: Case) -> None:
    assert search(case, 8, generators=30) <= TOLERANCE
    assert search(case, 8, memory=2**14) <= TOLERANCE


@pytest.mark.filterwarnings("ignore:update .*decide no sample")
@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[5], CASES[10], CASES[13], CASES[18]], ids=str)
def test_inside_together_with_boxes(case: Case) -> None:
    """As `abstract_gradient_training` uses it: intersected with boxes, which go on from the intersection."""
    model, batches = case.model(), case.batches()
    run = rp.abstract_gradient_training(
        model, batches, case.limits, loss=case.loss, optimizer=rp.SGD(lr=case.lr, weight_decay=case.weight_decay),
        epochs=1, domain="zonotope", parameters=case.names(model), progress=False,
    )  # fmt: skip
    poisoned = poisoners(model, case.names(model), case.loss, case.limits, 8, batches[-1])
    for training in poisoned:
        for x, y in batches:
            training.step(x, y, case.lr, case.weight_decay)
        for name, value in training.parameters.items():
            assert bool(run.parameters[name].contains(value, tolerance=TOLERANCE).all())
        assert bool(run.logits(batches[0][0]).contains(training.outputs(batches[0][0]), tolerance=TOLERANCE).all())
