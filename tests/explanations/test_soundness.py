"""Nothing that a gradient does over a ball, or over a box of weights, lies outside its bounds."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.drawn_networks import Drawn
from support.length import length
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.explanations.bounds import adjoint, cross_entropy, joint_gates, quadratic
from robust_plugins.explanations.explained import Of
from robust_plugins.testing import adversarial_gradients, assert_inside

TOLERANCE = 1e-9
"""Relative to the largest bound of the batch: float64 evaluation of both sides."""

NETWORKS = {
    "choices": st.lists(st.integers(0, 599), min_size=1, max_size=5),
    "image": st.booleans(),
    "eps": st.sampled_from([1e-3, 0.05, 0.3, 1.0]),
    "of": st.sampled_from(["logit", "margin", "loss"]),
    "seed": st.integers(0, 10**6),
}


def _batch(model: Drawn, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand((2, *model.features), generator=g, dtype=torch.float64), torch.tensor([seed % 3, 1])


def _check(name: str, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, of: Of, *, samples: int = 25) -> None:
    bounds = rp.explanation_certifier(name).bounds(model, x, y, ball, of=of).detach().map(lambda t: t.flatten(1))
    found = adversarial_gradients(model, x, ball, rp.Explained.at(model, x, y, of), samples=samples, components=2)
    for how, values in found:
        assert_inside(bounds, values.flatten(2), f"{name}: {how}", tolerance=TOLERANCE)


@settings(max_examples=12)
@given(**NETWORKS)
def test_random_networks(choices: list[int], image: bool, eps: float, of: Of, seed: int) -> None:
    model = Drawn(choices, image=image, smooth=False, seed=seed)
    x, y = _batch(model, seed)
    for name in ("interval:ibp", "interval:crown", "interval:relaxed"):
        _check(name, model, x, y, rp.Linf(eps=eps, clip=None), of)


@settings(max_examples=10)
@given(**NETWORKS)
def test_random_smooth_networks_with_effort(choices: list[int], image: bool, eps: float, of: Of, seed: int) -> None:
    model = Drawn(choices[:3], image=image, smooth=True, seed=seed)
    x, y = _batch(model, seed)
    for effort in (1, 2):
        _check(f"interval:relaxed(effort={effort})", model, x, y, rp.Linf(eps=eps, clip=None), of)


@settings(max_examples=4)
@given(**NETWORKS)
def test_random_smooth_networks_with_most_effort(
    choices: list[int], image: bool, eps: float, of: Of, seed: int
) -> None:
    model = Drawn(choices[:2], image=False, smooth=True, seed=seed)
    x, y = _batch(model, seed)
    _check("interval:relaxed(effort=3)", model, x, y, rp.Linf(eps=eps, clip=None), of)


@pytest.mark.slow
@settings(max_examples=length(12, 60))
@given(**NETWORKS)
def test_more_networks(choices: list[int], image: bool, eps: float, of: Of, seed: int) -> None:
    ball = rp.Linf(eps=eps, clip=None)
    for smooth in (False, True):
        model = Drawn(choices, image=image, smooth=smooth, seed=seed)
        x, y = _batch(model, seed)
        for name in ("interval:ibp", "interval:crown", "interval:relaxed", "interval:relaxed(effort=2)"):
            _check(name, model, x, y, ball, of, samples=100)


@settings(max_examples=8)
@given(gamma=st.sampled_from([0.005, 0.05, 0.3]), **NETWORKS)
def test_random_weights(gamma: float, choices: list[int], image: bool, eps: float, of: Of, seed: int) -> None:
    ball = rp.Linf(eps=min(eps, 0.05), clip=None)
    model = Drawn(choices[:3], image=image, smooth=seed % 2 == 0, seed=seed)
    x, y = _batch(model, seed)
    explained = rp.Explained.at(model, x, y, of)
    g = torch.Generator().manual_seed(seed)
    found = []
    for trial in range(25):
        other = deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                noise = 2 * torch.rand(parameter.shape, generator=g, dtype=torch.float64) - 1
                parameter.add_(gamma * (noise.sign() if trial % 2 else noise) * parameter.abs())
        found.append(explained.gradient(other, ball.sample(x, 1, g, draw="corner")[0]).flatten(1))
    for name in ("interval:ibp", "interval:crown", "interval:relaxed", "interval:relaxed(effort=1)"):
        bounds = rp.explanation_certifier(name).bounds(model, x, y, ball, of=of, radius=gamma).detach()
        assert_inside(bounds.map(lambda t: t.flatten(1)), torch.stack(found), name, tolerance=TOLERANCE)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 6))
def test_weighted_sums_are_exact_linear_programmes(seed: int, classes: int) -> None:
    from scipy.optimize import linprog

    g = torch.Generator().manual_seed(seed)
    center = torch.softmax(2 * torch.randn(1, classes, generator=g, dtype=torch.float64), 1)
    low = (center - 0.3 * torch.rand(1, classes, generator=g, dtype=torch.float64)).clamp(min=0)
    high = (center + 0.3 * torch.rand(1, classes, generator=g, dtype=torch.float64)).clamp(max=1)
    total = rp.Interval(1 - high[:, 0], 1 - low[:, 0])
    t = torch.randn(1, classes - 1, 3, generator=g, dtype=torch.float64)
    terms = rp.Interval(t, t + torch.rand(t.shape, generator=g, dtype=torch.float64))
    found = cross_entropy.weighted_sum(rp.Interval(low[:, 1:], high[:, 1:]), total, terms)
    ones = torch.ones(1, classes - 1)
    for feature in range(3):
        for sign, end, bound in ((1, terms.lower, found.lower), (-1, terms.upper, found.upper)):
            solved = linprog(
                (sign * end[0, :, feature]).numpy(),
                A_ub=torch.cat((ones, -ones)).numpy(),
                b_ub=torch.cat((total.upper, -total.lower)).numpy(),
                bounds=torch.stack((low[0, 1:], high[0, 1:]), 1).numpy(),
            )
            assert solved.success
            assert sign * solved.fun == pytest.approx(bound[0, feature].item(), abs=1e-9)


def _deep_case() -> tuple[nn.Module, Tensor, Tensor]:
    model = Drawn([1, 2, 1], image=False, smooth=True, seed=3)
    return model, *_batch(model, 3)


def _shallow_case() -> tuple[nn.Module, Tensor, Tensor]:
    model = Drawn([1], image=False, smooth=True, seed=3)
    return model, *_batch(model, 3)


def _line_case() -> tuple[nn.Module, Tensor, Tensor]:
    """One tanh of one input: its slope is convex on the right, and a parabola's range is exact there."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (1.0, 0.0, 1.0, 0.0), strict=True):
            parameter.fill_(value)
    return model, torch.tensor([[1.5]], dtype=torch.float64), torch.tensor([0])


