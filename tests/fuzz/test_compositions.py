"""The engine's certifiers on random graphs of every operator that they have rules for, attention included.

A longer search: `cd tests && PYTHONPATH=.. ../.venv/bin/python -m support.fuzzing --rare --only interval --minutes 60
--seed 1000`.
"""

from __future__ import annotations

import pytest
from support.fuzzing.components import certifiers, explanation_certifiers
from support.fuzzing.drawing import draw_recipe
from support.fuzzing.running import run
from support.fuzzing.source import KINDS
from support.length import length

FIRST, GROUPS, MODELS = 40_000, 10, 20
SEARCHED = length(2, MODELS)


@pytest.mark.slow
@pytest.mark.full_audits
@pytest.mark.filterwarnings("ignore")  # of torch, about odd models
@pytest.mark.parametrize("group", range(GROUPS))
def test_no_point_of_any_composition_lies_outside(group: int) -> None:
    """Ten groups of 20 models, in the search of hours, have more than 10^6 points."""
    own = {name: c for name, c in certifiers().items() if name.startswith("interval:")}
    explained = {name: c for name, c in explanation_certifiers().items() if name.startswith("interval:")}
    first = FIRST + group * MODELS
    tally = run(range(first, first + SEARCHED), own, explained, balls=2, rare=True)
    assert not tally.findings, "\n\n".join(map(str, tally.findings[:5])) + f"\n{tally}"
    assert tally.points > 2_000 * SEARCHED


def test_every_step_of_the_grammar_is_drawn() -> None:
    seeds = range(FIRST, FIRST + GROUPS * MODELS)
    drawn = {name for seed in seeds for name, _ in draw_recipe(seed, rare=True).steps}
    assert drawn == KINDS.keys()
