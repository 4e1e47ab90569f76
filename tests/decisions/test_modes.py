"""Components that leave the model in training mode."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from support.toys import Boxes
from torch import Tensor, nn

import robust_plugins as rp

pytestmark = pytest.mark.usefixtures("unchecked")

BALL = rp.Linf(eps=0.02, clip=(0.0, 1.0))


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


X = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))
Y = _network()(X).argmax(1)


@dataclass(frozen=True, kw_only=True)
class Restless(rp.Attack):
    """Leaves the model in training mode."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Linf, *, targeted: bool) -> Tensor:
        model.train()
        return x.clone()


@dataclass(frozen=True, kw_only=True)
class RestlessBoxes(Boxes):
    """Bounds the model in training mode."""

    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
        model.train()
        return super().propagate(model, x, ball, spec)


def test_attacks_that_leave_training_mode_are_judged_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.BatchNorm1d(5), _network())
    model[0].running_mean.uniform_(-3, 3)
    model.eval()
    found = Restless()(model, X, Y, BALL, seed=0)
    assert torch.equal(found.logits, model(found.x_adv))
    assert not any(module.training for module in model.modules())


def test_certifiers_that_leave_training_mode_have_no_answer() -> None:
    model = _network()
    with pytest.raises(rp.ComponentError, match=r"RestlessBoxes\(.*changed the model \(mode of training, mode of 0"):
        RestlessBoxes()(model, X, Y, BALL)
    assert not any(module.training for module in model.modules())
