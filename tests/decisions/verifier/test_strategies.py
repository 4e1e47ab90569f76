"""Strategies of branch and bound are exchanged: a new one takes twenty lines, and is compared on the same samples."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import robust_plugins as rp
from robust_plugins.decisions.verifier.branching import best_first
from robust_plugins.decisions.verifier.certifier import BranchAndBound
from robust_plugins.decisions.verifier.refinement import GrowingTrees

USUAL = "interval:branch-and-bound"


@dataclass(frozen=True)
class Steepest:
    """A heuristic of somebody else's: the unit whose chord is the steepest."""

    def candidates(self, seen, count):
        return best_first(seen, seen.compact.chord * seen.open, count)


class Laboratory:
    @rp.hookimpl
    def register_certifiers(self, register) -> None:
        register("mylab:steepest", lambda **options: BranchAndBound(branching=Steepest(), **options))


def subject() -> tuple[nn.Module, torch.Tensor, torch.Tensor, rp.Linf]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.rand(4, 40)
    return model, x, model(x).argmax(1), rp.Linf(eps=0.1, clip=None)


def test_a_heuristic_of_twenty_lines_is_compared() -> None:
    rp.register(Laboratory(), "mylab")
    try:
        usual, mine = rp.compare(*subject(), components=[USUAL, "mylab:steepest"]).rows
    finally:
        rp.unregister("mylab")
    assert isinstance(usual.result, rp.Certificate)
    assert isinstance(mine.result, rp.Certificate)
    assert mine.result.verdicts == usual.result.verdicts
    assert rp.Verdict.CERTIFIED in mine.result.verdicts


@dataclass(frozen=True)
class Nowhere:
    calls: list[int]

    def __call__(self, model, lower, upper, unsafe, generator, clock):
        self.calls.append(len(unsafe.member))


@dataclass(frozen=True)
class Watched:
    """The usual plan, and a note of what it was told."""

    calls: list[int]
    usual = GrowingTrees(first=2, search=1e-9)

    def plan(self, compact, made, seconds):
        self.calls.append(len(made))
        return self.usual.plan(compact, made, seconds)

    def keeps(self, made):
        assert made.before < 0
        assert made.after > -torch.inf
        return self.usual.keeps(made)


def test_attack_and_refinement_are_exchanged() -> None:
    """Both are asked, and the answers do not depend on them."""
    model, x, y, ball = subject()
    attack, refinement = Nowhere([]), Watched([])
    found = BranchAndBound(attack=attack, refinement=refinement)(model, x, y, ball)
    assert found.verdicts == BranchAndBound()(model, x, y, ball).verdicts
    assert set(attack.calls) == {2}
    assert {0, 1} <= set(refinement.calls)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["attack", "branching", "refinement"])
@pytest.mark.parametrize("value", ["fast", GrowingTrees])
def test_what_is_no_strategy_is_refused(name, value) -> None:
    """A class in the place of an object, too."""
    with pytest.raises(rp.ArgumentError, match=f"`{name}` .*verifier.{name} says"):
        BranchAndBound(**{name: value})
