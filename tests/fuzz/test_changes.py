"""Models that change between two calls: every component answers for the model as it is now.

A component is called, the model changed, and the component called again: its answer must be that for a model which was
made with the change and never seen before, and no point of the ball may contradict it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import attacked
from support.changing import CHANGES, Change
from support.length import length
from torch import Tensor, nn

import robust_plugins as rp

pytestmark = pytest.mark.short_audits  # what is asked here is whether a conversion is made anew
BALL = rp.Linf(eps=0.3, clip=None)
Answers = dict[str, Tensor]
Ask = Callable[[nn.Module, Tensor, Tensor], Answers]


def certifier(name: str, **fewer: int) -> Ask:
    component = rp.certifier(name, **fewer)

    def ask(model: nn.Module, x: Tensor, y: Tensor) -> Answers:
        spec = rp.margin_spec(y, 2, dtype=x.dtype)
        with torch.no_grad():
            bounds = component.bounds(model, x, BALL)
            lower = component.lower_bounds(model, x, BALL, spec)
        return {"low": bounds.lower, "up": bounds.upper, "rows": lower, "margin": component(model, x, y, BALL).margin}

    return ask


def explanation_certifier(name: str, **fewer: int) -> Ask:
    component = rp.explanation_certifier(name, **fewer)

    def ask(model: nn.Module, x: Tensor, y: Tensor) -> Answers:
        bounds = component.bounds(model, x, y, BALL, of="logit").detach()
        certificate = component(model, x, y, BALL, of="logit", delta=0.1)
        return {
            "low": bounds.lower,
            "up": bounds.upper,
            "value": certificate.value,
            "in call": certificate.gradient.lower,
        }

    return ask


def attack(name: str, **fewer: int) -> Ask:
    def ask(model: nn.Module, x: Tensor, y: Tensor) -> Answers:
        found = rp.attack(name, **fewer)(model, x, y, BALL, seed=0)
        return {"logits": found.logits, "x_adv": found.x_adv}

    return ask


def explanation_attack(name: str, **fewer: int) -> Ask:
    def ask(model: nn.Module, x: Tensor, y: Tensor) -> Answers:
        found = rp.explanation_attack(name, **fewer)(model, x, y, BALL, seed=0)
        return {"gradient": found.gradient, "value": found.value}

    return ask


COMPONENTS: dict[str, Ask] = {
    f"{kind.__name__} {info.name}": kind(info.name, **{p: 1 for p in info.parameters if p in ("steps", "restarts")})
    for kind, infos in (
        (certifier, rp.certifiers()),
        (explanation_certifier, rp.explanation_certifiers()),
        (attack, [info for info in rp.attacks() if info.name in attacked.ATTACKS]),
        (explanation_attack, rp.explanation_attacks()),
    )
    for info in infos
    if info.status == "loaded"
}


EVERY = length(7, 1)


def pairs() -> list[Any]:
    """Every component with every change in the search of hours, with each seventh one in the slow tests.

    In the fast suite all changes of one component, and some of each.
    """
    found = []
    for i, change in enumerate(CHANGES):
        for j, name in enumerate(COMPONENTS):
            fast = name == "certifier interval:ibp" or i % len(COMPONENTS) == j
            if fast or i % EVERY == j % EVERY:
                marks = [] if fast else [pytest.mark.slow]
                found.append(pytest.param(name, change, id=f"{name}-{change.name}", marks=marks))
    return found


def inputs(change: Change, model: nn.Module) -> tuple[Tensor, Tensor]:
    shape = (2, 1, 4, 4) if change.image else (2, 2)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(next(model.parameters()).dtype)
    return x, torch.tensor([0, 1])


def answer(ask: Ask, change: Change, model: nn.Module) -> Answers | type[Exception]:
    try:
        return ask(model, *inputs(change, model))
    except rp.UnsupportedModelError as error:
        return type(error)


@pytest.mark.parametrize(("component", "change"), pairs())
def test_a_changed_model_is_seen(component: str, change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    ask, used = COMPONENTS[component], change.make().eval()
    before = answer(ask, change, used)
    change.apply(used, monkeypatch)
    now = answer(ask, change, used)
    if change.same:
        assert_same(now, before)
        return
    fresh = change.make().eval()
    change.apply(fresh, monkeypatch)
    assert_same(now, answer(ask, change, fresh))
    if isinstance(now, dict) and "low" in now:
        assert_contained(component, change, fresh, now)


@pytest.mark.parametrize("change", [c for c in CHANGES if not c.same], ids=lambda change: change.name)
def test_each_change_changes_the_outputs(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the tests above could not fail."""
    model = change.make().eval()
    if change.name == "dtype":
        return
    before = model(inputs(change, model)[0])
    change.apply(model, monkeypatch)
    assert (model(inputs(change, model)[0]) - before).abs().max() > 1e-2


def assert_same(now: Any, expected: Any) -> None:
    assert type(now) is type(expected), f"{now} instead of {expected}"
    if isinstance(now, dict):
        for what, value in expected.items():
            torch.testing.assert_close(now[what], value, rtol=1e-4, atol=1e-5, msg=lambda m, w=what: f"{w}: {m}")


def assert_contained(component: str, change: Change, model: nn.Module, now: Answers) -> None:
    x, y = inputs(change, model)
    draw = torch.Generator().manual_seed(0)
    z = torch.cat([BALL.sample(x, 40, draw, draw=kind) for kind in ("uniform", "corner")]).requires_grad_()
    out = model(z.flatten(0, 1))
    found = out.view(80, 2, 2)
    if component.startswith("explanation"):
        own = out.gather(1, y.repeat(80).unsqueeze(1)).sum()
        (found,) = torch.autograd.grad(own, z)
    slack = 1e-5 * (1 + found.abs().max())
    assert (found >= now["low"] - slack).all()
    assert (found <= now["up"] + slack).all()
