"""The four certifiers of auto_LiRPA behind the common interface."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from support.lirpa_cases import BALL, close, cnn, each, images, mlp, points
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.adapters.lirpa import CROWN, CROWNIBP, IBP, AlphaCROWN


def test_registered_names_build_the_classes() -> None:
    names = {c.name for c in rp.certifiers()}
    assert {"lirpa:ibp", "lirpa:crown-ibp", "lirpa:crown", "lirpa:alpha-crown"} <= names
    assert rp.certifier("lirpa:alpha-crown", steps=7) == AlphaCROWN(steps=7)


@pytest.mark.parametrize("parameters", [{"steps": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}])
def test_alpha_crown_refuses_useless_parameters(parameters: dict[str, float]) -> None:
    with pytest.raises(rp.ArgumentError):
        rp.certifier("lirpa:alpha-crown", **parameters)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certificates_hold_margins_merged_into_the_last_layer(certifier: rp.Certifier, dtype: torch.dtype) -> None:
    model, x = cnn().to(dtype), images(dtype=dtype)
    y = model(x).argmax(1)
    certificate = certifier(model, x, y, BALL)
    assert not any(certificate.messages)
    assert certificate.margin.dtype == dtype
    spec = rp.margin_spec(y, 3, dtype=dtype)
    unmerged = rp.apply_spec(certifier.bounds(model, x, BALL), spec).lower.amin(1)
    assert (certificate.margin >= unmerged - 1e-5).all()
    tiny = certifier(model, x, y, rp.Linf(eps=1e-5, clip=(0.0, 1.0)))
    assert tiny.certified.all()


def test_alpha_crown_is_tighter_than_crown() -> None:
    model, x = cnn(3), images()
    y = model(x).argmax(1)
    ball = rp.Linf(eps=0.2, clip=(0.0, 1.0))
    crown, alpha = (c(model, x, y, ball).margin for c in (CROWN(), AlphaCROWN(steps=10)))
    assert (alpha >= crown - 1e-6).all()
    assert (alpha > crown + 1e-4).any()


@each
def test_both_ends_of_the_logits_are_optimised_without_a_specification(certifier: rp.Certifier) -> None:
    model, x = cnn(), images()
    ours = certifier.bounds(model, x, BALL)
    rows = torch.eye(3).expand(4, 3, 3)
    upper_as_lower = -certifier.bounds(model, x, BALL, -rows).lower
    assert torch.allclose(ours.upper, upper_as_lower, atol=1e-4)


@each
def test_zero_radius_gives_the_logits(certifier: rp.Certifier) -> None:
    for ball in (rp.Linf(eps=0.0, clip=(0.0, 1.0)), rp.L2(eps=0.0, clip=None), rp.L1(eps=0.0, clip=(0.0, 1.0))):
        bounds = certifier.bounds(cnn(), images(), ball)
        assert close(bounds, rp.Interval.point(cnn()(images())))


@each
@pytest.mark.parametrize("norm", [rp.Linf, rp.L2, rp.L1])
def test_a_radius_per_sample_equals_calls_per_sample(certifier: rp.Certifier, norm: type[rp.Ball]) -> None:
    model, x, eps = cnn(), images(), (0.1, 0.0, 0.3, 0.1)
    together = certifier.bounds(model, x, norm(eps=eps, clip=(0.0, 1.0)))
    for i, radius in enumerate(eps):
        alone = certifier.bounds(model, x[i : i + 1], norm(eps=radius, clip=(0.0, 1.0)))
        assert close(together[i : i + 1], alone)


@each
def test_chunks_change_nothing(certifier: rp.Certifier) -> None:
    model, x = cnn(), images(5)
    chunked = type(certifier)(**{**certifier.__dict__, "batch_size": 2})
    assert close(certifier.bounds(model, x, BALL), chunked.bounds(model, x, BALL))


def test_wider_balls_have_wider_interval_bounds() -> None:
    widths = [IBP().bounds(cnn(), images(), rp.Linf(eps=e, clip=(0.0, 1.0))).width for e in (0.0, 0.05, 0.1, 0.4)]
    for narrow, wide in pairwise(widths):
        assert (narrow <= wide + 1e-6).all()


def test_clip_makes_bounds_tighter() -> None:
    for norm, eps in ((rp.Linf, 0.9), (rp.L2, 3.0), (rp.L1, 9.0)):
        free, cut = (CROWN().bounds(mlp(), points(), norm(eps=eps, clip=clip)) for clip in (None, (0.0, 1.0)))
        assert cut.width.sum() < 0.95 * free.width.sum()


@each
def test_a_normalisation_inside_the_model_changes_nothing(certifier: rp.Certifier) -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor([0.3]).view(1, 1, 1))
            self.std = nn.Parameter(torch.tensor([-0.5]).view(1, 1, 1))  # negative: swaps the ends
            self.net = cnn()

        def forward(self, x: Tensor) -> Tensor:
            return self.net((x - self.mean) / self.std)

    model, x = Normalised().eval(), images()
    inside = certifier.bounds(model, x, rp.Linf(eps=0.05, clip=None))
    outside = certifier.bounds(model.net, (x - 0.3) / -0.5, rp.Linf(eps=0.1, clip=None))
    assert close(inside, outside, 1e-4)


@each
def test_the_model_is_left_as_found(certifier: rp.Certifier) -> None:
    model = cnn().train()
    frozen, free = model[0].weight, model[0].bias
    frozen.requires_grad_(False)
    free.grad = torch.ones(3)
    before = copy.deepcopy(model.state_dict())
    versions = [p._version for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    random_state = torch.get_rng_state()
    bounds = certifier.bounds(model, images(), BALL)
    certifier(model, images(), torch.zeros(4, dtype=torch.long), BALL)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    assert [p._version for p in model.parameters()] == versions
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not frozen.requires_grad
    assert free.grad is not None
    assert torch.equal(free.grad, torch.ones(3))
    bounds.width.sum().backward()
    assert frozen.grad is None
    assert model[1].weight.grad is not None


@each
def test_the_first_call_does_not_break_a_pending_backward(certifier: rp.Certifier) -> None:
    model = mlp()
    loss = model(points()).square().sum()
    certifier.bounds(model, points(), BALL)
    loss.backward()


@each
def test_no_grad_and_inference_mode(certifier: rp.Certifier) -> None:
    expected = certifier.bounds(cnn(), images(), BALL)
    assert expected.lower.requires_grad
    with torch.no_grad():
        bounds = certifier.bounds(cnn(), images(), BALL)
    assert not bounds.lower.requires_grad
    assert close(bounds, expected)
    model = cnn()
    with torch.inference_mode():
        assert close(certifier.bounds(model, images(), BALL), expected)
        assert not any(certifier(model, images(), torch.zeros(4, dtype=torch.long), BALL).messages)


@each
def test_gradients_agree_with_finite_differences(certifier: rp.Certifier) -> None:
    model = mlp().double()
    x, ball, weight = points(2).double(), rp.Linf(eps=0.1, clip=(0.0, 1.0)), model[1].weight

    def value() -> Tensor:
        bounds = IBP().bounds(model, x, ball) if isinstance(certifier, IBP) else certifier.bounds(model, x, ball)
        return (bounds.upper - 0.5 * bounds.lower).sum()

    if isinstance(certifier, AlphaCROWN):
        # Its slopes are held fixed in the gradient; a finite difference would move them as well.
        value().backward()
        assert weight.grad is not None
        assert float(weight.grad.abs().sum()) > 0
        return
    value().backward()
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        weight += step * direction
        above = value()
        weight -= 2 * step * direction
        below = value()
    assert weight.grad is not None
    assert float((weight.grad * direction).sum()) == pytest.approx(float(above - below) / (2 * step), rel=1e-4)


def test_memory_estimates_make_chunks() -> None:
    sizes = [3072, 16384, 16384, 100]
    with torch.no_grad():
        assert CROWN().bytes_per_sample(sizes, 10, 4) >= 4 * 16384**2
        assert CROWN().bytes_per_sample(sizes, 10, 8) == 2 * CROWN().bytes_per_sample(sizes, 10, 4)
        assert CROWNIBP().bytes_per_sample(sizes, 10, 4) < CROWN().bytes_per_sample(sizes, 10, 4) / 100
        one_graph = CROWN().bytes_per_sample(sizes, 10, 4)
    assert CROWN().bytes_per_sample(sizes, 10, 4) > one_graph  # gradients keep every matrix


@dataclass(frozen=True, kw_only=True)
class Crossing(IBP):
    """A backend whose bounds of the points of radius 0 cross."""

    by: float

    def _bounds(
        self, converted: object, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None
    ) -> rp.Interval:
        found = super()._bounds(converted, model, x, ball, spec)  # type: ignore[arg-type]
        return found if ball.eps else rp.Interval(found.lower + self.by, found.upper - self.by)


@pytest.mark.usefixtures("unchecked")
def test_ends_that_cross_by_rounding_are_exchanged_and_others_are_an_error() -> None:
    model, x, point = mlp(), points(), rp.Linf(eps=0.0, clip=None)
    found = Crossing(by=1e-7).bounds(model, x, point).detach()
    assert (found.lower <= found.upper).all()
    assert found.contains(model(x), tolerance=1e-6).all()
    with pytest.raises(rp.ComponentError, match="cross"):
        Crossing(by=1e-4).bounds(model, x, point)
