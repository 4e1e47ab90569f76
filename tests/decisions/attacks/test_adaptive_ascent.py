"""Auto-PGD's steps have to halve: an optimum inside the ball is reached by no step that stays as long as the ball."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.decisions.attacks import adaptive_ascent

pytestmark = pytest.mark.usefixtures("unchecked")

EPS = 0.3


class Peak(nn.Module):
    """Two logits whose difference is largest, and still negative, at one point for each sample."""

    def __init__(self, at: Tensor) -> None:
        super().__init__()
        self.at = at

    def forward(self, z: Tensor) -> Tensor:
        far = (z - self.at[: len(z)]).square().sum(1) + 0.1
        return torch.stack((torch.zeros_like(far), -far), 1)


def missed(norm: type[rp.Ball]) -> Tensor:
    """How far the result is from the peak, in units of eps, when every sample's lies well inside the ball."""
    torch.manual_seed(0)
    x = 0.5 + 0.05 * torch.rand(8, 6, dtype=torch.float64)
    ball = norm(eps=EPS, clip=(0.0, 1.0))
    peak = x + 0.5 * (ball.sample(x, 1, draw="corner")[0] - x) * torch.linspace(0.3, 1, 6, dtype=x.dtype)
    result = rp.attack("rp:apgd")(Peak(peak), x, torch.zeros(8, dtype=torch.long), ball, seed=0)
    assert not result.success.any()
    return ball.distance(result.x_adv, peak) / EPS


@pytest.mark.parametrize("norm", [rp.Linf, rp.L2])
def test_an_optimum_inside_the_ball_is_reached(norm) -> None:
    assert (missed(norm) < 0.03).all()


@pytest.mark.parametrize("norm", [rp.Linf, rp.L2])
@pytest.mark.parametrize("fault", ["no checkpoint", "no halving", "one checkpoint alone"])
def test_the_planted_faults_miss_it(norm, fault, monkeypatch) -> None:
    if fault == "no checkpoint":
        monkeypatch.setattr(adaptive_ascent, "checkpoints", lambda steps: [])
    elif fault == "no halving":
        monkeypatch.setattr(adaptive_ascent, "chosen", lambda rows, yes, no: no if no.shape[1:].numel() == 1 else yes)
    else:
        monkeypatch.setattr(adaptive_ascent, "checkpoints", lambda steps: [0, 22])
    assert (missed(norm) > 0.03).any()
