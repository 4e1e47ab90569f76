"""L2 and L1 balls are bounded over the ball itself, by the dual norm of coefficients, and not only over their box."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp

BALLS = [rp.L2, rp.L1]
RADII = [0.0, 1e-4, 0.3]
NAMES = ["interval:crown", "interval:crown-ibp", "interval:alpha-crown(steps=3)"]


def _model(image: bool, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    if image:
        layers = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)]
    else:
        layers = [nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4)]
    return nn.Sequential(*layers).to(dtype).eval().requires_grad_(False)


def _found(model: nn.Module, x: Tensor, ball: rp.Ball) -> list[Tensor]:
    """Points of the ball: drawn ones, extreme ones, and those that ascent on a single logit finds, both ways."""
    generator = torch.Generator().manual_seed(0)
    found = [*ball.sample(x, 20, generator), *ball.sample(x, 20, generator, draw="corner")]
    for logit in range(4):
        for sign in (1, -1):
            z = x.clone()
            for _ in range(4):
                z = z.detach().requires_grad_(True)
                (gradient,) = torch.autograd.grad(sign * model(z)[:, logit].sum(), z)
                z = ball.project(z.detach() + ball.steepest(gradient) / 2, x)
                found.append(z)
    return found


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_no_point_of_the_ball_leaves_the_bounds(name: str, image: bool) -> None:
    certifier, model = rp.certifier(name), _model(image, torch.float64)
    x = torch.rand(3, *((1, 4, 4) if image else (6,)), dtype=torch.float64)
    for kind in BALLS:
        narrower = torch.zeros(3, 4, dtype=torch.float64)
        for eps in RADII:
            ball = kind(eps=eps, clip=(0, 1))
            bounds = certifier.bounds(model, x, ball)
            for z in _found(model, x, ball):
                assert bool(bounds.contains(model(z), tolerance=1e-9).all()), (kind, eps)
            assert bool((bounds.width >= narrower - 1e-9).all())
            narrower = bounds.width


@pytest.mark.parametrize("kind", BALLS)
def test_too_small_a_dual_norm_is_noticed(kind: type[rp.Ball], monkeypatch: pytest.MonkeyPatch) -> None:
    original = kind.support
    monkeypatch.setattr(kind, "support", lambda self, x: original(self.scaled(0.9), x))
    with pytest.raises(AssertionError):
        test_no_point_of_the_ball_leaves_the_bounds("interval:crown", image=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_linear_models_have_the_closed_form(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    layer, x, y = nn.Linear(7, 3).to(dtype), torch.randn(4, 7, dtype=dtype), torch.tensor([0, 1, 2, 0])
    spec = rp.margin_spec(y, 3, dtype=dtype)
    eps = (0.0, 0.1, 0.5, 2.0)
    for kind, dual in ((rp.L2, 2), (rp.L1, torch.inf)):
        bounds = rp.certifier(name).bounds(layer, x, kind(eps=eps, clip=None), spec)
        rows = spec @ layer.weight
        clean = (spec @ layer(x).unsqueeze(2)).squeeze(2)
        room = torch.tensor(eps, dtype=dtype).unsqueeze(1) * torch.linalg.vector_norm(rows, ord=dual, dim=2)
        torch.testing.assert_close(bounds.lower, clean - room, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(bounds.upper, clean + room, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wider_than_over_the_box(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    certifier, model, x = rp.certifier(name), _model(False, torch.float64), torch.rand(5, 6, dtype=torch.float64)
    for kind in BALLS:
        ball = kind(eps=0.3, clip=(0, 1))
        over_ball = certifier.bounds(model, x, ball)
        with monkeypatch.context() as patch:
            patch.setattr(kind, "support", lambda self, x: None)
            over_box = certifier.bounds(model, x, ball)
        assert bool((over_ball.width <= over_box.width + 1e-9).all())
        assert float((over_ball.width / over_box.width).median()) < 0.8


@pytest.mark.parametrize("kind", BALLS)
def test_empty_batches_have_no_bounds(kind: type[rp.Ball]) -> None:
    model = _model(False, torch.float64)
    bounds = rp.certifier("interval:crown").bounds(model, torch.rand(0, 6, dtype=torch.float64), kind(eps=1, clip=None))
    assert bounds.shape == (0, 4)
