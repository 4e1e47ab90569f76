"""Gradients through softmax, normalisations and products of activations: sound, and linear in the input."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.digits import batched
from support.length import length
from support.token_networks import PARTS, TokenNetwork, Transformer
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.explanations.bounds import gradient_graph, joint_gates, smooth_gates
from robust_plugins.explanations.explained import Of
from robust_plugins.intervals.layers import Multiply, Product
from robust_plugins.intervals.rules.registry import rules_for
from robust_plugins.testing import adversarial_gradients, assert_inside

RELAXED = rp.explanation_certifier("interval:relaxed")


def _batch(seed: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand((2, *shape), generator=g, dtype=torch.float64), torch.tensor([seed % 3, 1])


def _check(model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, of: Of, **search: Any) -> tuple[Tensor, Tensor]:
    """The widths that are proved, and those that are found."""
    with torch.no_grad():
        bounds = RELAXED.bounds(model, x, y, ball, of=of).map(lambda t: t.flatten(1))
    explained = rp.Explained.at(model, x, y, of)
    found = [(how, v.flatten(2)) for how, v in adversarial_gradients(model, x, ball, explained, **search)]
    for how, values in found:
        assert_inside(bounds, values, how, tolerance=1e-9)
    values = torch.cat([v for _, v in found])
    return bounds.width, values.amax(0) - values.amin(0)


@pytest.mark.parametrize("name", PARTS)
def test_every_part_is_sound_and_linear_for_small_balls(name: str) -> None:
    model = TokenNetwork([name], seed=1)
    x, y = _batch(1, model.features)
    proved, found = _check(model, x, y, rp.Linf(eps=1e-4, clip=None), "loss", samples=3, steps=3, components=12)
    assert (proved <= 1.1 * found + 1e-9).all(), f"{(proved / found).max():.3g} times what is found"
    _check(model, x, y, rp.Linf(eps=0.1, clip=None), "logit", samples=20, steps=4, components=2)


@settings(max_examples=3)
@given(
    parts=st.lists(st.sampled_from(sorted(PARTS)), min_size=2, max_size=3),
    eps=st.sampled_from([1e-4, 1e-3, 0.03, 0.1]),
    of=st.sampled_from(["logit", "margin", "loss"]),
    seed=st.integers(0, 10**6),
)
def test_random_compositions(parts: list[str], eps: float, of: Of, seed: int) -> None:
    model = TokenNetwork(parts, seed=seed)
    _check(model, *_batch(seed, model.features), rp.Linf(eps=eps, clip=None), of, samples=15, steps=4, components=2)


@pytest.mark.slow
@settings(max_examples=length(30, 300))
@given(
    parts=st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=4),
    eps=st.sampled_from([1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3]),
    of=st.sampled_from(["logit", "margin", "loss"]),
    seed=st.integers(0, 10**6),
)
def test_more_compositions(parts: list[str], eps: float, of: Of, seed: int) -> None:
    model = TokenNetwork(parts, seed=seed)
    x, y = _batch(seed, model.features)
    assume(bool((model(x).abs() < 1e3).all()))  # exponentials of exponentials overflow
    _check(model, x, y, rp.Linf(eps=eps, clip=None), of, samples=100, components=6)


def test_wider_balls_points_and_weights() -> None:
    model = TokenNetwork(["softmax of tokens", "layer norm"], seed=2)
    x, y = _batch(2, model.features)
    widths = [
        RELAXED.bounds(model, x, y, rp.Linf(eps=eps, clip=None), of="loss").width.detach().flatten(1).sum(1)
        for eps in (0.0, 1e-3, 2e-2)
    ]
    assert (widths[0] < 1e-9).all()
    assert all((a < b).all() for a, b in pairwise(widths))
    ball, gamma = rp.Linf(eps=1e-3, clip=None), 0.002
    bounds = RELAXED.bounds(model, x, y, ball, of="logit", radius=gamma).detach()
    assert (bounds.width > RELAXED.bounds(model, x, y, ball, of="logit").width).all()
    explained, g = rp.Explained.at(model, x, y, "logit"), torch.Generator().manual_seed(0)
    own = {k: p.detach() for k, p in model.named_parameters()}
    for _ in range(15):
        moved = {k: p + gamma * p.abs() * (torch.rand(p.shape, generator=g) < 0.5).to(p).mul(2).sub(1)
                 for k, p in own.items()}  # fmt: skip
        z = ball.sample(x, 1, g, draw="corner")[0]
        value = explained.gradient(lambda t, w=moved: torch.func.functional_call(model, w, (t,)), z)
        assert bounds.contains(value, tolerance=1e-9).all()


def test_training_sees_the_widths() -> None:
    model = TokenNetwork(["attention"], seed=3)
    x, y = _batch(3, model.features)
    RELAXED.widths(model, x, y, rp.Linf(eps=1e-3, clip=None), of="loss").sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_trained_transformer_keeps_its_most_important_pixel() -> None:
    data = rp.dataset("digits")
    torch.manual_seed(0)
    model = Transformer(nn.GELU)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(3):
        for x, y in batched(data, generator=torch.Generator().manual_seed(0)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    x, y = data.x_test[:4], data.y_test[:4]
    certificate = RELAXED(model.eval(), x, y, rp.Linf(eps=1e-3, clip=(0.0, 1.0)), delta=0.1)
    assert certificate.keeps_top(1).double().mean() >= 0.5
    attacked = rp.explanation_attack("gradient:corner-pgd", corners=2, restarts=0, steps=2)(
        model, x, y, rp.Linf(eps=1e-3, clip=(0.0, 1.0)), goal="top_k", seed=0
    )
    assert not (attacked.evicted & certificate.keeps_top(1)).any()


def _low_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines over slopes that are a little too low."""
    original = joint_gates.line_above

    def lowered(*args: Any) -> tuple[Tensor, Tensor]:
        slope, offset = original(*args)
        return slope, offset - 0.1 * args[1].width.unsqueeze(1) ** 2

    monkeypatch.setattr(smooth_gates, "line_above", lowered)


