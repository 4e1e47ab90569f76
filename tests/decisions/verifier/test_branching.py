"""The usual branching bounds one half of a domain only: the one that it takes for the better one is."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from robust_plugins.decisions.verifier.branching import BestChild, Seen
from robust_plugins.decisions.verifier.clock import Clock
from robust_plugins.decisions.verifier.domains import lower_bound
from robust_plugins.decisions.verifier.properties import Halfspaces, Unsafe
from robust_plugins.decisions.verifier.root import Root
from robust_plugins.decisions.verifier.search import Search
from robust_plugins.decisions.verifier.stages import Engine
from robust_plugins.decisions.verifier.verify import prepared
from robust_plugins.intervals import Interval

pytestmark = pytest.mark.usefixtures("unchecked")
NEXT_TO_NOTHING = 1e-3
"""Of a bound: where both halves gain less, it does not matter which one is bounded."""


@dataclass(frozen=True, kw_only=True)
class Checked(BestChild):
    """The usual branching, with a note of each guess that matters: whether it was right."""

    right: list[bool] = field(default_factory=list)

    def _gains(self, seen, domain, unit, scratch):
        up, down = (gain(seen, domain, unit, sign) for sign in (1.0, -1.0))
        best = torch.maximum(up, down)
        found = super()._gains(seen, domain, unit, scratch)
        matters = best > NEXT_TO_NOTHING * seen.bound.value[domain].abs()
        self.right.extend((found >= 0.99 * best)[matters].tolist())
        return found

    @property
    def share(self) -> float:
        return sum(self.right) / len(self.right)


def gain(seen: Seen, domain: Tensor, unit: Tensor, sign: float) -> Tensor:
    """How far the bound of a half is above its parent's, by the parent's duals."""
    half = seen.domains.select(domain)
    column = torch.arange(len(domain))
    half.signs[unit, column], half.slopes[unit, column] = sign, max(sign, 0.0)
    value = lower_bound(seen.compact, seen.rows[:, domain], seen.const[domain], half).value
    return (value.clamp(max=0) - seen.bound.value[domain]).clamp(min=0)


def share_of_right_guesses(seed: int) -> float:
    """Of a search over a perceptron whose margin is small."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2)).eval()
    low, up, engine = -0.6 * torch.ones(1, 6), 0.6 * torch.ones(1, 6), Engine()
    row, checked = torch.tensor([[1.0, -1.0]], dtype=torch.float64), Checked()
    with torch.no_grad():
        least = (model(low + (up - low) * torch.rand(20000, 6)).double() @ row.t()).min()
        form = prepared(model, low).relu
        root = Root(form, [Interval(low.double(), up.double())], engine.ascent, engine.memory, clock=Clock(1e6))
        unsafe = Unsafe([Halfspaces(row, 0.02 - least.reshape(1))], 2)
        Search(root, unsafe, lambda x: False, Clock(1e6), branching=checked, batch=16).run(400)
    assert len(checked.right) > 100
    return checked.share


@pytest.mark.parametrize("seed", range(3))
def test_the_half_that_is_bounded_is_the_better_one(seed) -> None:
    """It was in 88 to 95 % of all cases that mattered; at random it would be in half of them or less."""
    assert share_of_right_guesses(seed) > 0.8


@pytest.mark.parametrize("fault", ["turned", "always up"])
def test_a_worse_guess_is_seen(fault, monkeypatch) -> None:
    guess = BestChild._better_half
    planted = {"turned": lambda *args: -guess(*args), "always up": lambda *args: guess(*args).abs()}
    monkeypatch.setattr(BestChild, "_better_half", planted[fault])
    for seed in range(3):
        assert share_of_right_guesses(seed) < 0.5
