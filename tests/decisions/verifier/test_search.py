"""The search over neurons: what it has proved when it is stopped, wherever that is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from robust_plugins.decisions.verifier.clock import Clock
from robust_plugins.decisions.verifier.domains import DualAscent
from robust_plugins.decisions.verifier.proofs.recording import Notes
from robust_plugins.decisions.verifier.properties import Halfspaces, Unsafe
from robust_plugins.decisions.verifier.root import Root
from robust_plugins.decisions.verifier.search import Search
from robust_plugins.decisions.verifier.stages import Engine
from robust_plugins.decisions.verifier.verify import prepared
from robust_plugins.intervals import Interval

pytestmark = pytest.mark.usefixtures("unchecked")
ROWS = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)


@dataclass
class Stopping(Clock):
    """A clock whose time is over when it has been looked at so many times."""

    looks: int = 0

    @property
    def left(self) -> float:
        self.looks -= 1
        return float(self.looks > 0)


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2)).eval()


def stopped(model: nn.Module, offsets: Tensor, looks: int, made: type[Search] = Search) -> Tensor:
    """The bounds of both rows that a search has proved when it is stopped."""
    box, engine = Interval(-torch.ones(1, 2).double(), torch.ones(1, 2).double()), Engine()
    with torch.no_grad():
        root = Root(prepared(model, torch.zeros(1, 2)).relu, [box], engine.ascent, engine.memory, clock=Clock(1e6))
        unsafe = Unsafe([Halfspaces(ROWS[i : i + 1], offsets[i : i + 1]) for i in range(2)], 2)
        clock = Stopping(1.0, looks=looks)
        found = made(root, unsafe, lambda x: False, clock, ascent=DualAscent(steps=6), batch=8).run()
    assert found is not None
    return found.bounds


def least(model: nn.Module) -> Tensor:
    axis = torch.linspace(-1, 1, 201).tolist()
    with torch.no_grad():
        return (model(torch.tensor(list(product(axis, axis)))).double() @ ROWS.t()).amin(0)


def test_a_stopped_search_has_proved_more_and_more() -> None:
    model = perceptron()
    offsets = -0.01 - least(model)
    bounds = [stopped(model, offsets, looks) for looks in (1, 2, 3, 4, 6, 9)]
    for bound in bounds:
        assert (bound <= -0.01 + 1e-9).all()
        assert (bound >= bounds[0] - 1e-9).all()
    assert ((bounds[-1] - bounds[0]) / (-0.01 - bounds[0])).min() > 0.3  # of the way from the box's own bound


class Forgetting(Search):
    """Loses the domains that are bounded when the time is over."""

    def _prove_open(self) -> None:
        self._in_hand = []
        super()._prove_open()


def test_a_domain_that_is_lost_would_be_noticed() -> None:
    model = perceptron()
    offsets = -0.01 - least(model)
    assert any((stopped(model, offsets, looks, Forgetting) > -0.01 + 1e-6).any() for looks in (1, 3, 5))


def test_proofs_keep_to_the_memory() -> None:
    model, notes, engine = perceptron(), Notes(), Engine()
    box = Interval(-torch.ones(1, 2).double(), torch.ones(1, 2).double())
    with torch.no_grad():
        root = notes.root(
            prepared(model, torch.zeros(1, 2)).relu, [box], engine.ascent, engine.memory, clock=Clock(1e6)
        )
        unsafe = Unsafe([Halfspaces(ROWS[:1], 0.01 - least(model)[:1])], 2)
        search = notes.search(root, unsafe, lambda x: False, Clock(1e6), batch=8)
        assert search.run().answer == "unsat"
        small = notes.search(root, unsafe, lambda x: False, Clock(1e6), batch=8, memory=2**16)
        small.memory = 500
        found = small.run()
    assert (found.answer, found.message) == (
        "timeout", "the closed domains, which the proof needs, do not fit the memory of 500 bytes",
    )  # fmt: skip
