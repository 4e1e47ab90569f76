"""Boxes of any network, halved: rounding, and answers on a network that branches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robust_plugins.decisions.verifier import Halfspaces, relaxed_splitting, verify_property
from robust_plugins.decisions.verifier.clock import Clock
from robust_plugins.decisions.verifier.properties import Unsafe
from robust_plugins.decisions.verifier.relaxed_splitting import split_relaxed
from robust_plugins.intervals import rounding


class Gate(nn.Module):
    """Two branches, multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 4), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.one(x).sigmoid() * self.two(x).tanh()).sum(1, keepdim=True)


def test_answers_agree_with_a_grid() -> None:
    torch.manual_seed(0)
    model = Gate().eval().requires_grad_(False)
    side = torch.linspace(0, 1, 101)
    least = float(model(torch.cartesian_prod(side, side)).min())
    low, up = torch.zeros(2), torch.ones(2)
    for shift, answer in ((0.02, "unsat"), (-0.001, "sat")):
        rows = Halfspaces(torch.ones(1, 1), torch.tensor([shift - least]))
        assert verify_property(model, low, up, [rows], timeout=20).answer == answer


def test_bounds_of_boxes_are_rounded_outward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that overstate by rounding alone would prove what an output touches."""
    active = []
    bounds = relaxed_splitting.crown
    monkeypatch.setattr(relaxed_splitting, "crown", lambda *given: active.append(rounding.active()) or bounds(*given))
    model = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1)).double().requires_grad_(False)
    highest = max(float(model(torch.tensor([[x]], dtype=torch.float64))) for x in (0.0, 1.0))
    touched = [Halfspaces(-torch.ones(1, 1, dtype=torch.float64), torch.tensor([highest], dtype=torch.float64))]
    low, up = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    asked = Unsafe(touched, 1)
    found = split_relaxed(model, low.view(1, 1), up.view(1, 1), asked, lambda x: False, Clock(2.0), most=24)
    answer = found.answer
    assert answer != "unsat"
    assert active
    assert all(active)


def test_boxes_are_halved_where_layers_in_place_have_left_no_slope() -> None:
    class Powers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ((0.3 + x.abs()) ** x.tanh()).relu_().sum(1, keepdim=True)

    model, low, up = Powers(), torch.full((1, 1), -0.2).double(), torch.full((1, 1), 0.3).double()
    with pytest.raises(RuntimeError, match="inplace"):
        model(low.clone().requires_grad_()).sum().backward()
    least = float(model(torch.linspace(-0.2, 0.3, 1001, dtype=torch.float64).unsqueeze(1)).min())
    for shift, answer in ((0.02, "unsat"), (-0.02, "sat")):
        rows = Halfspaces(torch.ones(1, 1).double(), torch.tensor([shift - least]).double())
        found = split_relaxed(model, low, up, Unsafe([rows], 1), lambda x: True, Clock(20.0), most=24)
        assert found.answer == answer
        assert answer == "sat" or found.domains > 1
