"""The width of an explanation's bounds as a term of a training loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import robust_plugins as rp
from robust_plugins.explanations.certifiers import IBP
from robust_plugins.losses import Ramp
from robust_plugins.testing.networks import cnn_case, mlp_case

BALL = rp.Linf(eps=0.05, clip=(0.0, 1.0))


@pytest.mark.parametrize("of", ["logit", "margin", "loss"])
@pytest.mark.parametrize("radius", [0.0, 0.02])
def test_it_is_the_width_of_the_bounds(of: str, radius: float) -> None:
    case = mlp_case(normalised=False)
    term = rp.GradientCertLoss(alpha=0.3, ball=BALL, of=of, radius=radius)(case.model, case.x, case.y)
    bounds = IBP().bounds(case.model, case.x, case.y, BALL, of=of, radius=radius)
    torch.testing.assert_close(term, 0.3 * bounds.width.square().sum(1).sqrt().mean())


def test_its_gradient_is_that_of_finite_differences() -> None:
    case = mlp_case(activation=nn.Tanh, normalised=False).to(torch.float64, "cpu")
    penalty = rp.GradientCertLoss(ball=BALL, radius=0.05)
    penalty(case.model, case.x, case.y).backward()
    assert case.model[-1].bias.grad is None  # no gradient depends on it
    for parameter in list(case.model.parameters())[:-1]:
        flat, slope, h = parameter.data.view(-1), parameter.grad.view(-1), 1e-6
        values = []
        for sign in (1, -1):
            flat[0] += sign * h
            with torch.no_grad():
                values.append(penalty(case.model, case.x, case.y))
            flat[0] -= sign * h
        assert slope[0].item() == pytest.approx(((values[0] - values[1]) / (2 * h)).item(), rel=1e-4, abs=1e-8)


def test_the_schedule_scales_the_ball_and_the_weights() -> None:
    case = mlp_case(normalised=False)
    ramp = Ramp(start=0, end=10, shape="linear")
    penalty = rp.GradientCertLoss(ball=BALL, radius=0.02, schedule=ramp)
    half = rp.GradientCertLoss(ball=rp.Linf(eps=0.025, clip=(0.0, 1.0)), radius=0.01)
    torch.testing.assert_close(penalty(case.model, case.x, case.y, epoch=5), half(case.model, case.x, case.y))
    assert penalty(case.model, case.x, case.y, epoch=0) == 0
    each = rp.GradientCertLoss(ball=rp.Linf(eps=[0.05] * 6, clip=(0.0, 1.0)), radius=0.02, schedule=ramp)
    torch.testing.assert_close(each(case.model, case.x, case.y, epoch=5), half(case.model, case.x, case.y))
    with pytest.raises(rp.ArgumentError, match="epoch"):
        penalty(case.model, case.x, case.y)
    with pytest.raises(rp.ArgumentError, match="alpha"):
        rp.GradientCertLoss(ball=BALL, alpha=-1.0)


def test_another_certifier_by_name_or_itself() -> None:
    case = mlp_case(normalised=False)
    loose = rp.GradientCertLoss(ball=BALL)(case.model, case.x, case.y)
    for certifier in ("interval:crown", rp.explanation_certifier("interval:crown", batch_size=2)):
        tight = rp.GradientCertLoss(ball=BALL, certifier=certifier)(case.model, case.x, case.y)
        assert 0 < tight < loose
        tight.backward()
        assert case.model[0].weight.grad.abs().sum() > 0


def test_the_model_stays_in_training_mode_and_an_empty_batch_costs_nothing() -> None:
    case = cnn_case()
    model = nn.Sequential(case.model, nn.Dropout(0.5)).train()
    penalty = rp.GradientCertLoss(ball=BALL)
    term = penalty(model, case.x, case.y)
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(term, penalty(case.model.eval(), case.x, case.y))
    assert penalty(model, case.x[:0], case.y[:0]) == 0


def test_training_with_it_certifies_what_plain_training_does_not() -> None:
    """Half-moons: the bounds on the explanations shrink, and the decisions stay right."""
    pytest.importorskip("sklearn")
    from sklearn.datasets import make_moons

    points, labels = make_moons(200, noise=0.1, random_state=0)
    x, y = torch.tensor(points, dtype=torch.float32), torch.tensor(labels)
    ball = rp.Linf(eps=0.05, clip=None)
    proved = {}
    for alpha in (0.0, 0.3):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
        penalty = rp.GradientCertLoss(alpha=alpha, ball=ball, schedule=Ramp(start=0, end=100))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for epoch in range(200):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y) + penalty(model, x, y, epoch=epoch)
            loss.backward()
            optimizer.step()
        proved[alpha] = IBP()(model, x, y, ball, delta=1.0).deviation.median()
        assert (model(x).argmax(1) == y).float().mean() > 0.85
    assert proved[0.3] < 0.2 * proved[0.0]
