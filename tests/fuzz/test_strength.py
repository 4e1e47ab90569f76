"""The fuzzer finds certifiers that are a little wrong, in as many models as the fast run has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.fuzzing.checks import check_certifier
from support.fuzzing.drawing import draw_case, draw_recipe
from support.fuzzing.reaching import reach
from support.fuzzing.running import run
from support.fuzzing.source import written
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.intervals import Interval
from robust_plugins.intervals.layers import Add
from robust_plugins.intervals.rules.registry import rules_for

MODELS = range(24)
"""Of the fast run."""

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch, about odd models


@dataclass(frozen=True, kw_only=True)
class Narrow(rp.Certifier):
    """Interval propagation whose bounds are too narrow by a part of their width, for radii up to `below`."""

    part: float = 0.0
    below: float = float("inf")
    rounding: ClassVar[float] = 1e-6

    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> Interval:
        found = rp.certifier("interval:crown").propagate(model, x, ball, spec)
        cut = self.part * found.width / 2 if ball.largest <= self.below else 0.0
        return Interval(found.lower + cut, found.upper - cut)


@pytest.mark.parametrize("narrow", [Narrow(part=0.02), Narrow(part=0.02, below=3e-3)], ids=["all", "small radii"])
@pytest.mark.slow
def test_bounds_that_are_two_percent_too_narrow_are_found(narrow: Narrow) -> None:
    tally = run(MODELS, {"narrow": narrow}, {}, balls=1, full=False, shrink=False)
    assert any("bounds" in f.violation.kind for f in tally.findings), tally


def test_bounds_without_a_branch_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's sum of two tensors forgets that the second moves."""
    rules = rules_for(Add())
    assert rules is not None

    def first_alone(layer: nn.Module, x: Interval, y: Interval) -> Interval:
        middle = (y.lower + y.upper) / 2
        return Interval(x.lower + middle, x.upper + middle)

    monkeypatch.setattr(rules, "forward", first_alone)
    often = {"residual": 20.0, "hidden": 4.0}
    engine = {"interval:ibp": rp.certifier("interval:ibp")}
    tally = run(MODELS, engine, {}, balls=1, full=False, shrink=False, likely=often)
    assert any("bounds" in f.violation.kind for f in tally.findings), tally


def test_the_unchanged_certifier_passes() -> None:
    """What the others find is what was planted."""
    tally = run(MODELS, {"narrow": Narrow()}, {}, balls=1, full=False, shrink=False)
    assert not [f for f in tally.findings if "bounds" in f.violation.kind], tally


def test_a_failing_model_is_shrunk_and_printed() -> None:
    tally = run(MODELS[:8], {"narrow": Narrow(part=0.2)}, {}, balls=1, full=False)
    first = tally.findings[0]
    assert len(first.recipe.steps) <= 2
    assert first.batch < 3
    assert "class Model(nn.Module)" in str(first)
    assert "ball = rp." in str(first)


def test_recipes_give_the_same_model_twice() -> None:
    recipe = draw_recipe(3)
    one, two = written(recipe).model().state_dict(), written(recipe).model().state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_exception_of_a_backend_is_a_violation() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Broken(rp.Certifier):
        def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> Interval:
            raise RuntimeError("Expected scalar type")

    case = draw_case(draw_recipe(0), 0)
    assert case is not None
    (violation,) = check_certifier("broken", Broken(), [(case, reach(case))]).violations
    assert violation.kind == "raises"
    assert "Expected scalar type" in violation.detail
