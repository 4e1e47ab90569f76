"""One update of one vector of parameters, clean or poisoned, lies in the updated set at the same generators' values."""

from __future__ import annotations

import pytest
from support.length import length
from support.zonotope_cases import CASES, Case
from support.zonotope_search import largest_excess

TOLERANCE = 1e-11


@pytest.mark.parametrize("size", [0.01, 0.3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_updates_stay_in_the_updated_set(case: Case, size: float) -> None:
    assert largest_excess(case, size, 12) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("size", length([0.001, 1.0], [0.001, 0.01, 0.1, 1.0]))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_many_updates_stay_in_the_updated_set(case: Case, size: float) -> None:
    assert max(largest_excess(case, size, 60, seed) for seed in range(length(1, 3))) <= TOLERANCE
