"""Every certifier of the registry against random models, balls and points, see `support.fuzzing`."""

from __future__ import annotations

import pytest
from support.fuzzing.components import certifiers, explanation_certifiers
from support.fuzzing.running import Tally, run
from support.length import length

pytestmark = [pytest.mark.full_audits, pytest.mark.filterwarnings("ignore")]  # of torch and backends, about odd models


def assert_clean(tally: Tally) -> None:
    """No violation; each is printed with the code of its model. And every component had something to bound."""
    assert not tally.findings, "\n\n".join(map(str, tally.findings[:5])) + f"\n{tally}"
    idle = [name for name in tally.refused if not tally.bounded[name]]
    assert not idle, f"none of the models was bounded by {idle}\n{tally}"


def test_no_violation_on_a_few_models() -> None:
    """Models as most certifiers accept them; what is rare has its turn in the long run."""
    usual = {"hidden": 8.0, "block": 8.0}
    assert_clean(run(range(6), certifiers(), explanation_certifiers(), balls=1, likely=usual))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, length(1020, 1160), length(10, 20)))
def test_no_violation_on_many_models(first: int) -> None:
    assert_clean(run(range(first, first + length(10, 20)), certifiers(), explanation_certifiers(), balls=2))
