"""Every poisoned training ends inside the zonotope: parameters, and combinations of outputs."""

from __future__ import annotations

import pytest
from support.length import length
from support.poisoned_training import poisoners
from support.zonotope_cases import CASES, Case
from support.zonotope_search import TOLERANCE, search

import robust_plugins as rp


@pytest.mark.parametrize("case", CASES, ids=str)
def test_poisoned_trainings_stay_inside(case: Case) -> None:
    assert search(case, 8) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("seed", length([1], [1, 2]))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_many_poisoned_trainings_stay_inside(case: Case, seed: int) -> None:
    assert search(case, length(30, 60), seed) <= TOLERANCE


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
