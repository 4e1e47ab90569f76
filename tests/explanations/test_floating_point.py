"""Bounds on gradients with outward rounding hold for every order of summation, and so does what follows from them."""

from __future__ import annotations

import copy

import pytest
import torch
from support.length import length
from support.summation import cancelling, permuted
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.intervals import rounding

NAMES = [c.name for c in rp.explanation_certifiers() if "outward" in c.parameters]
KINDS = ("stable", "magnitudes", "hidden", "logits")


def gradients(model: nn.Sequential, explained: rp.Explained, z: Tensor, draw: torch.Generator) -> list[Tensor]:
    """What automatic differentiation computes there: in a batch and alone, of reordered networks, and in float64."""
    found = []
    for net in (model, permuted(model, draw), permuted(model, draw)):
        found.append(explained.gradient(net, z))
        found.append(torch.cat([explained[i : i + 1].gradient(net, z[i : i + 1]) for i in range(len(z))]))
    wide = rp.Explained(explained.of, explained.y, explained.coefficients.double())
    found.append(wide.gradient(copy.deepcopy(model).double(), z.double()))
    return found


def violations(name: str, kind: str, of: rp.Of, seed: int, radii: tuple[float, ...]) -> int:
    """How many components lie outside of the bounds, and how many statements are not true of what is computed."""
    draw, found = torch.Generator().manual_seed(seed), 0
    model, x = cancelling(kind, torch.float32, draw)
    y = model(x).argmax(1)
    explained = rp.Explained.at(model, x, y, of)
    for eps in radii:
        ball = rp.Linf(eps=eps, clip=None)
        c = rp.explanation_certifier(name, outward=True)(model, x, y, ball, of=of, delta=1e-3)
        reached = []
        for z in (x, *ball.sample(x, 2, draw, draw="corner"), *ball.sample(x, 2, draw)):
            reached += [v.double() for v in gradients(model, explained, z, draw)]
        low, up = c.gradient.lower.double(), c.gradient.upper.double()
        top, deviation = c.value.abs().argmax(1), c.deviation.double()
        keeps_top, keeps_sign, value = c.keeps_top(1), c.keeps_sign(), c.value.double()
        for v in reached:
            found += int(((v < low) | (v > up)).sum())
            found += int((keeps_sign & (v.sign() != value.sign()).any(1)).sum())
            found += int((keeps_top & (v.abs().argmax(1) != top)).sum())
            away = (v - value).norm(dim=1) / value.norm(dim=1)
            found += int((away > deviation * (1 + 1e-12)).sum())
            found += int(c.excludes(v, 0.0).sum())
        moved = torch.stack(reached)
        found += int((c.robust & (moved.amax(0) - moved.amin(0) > c.delta.double())).sum())
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_leaves_the_bounds_in_any_order_of_summation(name: str, kind: str) -> None:
    for of in ("logit", "loss"):
        assert violations(name, kind, of, 0, (0.0, 1e-3)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("of", ["logit", "margin", "loss"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_leaves_the_bounds_of_more_networks(name: str, kind: str, of: rp.Of) -> None:
    for seed in range(length(3, 20)):
        assert violations(name, kind, of, seed, (0.0, 1e-6, 1e-4, 1e-2, 0.1)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_errors_that_are_not_counted_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for gamma in ("once", "kappa", "underflow"):
        monkeypatch.setattr(rounding, gamma, lambda *_: 0.0)
    monkeypatch.setattr(rounding, "lessened", lambda number, by: number - by)
    monkeypatch.setattr(rounding, "widened", lambda low, up, **_: (low, up))
    assert violations(name, "stable", "logit", 0, (0.0,)) > 0
