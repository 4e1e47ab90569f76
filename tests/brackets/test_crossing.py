"""The one search for contradictions: both sides, flags, slack, and what is no number."""

from __future__ import annotations

import json
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robust_plugins.brackets.crossing import Crossing, crossings

NUMBERS = st.floats(width=32) | st.sampled_from([0.0, torch.inf, -torch.inf, torch.nan])


@given(
    st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=5),
    st.floats(0, 1),
    st.sampled_from(["at least", "at most"]),
)
def test_a_record_for_each_sample_beyond_the_slack(
    pairs: list[tuple[float, float]], slack: float, side: Literal["at least", "at most"]
) -> None:
    achieved, proved = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    found = crossings("a", "c", "the margin", achieved, proved, side=side, slack=slack)
    expected = [
        i
        for i, (a, p) in enumerate(pairs)
        if abs(p) < torch.inf and (p - a > slack if side == "at least" else a - p > slack)
    ]
    assert [crossing.sample for crossing in found] == expected
    assert all((c.achieved, c.proved) == pairs[c.sample or 0] for c in found)
    assert json.loads(json.dumps([c.to_dict() for c in found], allow_nan=False)) is not None


def test_flags_have_no_numbers() -> None:
    kept, proved = torch.tensor([True, False, False]), torch.tensor([True, True, False])
    (crossing,) = crossings("a", "c", "the most important feature", kept, proved, side="at least")
    assert crossing == Crossing("a", "c", "the most important feature", None, None, "at least", 1)
    assert str(crossing) == "sample 1: a changed the most important feature, but c proved that it stays"


@pytest.mark.parametrize(("side", "achieved"), [("at least", 0.7), ("at most", 0.9)])
def test_one_number_for_all_samples(side: Literal["at least", "at most"], achieved: float) -> None:
    whole = torch.tensor(achieved), torch.tensor(0.8)
    (crossing,) = crossings("a", "c", "the accuracy", *whole, side=side, slack=0.05)
    assert crossing.sample is None
    assert str(crossing) == f"a reached {achieved} for the accuracy, but c proved {side} 0.8"
    assert crossings("a", "c", "the accuracy", *whole, side=side, slack=0.2) == []
