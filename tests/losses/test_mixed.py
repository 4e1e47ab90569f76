"""The mixed loss by hand: radii, one output, numbers, and arguments that do not fit."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from support.by_hand import BALL, fixed, hand_ibp, mixed_ibp, network, samples
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.losses import L1Penalty, WarmUp


def test_one_radius_per_sample() -> None:
    model, (x, y) = network(), samples()
    radii = torch.linspace(0, 0.2, len(x), dtype=x.dtype)
    value = mixed_ibp(gamma=0.0, ball=rp.Linf(eps=radii, clip=(0, 1)), schedule=lambda epoch: 0.5)(model, x, y)
    eps = radii.unsqueeze(1) / 2
    margins = hand_ibp(model, (x - eps).clamp(0, 1), (x + eps).clamp(0, 1), y)
    expected = 0.5 * F.cross_entropy(model(x), y) + 0.5 * F.cross_entropy(-margins, y)
    assert value.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("worst", ["art:fgsm", "interval:ibp", "lirpa:ibp"])
def test_one_logit(worst: str) -> None:
    """The logistic loss of y z, at the end of z's interval that is worse; exact for one linear layer."""
    model, (x, y) = nn.Sequential(nn.Linear(5, 1)).double(), samples(2)
    loss = rp.MixedLoss(worst=worst, gamma=0.0, ball=rp.Linf(eps=0.1, clip=None), schedule=fixed())
    sign = 2 * y - 1
    worst_z = sign * model(x).squeeze(1) - 0.1 * model[0].weight.abs().sum()
    for _ in range(2):
        assert loss(model, x, y).item() == pytest.approx(F.softplus(-worst_z).mean().item(), rel=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_takes_the_end_of_the_interval(outputs: int) -> None:
    model, (x, _) = nn.Sequential(nn.Linear(5, outputs)).double(), samples()
    target = torch.randn(len(x), outputs, dtype=torch.float64)
    value = mixed_ibp(gamma=0.25, ball=rp.Linf(eps=0.1, clip=None))(model, x, target.squeeze(1))
    radius = 0.1 * model[0].weight.abs().sum(1)
    far = (model(x) - target).abs() + radius
    expected = 0.25 * F.mse_loss(model(x), target) + 0.75 * far.square().mean()
    assert value.item() == pytest.approx(expected.item())
    value.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_exp_ibp_where_a_loss_is_zero() -> None:
    """Softmax saturates in single precision."""
    model = nn.Sequential(nn.Linear(5, 4))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([500.0, 0.0, 0.0, 0.0]))
    value = rp.recipe("exp-ibp", ball=BALL, epochs=1, schedule=fixed())(model, torch.rand(6, 5), torch.zeros(6).long())
    value.backward()
    assert value.item() < 1e-30
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_bounds_without_gradients_are_refused() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Detached(rp.Certifier):
        def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
            return rp.certifier("interval:ibp").bounds(model, x, ball, spec).detach()

    model, (x, y) = network(), samples()
    for worst in (Detached(), rp.losses.SmallBox(attack=rp.attack("art:fgsm"), certifier=Detached(), ratio=0.5)):
        for gamma in (0.0, 0.5):
            with pytest.raises(rp.ArgumentError, match="differentiable in the weights"):
                mixed_ibp(worst=worst, gamma=gamma)(model, x, y)
    with pytest.raises(rp.ArgumentError, match="differentiable in the weights"):
        mixed_ibp(worst=Detached())(model, x, torch.zeros(6, 4, dtype=x.dtype))
    with torch.no_grad():
        assert torch.isfinite(mixed_ibp(worst=Detached())(model, x, y))
    assert torch.isfinite(mixed_ibp(worst=Detached())(model.requires_grad_(False), x, y))


def test_labels_of_other_kinds() -> None:
    model, (x, y) = network(2), samples(2)
    expected = mixed_ibp()(model, x, y).item()
    for labels in (y.bool(), y.to(torch.uint8), y.int(), y.unsqueeze(1)):
        assert mixed_ibp()(model, x, labels).item() == pytest.approx(expected)


@pytest.mark.usefixtures("unchecked")
def test_arguments_that_do_not_fit() -> None:
    model, (x, y) = network(), samples()
    for name, wrong in {
        "gamma": "0.5", "schedule": 3, "regularisers": L1Penalty(weight=1.0), "combiner": "mtl", "worst": 3,
        "ball": 0.1, "task": "multi-label",
    }.items():  # fmt: skip
        with pytest.raises(rp.ArgumentError, match=f"`{name}`"):
            mixed_ibp(**{name: wrong})
    for name, parameters in {
        "gamma": {"gamma": lambda epoch: 1.5}, "schedule": {"schedule": lambda epoch: 2.0},
        "y": {"y": torch.tensor([0, 1, 2, 3, 4, 0])}, "model": {"model": lambda x: x},
    }.items():  # fmt: skip
        found = {"model": model, "y": y} | {k: parameters.pop(k) for k in ("model", "y") if k in parameters}
        with pytest.raises(rp.ArgumentError, match=f"`{name}`"):
            mixed_ibp(**parameters)(found["model"], x, found["y"])
    for labels in (y[:3], y - 4, [0] * 6, y.numpy(), y.repeat(2, 1)):
        with pytest.raises(rp.ArgumentError, match="`y`"):
            mixed_ibp()(model, x, labels)
    interval = rp.certifier("interval:ibp")
    with pytest.raises(rp.ArgumentError, match="beta"):
        rp.losses.Blended(tight=interval, loose=interval, beta=2.0)
    with pytest.raises(rp.ArgumentError, match="gamma"):
        mixed_ibp(gamma=1.5)
    with pytest.raises(rp.ArgumentError, match="plain training"):
        mixed_ibp(worst=None)
    with pytest.raises(rp.ArgumentError, match="ball"):
        mixed_ibp(ball=None)
    with pytest.raises(rp.UnknownNameError, match="interval:ibp"):
        mixed_ibp(worst="interval:ipb")
    with pytest.raises(rp.ArgumentError, match="empty"):
        mixed_ibp()(model, x[:0], y[:0])
    with pytest.raises(rp.ArgumentError, match="integers"):
        mixed_ibp()(model, x, y.double())
    with pytest.raises(rp.ArgumentError, match="certifier for numbers"):
        rp.MixedLoss(worst="art:fgsm", gamma=0.5, ball=BALL)(model, x, torch.zeros(6, 4, dtype=x.dtype))
    with pytest.raises(rp.ArgumentError, match="compare two inputs"):
        mixed_ibp(combiner=rp.losses.TRADES())(model, x, y)
    with pytest.raises(rp.ArgumentError, match=r"outputs of shape \(batch, classes\), or one per sample"):
        mixed_ibp()(nn.Sequential(nn.Linear(5, 8), nn.Unflatten(1, (2, 4))).double(), x, y)
    box = rp.losses.SmallBox(attack=rp.attack("art:fgsm"), certifier=rp.certifier("interval:ibp"), ratio=0.5)
    with pytest.raises(rp.ArgumentError, match=r"rp\.Linf"):
        mixed_ibp(worst=box, ball=rp.L2(eps=0.1, clip=None))(model, x, y)
    with pytest.raises(rp.ArgumentError, match="without ReLU"):
        mixed_ibp(schedule=lambda epoch: 0.5, regularisers=[WarmUp()])(nn.Sequential(nn.Linear(5, 4)).double(), x, y)
    for wrong in (lambda: L1Penalty(weight=-1.0), lambda: WarmUp(weight=-1.0), lambda: WarmUp(tolerance=0.0)):
        with pytest.raises(rp.ArgumentError):
            wrong()
