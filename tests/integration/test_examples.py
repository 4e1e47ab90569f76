"""The worked examples on data that are not images print brackets that hold."""

from __future__ import annotations

import pytest
import torch
from support.scripts import script

COMPONENTS = ["rp:margin-pgd", "interval:crown"]


@pytest.mark.parametrize(("samples", "epochs"), [(10, 1), pytest.param(40, 10, marks=pytest.mark.slow)])
def test_german_credit_has_brackets_and_training_on_worst_cases_narrows_them(samples, epochs, shared) -> None:
    credit = script("examples/credit.py")
    table = credit.read(shared / "data" / "german" / "german.data")
    table.ball.check(table.x)
    assert table.x.shape == (1000, 61)
    found = credit.compared(table, samples=samples, epochs=epochs, components=COMPONENTS)
    for comparison in found.values():
        assert not comparison.crossings
        attacked, certified = comparison.bracket
        assert attacked is not None
        assert certified is not None
        assert certified <= attacked <= comparison.clean
        x_adv = comparison["rp:margin-pgd"].result.x_adv
        moved = (x_adv != comparison.x).any(0).nonzero().flatten().tolist()
        assert moved
        assert set(moved).isdisjoint(table.ball.immutable)
        assert torch.equal(x_adv, x_adv.round())
    if epochs > 1:
        assert found["on worst cases"].bracket[1] > found["as usual"].bracket[1]


def test_sentences_have_brackets_at_every_radius() -> None:
    sentences = script("examples/sentences.py")
    comparisons, radii = sentences.compared(epochs=40)
    assert not radii.crossings
    clean = comparisons[0].clean
    assert clean is not None
    assert clean > 0.7
    for comparison in comparisons:
        assert not comparison.crossings
        attacked, certified = comparison.bracket
        assert attacked is not None
        assert certified is not None
        assert certified <= attacked
    assert comparisons[0].bracket[1] > 0  # type: ignore[operator]