def _no_second_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates without the term `ds dg p q`."""
    original = smooth_gates.smooth_gate

    def gate(smooth: Any) -> Any:
        rules = original(smooth)
        rules.relaxation = _of_one_center(rules.relaxation)
        return rules

    monkeypatch.setattr(gradient_graph, "smooth_gate", gate)


def _forgotten_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `y g` in the gradient of a normalisation."""
    original = gradient_graph._Builder._plain

    def plain(self: Any, layer: nn.Module, *inputs: int, **others: Any) -> int:
        if isinstance(layer, Product) and layer.equation == "abc,abc->ab":
            inputs = (inputs[0], inputs[0])
        return original(self, layer, *inputs, **others)

    monkeypatch.setattr(gradient_graph._Builder, "_plain", plain)


def _point_products(monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in (Multiply(), Product("ab,ab->a")):
        rules = rules_for(layer)
        assert rules is not None
        assert rules.relaxation is not None
        monkeypatch.setattr(rules, "relaxation", _of_one_center(rules.relaxation))


def _of_one_center(relaxation: Callable[..., Any]) -> Callable[..., Any]:
    return lambda layer, x, y: relaxation(layer, x, rp.Interval.point(y.center))


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        (_low_lines, ["tanh"]),
        (_no_second_order, ["tanh"]),
        (_forgotten_mean, ["layer norm"]),
        (_point_products, ["product", "product"]),
        (_point_products, ["matrix product"]),
    ],
)
def test_planted_faults_are_caught(fault: Any, parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = TokenNetwork(parts, seed=4)
    x, y = _batch(4, model.features)

    def check() -> None:
        _check(model, x, y, rp.Linf(eps=0.1, clip=None), "logit", samples=20, steps=4, components=6)

    check()
    fault(monkeypatch)
    with pytest.raises((AssertionError, rp.ComponentError)):
        check()
