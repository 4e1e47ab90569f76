"""The ramp starts at zero, never falls, has no kink where it should have none, and ends at one."""

from __future__ import annotations

from itertools import pairwise

import pytest

import robust_plugins as rp
from robust_plugins.losses import Ramp


@pytest.mark.parametrize("shape", ["linear", "smooth"])
def test_from_zero_to_one(shape: str) -> None:
    ramp = Ramp(start=2, end=12, shape=shape)
    values = [ramp(e / 10) for e in range(150)]
    assert values[:21] == [0.0] * 21
    assert values[120:] == [1.0] * 30
    assert all(a <= b for a, b in pairwise(values))
    assert max(b - a for a, b in pairwise(values)) < 0.02


def test_linear_is_straight_and_smooth_is_quartic_then_straight() -> None:
    assert Ramp(start=0, end=4, shape="linear")(1.0) == 0.25
    ramp = Ramp(start=0, end=1)
    assert ramp(0.2) / ramp(0.1) == pytest.approx(16)
    h = 1e-6
    slopes = [(ramp(t + h) - ramp(t)) / h for t in (0.25 - 2 * h, 0.25, 0.5, 0.9)]
    assert slopes == pytest.approx([slopes[0]] * 4, rel=1e-4)


def test_start_may_be_end() -> None:
    assert (Ramp(start=3, end=3)(2.9), Ramp(start=3, end=3)(3)) == (0.0, 1.0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [{"start": 2, "end": 1}, {"start": -1, "end": 1}, {"start": 0, "end": float("inf")}])
def test_wrong_epochs_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(rp.ArgumentError, match="start, end"):
        Ramp(**wrong)
    with pytest.raises(rp.ArgumentError, match="shape"):
        Ramp(start=0, end=1, shape="cubic")
