"""Every recipe computes its paper's formula, written out by hand, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support.by_hand import adversarial, fixed, hand_crown_ibp, hand_ibp, network, samples
from torch import Tensor

import robust_plugins as rp
from robust_plugins.losses.batch import Batch
from robust_plugins.testing import fresh_registry  # noqa: F401 (a fixture)

EPS = 0.08
BALL = rp.Linf(eps=EPS, clip=(0, 1))
CERTIFIED = {"ibp", "crown-ibp", "sabr", "mtl-ibp", "cc-ibp", "exp-ibp"}


def _value(name: str, **parameters: object) -> tuple[Tensor, Tensor, Tensor, Tensor, torch.nn.Sequential]:
    model, (x, y) = network(), samples()
    if name in CERTIFIED:
        parameters = {"epochs": 10, "schedule": fixed()} | parameters
    loss = rp.recipe(name, **({} if name == "standard" else {"ball": BALL}), **parameters)
    torch.manual_seed(7)
    return loss(model, x, y), model(x), x, y, model


def _margins(model: torch.nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    return hand_ibp(model, (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1), y)


def test_standard() -> None:
    value, clean, _, y, _ = _value("standard")
    assert value.item() == pytest.approx(F.cross_entropy(clean, y).item(), rel=1e-12)


def test_goodfellow() -> None:
    value, clean, x, y, model = _value("goodfellow")
    z = x.clone().requires_grad_()
    F.cross_entropy(model(z), y).backward()
    attacked = model((x + EPS * z.grad.sign()).clamp(0, 1))
    assert value.item() == pytest.approx((0.5 * F.cross_entropy(clean, y) + 0.5 * F.cross_entropy(attacked, y)).item())


@pytest.mark.parametrize(("name", "attack"), [
    ("madry", f"art:pgd(steps=7, step_size={EPS / 4}, best=False)"),
    ("fast", f"art:pgd(steps=1, step_size={1.25 * EPS}, best=False)"),
])  # fmt: skip
def test_attacks_without_a_clean_loss(name: str, attack: str) -> None:
    value, _, x, y, model = _value(name)
    expected = F.cross_entropy(model(adversarial(attack, model, x, y, BALL)), y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)


def test_trades() -> None:
    value, clean, x, y, model = _value("trades")
    torch.manual_seed(7)
    z = x + 0.001 * torch.randn_like(x)
    for step in range(11):
        z = torch.minimum(torch.maximum(z.detach(), x - EPS), x + EPS).clamp(0, 1).requires_grad_()
        p, q = model(x).softmax(1), model(z).softmax(1)
        divergence = (p * (p / q).log()).sum(1)
        if step < 10:
            z = z + 0.007 / 0.031 * EPS * torch.autograd.grad(divergence.sum(), z)[0].sign()
    expected = F.cross_entropy(clean, y) + 6 * divergence.mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-10)


def test_divergence_in_other_balls_and_from_attacks() -> None:
    """It stays in the ball, and is above that of the clean inputs and of random ones."""
    model, (x, y) = network(), samples()
    ball = rp.L2(eps=0.3, clip=(0, 1))
    worst = rp.losses.Diverging(steps=20)
    torch.manual_seed(0)
    found = worst._inputs(Batch(model, x, y, ball))
    assert bool(ball.contains(found, x).all())

    def divergence(z: Tensor) -> Tensor:
        return F.kl_div(model(z).log_softmax(1), model(x).log_softmax(1), log_target=True, reduction="none").sum(1)

    assert bool((divergence(found) >= divergence(ball.sample(x, 1)[0])).all())
    attacked = rp.MixedLoss(worst="art:pgd(steps=3)", gamma=0.0, ball=BALL, combiner=rp.losses.TRADES())
    assert attacked(model, x, y).item() > F.cross_entropy(model(x), y).item()
    for wrong in ({"steps": 0}, {"step": 0.0}):
        with pytest.raises(rp.ArgumentError, match="step"):
            rp.losses.Diverging(**wrong)


def test_mart() -> None:
    value, clean, x, y, model = _value("mart")
    p, q = (
        clean.softmax(1),
        model(
            adversarial(f"art:pgd(steps=10, step_size={0.007 / 0.031 * EPS}, best=False)", model, x, y, BALL)
        ).softmax(1),
    )
    index = torch.arange(len(x))
    rival = q.clone()
    rival[index, y] = 0
    boosted = -q[index, y].log() - (1 - rival.amax(1)).log()
    expected = (boosted + 5 * (p * (p / q).log()).sum(1) * (1 - p[index, y])).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-10)


def test_ibp() -> None:
    value, clean, x, y, model = _value("ibp")
    expected = 0.5 * F.cross_entropy(clean, y) + 0.5 * F.cross_entropy(-_margins(model, x, y), y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    other, *_ = _value("ibp", certifier="lirpa:ibp")
    assert other.item() == pytest.approx(expected.item(), rel=1e-7)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_crown_ibp(beta: float) -> None:
    loss = rp.recipe("crown-ibp", ball=BALL, epochs=1, schedule=lambda epoch: 1 - beta)
    model, (x, y) = network(), samples()
    eps = EPS * (1 - beta)
    low, up = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    margins = beta * hand_crown_ibp(model, low, up, y) + (1 - beta) * hand_ibp(model, low, up, y)
    gamma = 1 - 0.5 * (1 - beta)
    expected = gamma * F.cross_entropy(model(x), y) + (1 - gamma) * F.cross_entropy(-margins, y)
    value = loss(model, x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-10)
    assert value.terms.gamma == pytest.approx(gamma)
    assert value.terms.eps == pytest.approx(eps)


def test_crown_ibp_with_a_schedule_of_its_own() -> None:
    bounds = rp.losses.Blended(
        tight=rp.certifier("interval:crown-ibp"),
        loose=rp.certifier("interval:ibp"),
        beta=rp.Ramp(start=0, end=4, shape="linear", first=1, last=0),
    )
    loss = rp.MixedLoss(worst=bounds, gamma=0.0, ball=BALL, schedule=fixed())
    model, (x, y) = network(), samples()
    low, up = (x - EPS).clamp(0, 1), (x + EPS).clamp(0, 1)
    for epoch, beta in ((0, 1.0), (1, 0.75), (4, 0.0)):
        loss.step(epoch, -1, 10)
        margins = beta * hand_crown_ibp(model, low, up, y) + (1 - beta) * hand_ibp(model, low, up, y)
        assert loss(model, x, y).item() == pytest.approx(F.cross_entropy(-margins, y).item(), rel=1e-10)


def test_sabr() -> None:
    value, _, x, y, model = _value("sabr")
    x_adv = adversarial("art:pgd(steps=8, best=False)", model, x, y, BALL)
    center = torch.minimum(torch.maximum(x_adv, x - 0.6 * EPS), x + 0.6 * EPS)
    margins = hand_ibp(model, (center - 0.4 * EPS).clamp(0, 1), (center + 0.4 * EPS).clamp(0, 1), y)
    assert value.item() == pytest.approx(F.cross_entropy(-margins, y).item(), rel=1e-10)


def test_sabr_with_the_whole_box_is_ibp() -> None:
    whole, *_ = _value("sabr", ratio=1.0)
    ibp, *_ = _value("ibp", gamma=0.0)
    assert whole.item() == pytest.approx(ibp.item(), rel=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["mtl-ibp", "cc-ibp", "exp-ibp"])
def test_expressive_losses(name: str, alpha: float) -> None:
    value, _, x, y, model = _value(name, alpha=alpha)
    attacked = model(adversarial(f"art:pgd(steps=1, step_size={10 * EPS}, best=False)", model, x, y, BALL))
    margins = _margins(model, x, y)
    adv, cert = F.cross_entropy(attacked, y), F.cross_entropy(-margins, y)
    differences = attacked.gather(1, y.unsqueeze(1)) - attacked
    expected = {
        "mtl-ibp": alpha * cert + (1 - alpha) * adv,
        "cc-ibp": F.cross_entropy(-(alpha * margins + (1 - alpha) * differences), y),
        "exp-ibp": cert**alpha * adv ** (1 - alpha),
    }[name]
    assert value.item() == pytest.approx(expected.item(), rel=1e-10)
    assert value.terms.parts["certified"].item() == pytest.approx(cert.item())
    assert value.terms.parts["adversarial"].item() == pytest.approx(adv.item())


@pytest.mark.parametrize("name", [info.name for info in rp.recipes()])
def test_gradients_agree_with_finite_differences(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64; adversarial examples are constants of the gradient, so they are those of the unmoved model."""
    model, (x, y) = network(), samples()
    parameters = {} if name == "standard" else {"ball": BALL}
    loss = rp.recipe(name, **parameters, **({"epochs": 10, "schedule": lambda e: 0.7} if name in CERTIFIED else {}))
    examples: list[Tensor] = []
    find = Batch.attacked

    def attacked(batch: Batch, attack: rp.Attack) -> Tensor:
        if not examples:
            examples.append(find(batch, attack))
        return examples[0]

    monkeypatch.setattr(Batch, "attacked", attacked)
    if name == "trades":
        apart = loss.worst._inputs(Batch(model, x, y, BALL))
        monkeypatch.setattr(rp.losses.Diverging, "_inputs", lambda worst, batch: apart)
    loss(model, x, y).backward()
    generator = torch.Generator().manual_seed(0)
    step = 1e-6
    for parameter in model.parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
            ends.append(loss(model, x, y).item())
            with torch.no_grad():
                parameter.sub_(sign * step * direction)
        slope = (ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx((parameter.grad * direction).sum().item(), rel=1e-5, abs=1e-7)


def test_the_list() -> None:
    names = [info.name for info in rp.recipes()]
    assert names == ["standard", "goodfellow", "madry", "fast", "trades", "mart", "ibp", "crown-ibp", "sabr",
                     "mtl-ibp", "cc-ibp", "exp-ibp"]  # fmt: skip


def test_a_recipe_by_the_hook(fresh_registry: object) -> None:  # noqa: F811
    class Plugin:
        @rp.hookimpl
        def register_losses(self, register: object) -> None:
            register("mine", lambda *, ball: rp.MixedLoss(worst="art:fgsm", gamma=0.25, ball=ball))  # type: ignore[operator]
            register("wrong", lambda: math.pi)  # type: ignore[operator]

    rp.register(Plugin(), "mylab")
    assert rp.recipe("mine", ball=BALL).gamma == 0.25
    with pytest.raises(rp.PluginError, match=r"no rp\.MixedLoss"):
        rp.recipe("wrong")
    with pytest.raises(rp.UnknownNameError, match="Did you mean 'mine'"):
        rp.recipe("mime", ball=BALL)


def test_parameters_in_the_name_and_wrong_ones() -> None:
    assert rp.recipe("sabr(ratio=0.6)", ball=BALL, epochs=7).worst.ratio == 0.6
    assert rp.recipe("ibp", ball=BALL, epochs=7).schedule == rp.Ramp(start=0, end=2)
    with pytest.raises(rp.ArgumentError, match="ratio"):
        rp.recipe("sabr", ball=BALL, epochs=1, ratio=0.0)
    with pytest.raises(rp.ArgumentError, match="alpha"):
        rp.recipe("mtl-ibp", ball=BALL, epochs=1, alpha=2.0)
    with pytest.raises(rp.ArgumentError, match="beta"):
        rp.recipe("trades", ball=BALL, beta=-1.0)
    with pytest.raises(rp.ArgumentError, match="relative_step"):
        rp.recipe("fast", ball=BALL, step=0.0)
    with pytest.raises(rp.ArgumentError, match="gamma"):
        rp.recipe("sabr", ball=BALL, epochs=1, gamma=2.0)
    with pytest.raises(rp.ArgumentError, match="ball"):
        rp.recipe("madry", ball=0.1)
    for name in sorted(CERTIFIED):
        with pytest.raises(rp.ArgumentError, match="epochs"):
            rp.recipe(name, ball=BALL, epochs=0)
        with pytest.raises(rp.ArgumentError, match="schedule"):
            rp.recipe(f"{name}(schedule=3)", ball=BALL, epochs=1)
        with pytest.raises(rp.ArgumentError, match="regularisers"):
            rp.recipe(f'{name}(regularisers=["l1"])', ball=BALL, epochs=1)


def test_defaults_of_the_papers() -> None:
    for name in ("mtl-ibp", "cc-ibp", "exp-ibp"):
        loss = rp.recipe(name, ball=BALL, epochs=1)
        assert (loss.combiner.alpha, loss.combiner.attack.steps, loss.combiner.attack.relative_step) == (0.5, 1, 10.0)
    assert rp.recipe("sabr", ball=BALL, epochs=1).worst.ratio == 0.4
    assert rp.recipe("trades", ball=BALL).combiner.beta == 6
    assert rp.recipe("mart", ball=BALL).combiner.weight == 5


@pytest.mark.parametrize("name", sorted(CERTIFIED))
def test_bounds_and_regularisers_of_your_own(name: str) -> None:
    """Another certifier takes part, and what is added is added."""
    model, (x, y) = network(), samples()
    ball = rp.L2(eps=0.3, clip=(0, 1)) if name != "sabr" else BALL
    parameters = {"ball": ball, "epochs": 1, "schedule": lambda epoch: 0.5 if name == "crown-ibp" else 1.0}
    values = []
    for more in ({}, {"certifier": "lirpa:ibp"}, {"regularisers": [rp.losses.L1Penalty(weight=2.0)]}):
        torch.manual_seed(7)
        values.append(rp.recipe(name, **parameters, **more)(model, x, y))
    own, other, penalised = values
    norm = sum(p.abs().sum() for p in model.parameters() if p.dim() > 1)
    assert penalised.item() == pytest.approx((own + 2 * norm).item())
    if name == "sabr":
        assert other.item() == pytest.approx(own.item(), rel=1e-6)
    else:  # the box around the ball is wider than the ball
        assert other.item() < own.item() - 1e-3


@pytest.mark.parametrize("name", ["sabr", "mtl-ibp", "cc-ibp", "exp-ibp"])
def test_the_clean_loss_is_not_ramped_in_what_the_papers_train_without_it(name: str) -> None:
    model, (x, y) = network(), samples()
    loss = rp.recipe(name, ball=BALL, epochs=1, schedule=rp.Ramp(start=0, end=1, shape="linear"))
    for epoch in (0.0, 0.3, 1.0):
        loss.epoch = epoch
        terms = loss(model, x, y).terms
        assert (terms.gamma, terms.eps) == (0, pytest.approx(epoch * EPS))
    mixed = rp.recipe(name, ball=BALL, epochs=1, gamma=0.25)
    assert mixed(model, x, y).terms.gamma == 0.25


def test_steps_are_in_units_of_the_present_radius() -> None:
    """Half way up the ramp, and for a radius of each sample."""
    model, (x, y) = network(), samples()
    eps = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    loss = rp.recipe("madry", ball=rp.Linf(eps=eps, clip=(0, 1)))
    half = rp.MixedLoss(worst=loss.worst, gamma=lambda _: 0.0, ball=loss.ball, schedule=lambda _: 0.5)
    for mixed, factor in ((loss, 1.0), (half, 0.5)):
        ball = rp.Linf(eps=[factor * e for e in eps], clip=(0, 1))
        torch.manual_seed(7)
        value = mixed(model, x, y)
        torch.manual_seed(7)
        found = rp.attack("art:pgd", steps=7, relative_step=0.25, best=False).search(
            model, x, y, ball, seed=int(torch.randint(2**31, ()))
        )
        assert value.item() == pytest.approx(F.cross_entropy(model(found), y).item())
