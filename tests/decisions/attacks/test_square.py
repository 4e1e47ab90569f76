"""The square attack needs no gradients, stays in the ball, says what it has asked, and beats random noise."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.decisions.attacks.objectives import margin

pytestmark = pytest.mark.usefixtures("unchecked")

BALLS = [
    rp.Linf(eps=0.1, clip=(0.0, 1.0)), rp.L2(eps=0.9, clip=(0.0, 1.0)), rp.L1(eps=6.0, clip=(0.0, 1.0)),
    rp.L2(eps=0.9, clip=None),
]  # fmt: skip


class Opaque(nn.Module):
    """A model through which no gradient flows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(x)


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)).eval()
    x = torch.rand(16, 2, 8, 8)
    return Opaque(model), x, model(x).argmax(1)


@pytest.mark.parametrize("ball", BALLS)
def test_it_finds_more_than_noise_with_as_many_queries(case: tuple[nn.Module, Tensor, Tensor], ball: rp.Ball) -> None:
    model, x, y = case
    attack = rp.attack("rp:square", queries=150)
    result = attack(model, x, y, ball.scaled(0.4), seed=0)
    assert ball.scaled(0.4).contains(result.x_adv, x).all()
    found = margin(model(result.x_adv), y)
    noise = torch.stack([margin(model(z), y) for z in ball.scaled(0.4).sample(x, 150, draw="corner")]).amax(0)
    assert ((found > noise) | result.success).float().mean() > 0.9
    assert (attack(model, x, y, ball, seed=0).success.sum()) >= max(int(result.success.sum()), 8)


@pytest.mark.parametrize("ball", BALLS[:3])
def test_more_queries_find_more(case: tuple[nn.Module, Tensor, Tensor], ball: rp.Ball) -> None:
    model, x, y = case
    few, many = (rp.attack("rp:square", queries=n)(model, x, y, ball.scaled(0.3), seed=0) for n in (2, 200))
    assert margin(model(many.x_adv), y).mean() > margin(model(few.x_adv), y).mean()


def test_queries_are_reported_and_end_with_a_success(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    result = rp.attack("rp:square", queries=100)(model, x, (y + 1) % 4, BALLS[0], seed=0)
    assert result.success.all()  # all were wrong already
    assert len(seen) < 10
    assert result.notes == ("0 queries a sample until its success, 0 at most",)
    hard = rp.attack("rp:square", queries=30)(model, x, y, rp.Linf(eps=1e-4, clip=(0.0, 1.0)), seed=0)
    assert re.fullmatch(r"30 queries a sample until its success, 30 at most", hard.notes[0])


def test_vectors_are_one_row_and_targets_are_reached() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 3)).eval(), torch.rand(10, 12)
    y = model(x).argmax(1)
    for kind, eps in ((rp.Linf, 0.8), (rp.L2, 3.0), (rp.L1, 8.0)):
        ball = kind(eps=[0.0] + [eps] * 9, clip=(0.0, 1.0))
        result = rp.attack("rp:square", queries=100)(Opaque(model), x, y, ball, target="least_likely", seed=0)
        again = rp.attack("rp:square", queries=100)(Opaque(model), x, y, ball, target="least_likely", seed=0)
        assert result.success[1:].float().mean() > 0.5
        assert torch.equal(result.x_adv[0], x[0])
        assert torch.equal(result.x_adv, again.x_adv)


def test_what_it_cannot_do_is_refused(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    with pytest.raises(rp.ArgumentError, match="no square attack"):
        rp.attack("rp:square")(model, x, y, rp.Box(eps=1.0, clip=(0.0, 1.0)))
    for parameters in ({"queries": 0}, {"first_area": 0.0}, {"first_area": 1.5}, {"loss": "ce"}):
        with pytest.raises(rp.ArgumentError, match=next(iter(parameters))):
            rp.attack("rp:square", **parameters)
