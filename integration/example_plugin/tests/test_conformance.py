"""The conformance checks that every plugin's author should run."""

from __future__ import annotations

from functools import partial

import pytest
from robust_plugins_example import Sinh, rings
from robust_plugins_example.rings import command

import robust_plugins as rp
from robust_plugins.testing import (
    attack_checks,
    certifier_checks,
    command_checks,
    dataset_checks,
    interval_rule_checks,
    recipe_checks,
)


@pytest.mark.parametrize("check", attack_checks)
def test_corners(check) -> None:
    check(rp.attack("example:corners", tries=5))


@pytest.mark.parametrize("check", certifier_checks)
def test_lipschitz(check) -> None:
    check(rp.certifier("example:lipschitz"))


@pytest.mark.parametrize("check", interval_rule_checks)
def test_sinh(check) -> None:
    check(Sinh(), (4,))


@pytest.mark.parametrize("check", dataset_checks)
def test_rings(check) -> None:
    check(rings)


@pytest.mark.parametrize("check", recipe_checks)
def test_halves(check) -> None:
    check(partial(rp.recipe, "halves"))


@pytest.mark.parametrize("check", command_checks)
def test_command(check) -> None:
    check(lambda: command)


def test_chords_decide_what_branch_and_bound_decides() -> None:
    """A strategy for branching changes what a search costs, and never its answer."""
    data = rings()
    model = rp.model("mlp(widths=(8, 8))", input_shape=data.input_shape, classes=2)
    rp.train(model, data.x_train, data.y_train, epochs=30, seed=0)
    x, y, ball = data.x_test[:10], data.y_test[:10], rp.Linf(eps=0.1, clip=data.clip)
    found = [rp.certifier(name, timeout=20.0)(model, x, y, ball).verdicts
             for name in ("example:chords", "interval:branch-and-bound")]  # fmt: skip
    assert found[0] == found[1]