def _linear_case() -> tuple[nn.Module, Tensor, Tensor]:
    model = Drawn([], image=False, smooth=True, seed=3)
    return model, *_batch(model, 3)


def _relu_case() -> tuple[nn.Module, Tensor, Tensor]:
    # 6 * 5 + 1: the sixth activation, which is ReLU, after a linear layer
    model = Drawn([31, 31, 31], image=False, smooth=False, seed=4)
    return model, *_batch(model, 4)


def _flat_chords(monkeypatch: pytest.MonkeyPatch) -> None:
    original = adjoint._line
    monkeypatch.setattr(adjoint, "_line", lambda slope, offset: original(0.9 * slope, offset))


def _points_for_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    original = adjoint.gate
    monkeypatch.setattr(adjoint, "gate", lambda slopes: original(rp.Interval.point(slopes.center)))


def _no_curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    original = joint_gates.line_above
    monkeypatch.setattr(
        joint_gates,
        "line_above",
        lambda *args: (found := original(*args), (found[0], found[1] - 0.05 * args[3].abs()))[1],
    )


def _wrong_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_gates, "TAYLOR", joint_gates.Plane(0.9, 0.0))
    monkeypatch.setattr("robust_plugins.explanations.certifiers.PLANES", (joint_gates.Plane(0.9, 0.0),) * 3)


def _forgotten_third_order(monkeypatch: pytest.MonkeyPatch) -> None:
    original = quadratic._fresh
    monkeypatch.setattr(quadratic, "_fresh", lambda size, origin: original(0.0 * size, origin))


def _half_of_the_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    original = quadratic._outer
    monkeypatch.setattr(quadratic, "_outer", lambda a, b: 0.5 * original(a, b))


def _no_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    original = cross_entropy._largest
    monkeypatch.setattr(cross_entropy, "_largest", lambda p, total, t: original(p, 0.0 * total, t))


@pytest.mark.parametrize(
    ("fault", "make", "effort", "of"),
    [
        (_flat_chords, _relu_case, 0, "logit"),
        (_points_for_slopes, _relu_case, 0, "logit"),
        (_points_for_slopes, _deep_case, 0, "logit"),
        (_no_curvature, _shallow_case, 1, "logit"),
        (_wrong_plane, _deep_case, 1, "logit"),
        (_forgotten_third_order, _line_case, 3, "logit"),
        (_half_of_the_squares, _shallow_case, 3, "logit"),
        (_no_sum, _linear_case, 0, "loss"),
    ],
)
def test_planted_faults_are_caught(fault, make, effort, of, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = make()

    def check() -> None:
        for eps in (0.003, 0.1, 1.0):
            _check(f"interval:relaxed(effort={effort})", model, x, y, rp.Linf(eps=eps, clip=None), of, samples=150)

    check()
    fault(monkeypatch)
    with pytest.raises((AssertionError, rp.ComponentError)):  # the latter where the gradient at x is missed, too
        check()


def test_balls_of_other_norms_and_clipping() -> None:
    model, x, y = _deep_case()
    for ball in (
        rp.L2(eps=0.3, clip=(0.0, 1.0)),
        rp.L1(eps=0.4, clip=None),
        rp.Linf(eps=[0.01, 0.4], clip=(0.0, 1.0)),
    ):
        for name in ("interval:ibp", "interval:crown", "interval:relaxed(effort=2)"):
            _check(name, model, x, y, ball, "logit")


def test_outward_rounding_encloses_the_gradients_of_float32() -> None:
    for seed in range(6):
        model = Drawn([31, 1, 7, 37], image=seed % 2 == 0, smooth=False, seed=seed).float()
        x = _batch(model, seed)[0].float()
        y = torch.tensor([0, 2])
        ball = rp.Linf(eps=1e-6, clip=None)
        for of in ("logit", "loss"):
            certificate = rp.explanation_certifier("interval:ibp(outward=True)")(model, x, y, ball, of=of, delta=1.0)
            assert "floating-point" in certificate.soundness
            explained = rp.Explained.at(model, x, y, of)
            for z in ball.sample(x, 40, torch.Generator().manual_seed(seed)):
                alone = [explained[i : i + 1].gradient(model, z[i : i + 1]) for i in range(2)]
                # Another size of the batch may add up in another order.
                for found in (torch.cat(alone), explained.gradient(model, z)):
                    assert certificate.gradient.contains(found).all()
