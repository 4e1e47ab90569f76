"""Blocks as people write them: bounded by the engine, attacked, explained; what has no bounds names its layer."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from support.bounds_checker import sound
from support.strangers_sequences import REFUSED, SEQUENCES
from support.strangers_vision import VISION
from torch import nn

import robust_plugins as rp
from robust_plugins.intervals import trace

MODELS = {**VISION, **SEQUENCES}
SLOW = {"convnext", "mixer", "clip", "gates", "torch's transformer", "annotated transformer", "table"}
"""Models whose gradients take seconds to bound."""
BRIEF = {"fire", "inception", "unet", "tcn", "maxout"}
"""Models that are quick to attack."""
models = pytest.mark.parametrize("name", MODELS)


@cache
def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The model in evaluation mode, with weights of a seed and statistics as after training; and inputs."""
    kind, shape = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        return model, torch.rand(2, *shape)


@models
@pytest.mark.parametrize("certifier", ["interval:ibp", "interval:crown"])
def test_bounds_hold(name: str, certifier: str) -> None:
    model, x = made(name)
    ball = rp.Linf(eps=0.002 if name in SLOW else 0.02, clip=(0, 1))
    bounds = rp.certifier(certifier).bounds(model, x, ball)
    assert sound(model, x, ball, bounds.detach(), samples=10)


@pytest.mark.parametrize("name", [n if n in BRIEF else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_small_balls_are_certified_and_no_attack_contradicts(name: str) -> None:
    model, x = made(name)
    y = model(x).argmax(1)
    verdicts = rp.certifier("interval:crown")(model, x, y, rp.Linf(eps=1e-5, clip=(0, 1))).verdicts
    assert all(v is rp.Verdict.CERTIFIED for v in verdicts)
    components = ["art:pgd", "interval:ibp", "interval:crown"]
    found = rp.compare(model, x, y, rp.Linf(eps=0.05, clip=(0, 1)), components, seed=0)
    assert not found.crossings


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(MODELS) - SLOW))
def test_optimised_slopes_hold(name: str) -> None:
    model, x = made(name)
    ball = rp.Linf(eps=0.02, clip=(0, 1))
    assert sound(model, x, ball, rp.certifier("interval:alpha-crown").bounds(model, x, ball).detach(), samples=30)


@models
@pytest.mark.parametrize("certifier", ["interval:ibp", pytest.param("interval:relaxed", marks=pytest.mark.slow)])
def test_their_gradients_are_bounded(name: str, certifier: str) -> None:
    if name in SLOW and certifier == "interval:relaxed":
        pytest.skip("takes minutes")
    model, x = made(name)
    y, ball = model(x).argmax(1), rp.Linf(eps=1e-3, clip=(0, 1))
    bounds = rp.explanation_certifier(certifier).bounds(model, x, y, ball, of="logit")
    for z in ball.sample(x, 8, torch.Generator().manual_seed(0), draw="corner"):
        z = z.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(model(z).gather(1, y.unsqueeze(1)).sum(), z)
        assert bool(bounds.contains(slopes, tolerance=1e-5 * (1 + float(slopes.abs().max()))).all())


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_bounds_names_its_layer(name: str) -> None:
    kind, shape, message = REFUSED[name]
    model, x = kind().eval(), torch.rand(2, *shape)
    with pytest.raises(rp.UnsupportedModelError, match=message):
        trace(model, x)
    found = rp.certifier("interval:crown")(model, x, model(x).argmax(1), rp.Linf(eps=0.1, clip=None))
    assert all(v is rp.Verdict.UNSUPPORTED for v in found.verdicts)
