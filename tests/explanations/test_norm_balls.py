"""Bounds on gradients over L2 and L1 balls, by the dual norm of coefficients: sound, and not those over the box."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp

BALLS = [rp.L2, rp.L1]
EPS = (1e-4, 0.05, 0.2, 0.4)


def _case() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.Softplus(), nn.Linear(8, 3))
    return (
        model.double().eval().requires_grad_(False),
        torch.rand(4, 6, dtype=torch.float64),
        torch.tensor([0, 1, 2, 0]),
    )


def _gradient(model: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    z = z.detach().requires_grad_(True)
    return torch.autograd.grad(model(z).gather(1, y.unsqueeze(1)).sum(), z, create_graph=True)[0]


def _found(model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball) -> list[Tensor]:
    """Drawn points, extreme ones, and what ascent on single components of the gradient finds, both ways."""
    generator = torch.Generator().manual_seed(0)
    points = [*ball.sample(x, 60, generator), *ball.sample(x, 60, generator, draw="corner")]
    for component in range(x.shape[1]):
        for sign in (1, -1):
            z = x.clone()
            for _ in range(4):
                z = z.detach().requires_grad_(True)
                rise = torch.autograd.grad(model(z).gather(1, y.unsqueeze(1)).sum(), z, create_graph=True)[0]
                (up,) = torch.autograd.grad(sign * rise[:, component].sum(), z)
                z = ball.project(z.detach() + ball.steepest(up) / 2, x)
                points.append(z)
    return points


@pytest.mark.parametrize("name", ["interval:crown", "interval:relaxed", "interval:relaxed(effort=1)"])
def test_no_gradient_leaves_the_bounds(name: str) -> None:
    model, x, y = _case()
    for kind in BALLS:
        ball = kind(eps=EPS, clip=(0, 1))
        bounds = rp.explanation_certifier(name).bounds(model, x, y, ball, of="logit")
        for z in _found(model, x, y, ball):
            assert bool(bounds.contains(_gradient(model, z, y).detach(), tolerance=1e-9).all()), kind


@pytest.mark.parametrize("kind", BALLS)
def test_too_small_a_dual_norm_is_noticed(kind: type[rp.Ball], monkeypatch: pytest.MonkeyPatch) -> None:
    original = kind.support
    monkeypatch.setattr(kind, "support", lambda self, x: original(self.scaled(0.5), x))
    with pytest.raises(AssertionError):
        test_no_gradient_leaves_the_bounds("interval:relaxed")


def test_they_are_closer_than_over_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = _case()
    certifier = rp.explanation_certifier("interval:relaxed")
    for kind in BALLS:
        ball = kind(eps=0.2, clip=(0, 1))
        over_ball = certifier.bounds(model, x, y, ball, of="logit")
        with monkeypatch.context() as patch:
            patch.setattr(kind, "support", lambda self, x: None)
            over_box = certifier.bounds(model, x, y, ball, of="logit")
        assert float((over_ball.width / over_box.width).detach().median()) < 0.9
