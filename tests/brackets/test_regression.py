"""Brackets of a regressor's largest error: exact for a linear model, and never crossed."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from support.boxes import MIXED, members, mixed
from support.toys import Unbounded
from torch import nn

import robust_plugins as rp

BALL = rp.Linf(eps=0.1, clip=None)


def _linear(outputs: int, *, scale: float = 1.0, shift: float = 0.0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(5, outputs).double()
    with torch.no_grad():
        model.weight.copy_(scale * torch.randn(model.weight.shape, generator=generator))
        model.bias.fill_(shift)
    x = torch.randn((6, 5), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        y = model(x) + scale * torch.randn((6, outputs), generator=generator, dtype=torch.float64)
    return model, x, y


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e3, 5e5), (1e-4, 0.0)])
def test_a_linear_model_has_the_error_of_the_closed_form(outputs, scale, shift) -> None:
    model, x, y = _linear(outputs, scale=scale, shift=shift)
    found = rp.compare(model, x, y, BALL, ["rp:margin-pgd", "interval:crown", "lirpa:ibp"], task="regression", seed=0)
    with torch.no_grad():
        exact = ((model(x) - y).abs() + 0.1 * model.weight.abs().sum(1)).amax(1)
    reached, proved = found.errors
    assert reached is not None
    assert proved is not None
    torch.testing.assert_close(reached, exact, rtol=1e-6, atol=1e-6 * scale)
    torch.testing.assert_close(proved, exact, rtol=1e-5, atol=1e-5 * scale)
    assert not found.crossings
    own = rp.compare(model, x, None, BALL, ["rp:margin-pgd", "interval:crown"], task="regression", seed=0)
    with torch.no_grad():
        assert own.errors[0] is not None
        expected = (0.1 * model.weight.abs().sum(1)).max().expand(6)
        torch.testing.assert_close(own.errors[0], expected, rtol=1e-6, atol=1e-6 * scale)
    assert own.clean.abs().max() == 0


@pytest.mark.parametrize("ball", [BALL, rp.L2(eps=0.3, clip=(-3, 3)), rp.L1(eps=0.5, clip=None), MIXED])
def test_no_point_of_the_ball_passes_what_is_proved(ball) -> None:
    torch.manual_seed(0)
    box = isinstance(ball, rp.Box)
    x = mixed(3, 0) if box else torch.randn((3, 6), dtype=torch.float64)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2)).double()
    found = rp.compare(model, x, None, ball, ["rp:margin-pgd", "interval:ibp", "interval:crown"],
                       task="regression", seed=0)  # fmt: skip
    assert not found.crossings
    reached, proved = found.errors
    assert reached is not None
    assert proved is not None
    assert (reached <= proved + 1e-9).all()
    with torch.no_grad():
        points = ball.sample(x, 300, torch.Generator().manual_seed(0), draw="corner")
        error = (model(points.flatten(0, 1)).view(300, 3, 2) - model(x)).abs().amax((0, 2))
        assert (error <= proved + 1e-9).all()
        if isinstance(ball, rp.Box):
            every = torch.stack([(model(members(ball, z[None])) - model(z[None])).abs().max() for z in x])
            assert (every <= proved + 1e-9).all()
            assert (reached >= 0.98 * every).all()
        else:
            assert (reached >= 0.8 * error).all()
    x_adv = found["rp:margin-pgd"].x_adv
    assert x_adv is not None
    assert ball.contains(x_adv, x, tolerance=1e-9).all()


def test_outputs_of_one_axis_and_of_no_sample() -> None:
    model, x, y = _linear(1)
    flat = nn.Sequential(model, nn.Flatten(0))
    for labels in (y, y[:, 0]):
        found = rp.compare(flat, x, labels, BALL, ["rp:margin-pgd", "interval:crown"], task="regression", seed=0)
        torch.testing.assert_close(found.errors[0], found.errors[1])
    none = rp.compare(model, x[:0], y[:0], BALL, ["rp:margin-pgd", "interval:crown"], task="regression", seed=0)
    assert "no sample" in str(none)


@dataclass(frozen=True, kw_only=True)
class Narrow(rp.Certifier):
    """A certifier that promises too much."""

    def propagate(self, model, x, ball, spec):
        return rp.apply_spec(rp.Interval.point(model(x)), spec)


def test_a_wrong_bound_is_a_contradiction_and_failures_are_rows() -> None:
    model, x, y = _linear(2)
    found = rp.compare(model, x, y, BALL, ["rp:margin-pgd", Narrow()], task="regression", seed=0)
    assert len(found.crossings) == 6
    assert "CONTRADICTION" in str(found)
    odd = nn.Sequential(nn.Linear(5, 3).double(), Unbounded())
    refused = rp.compare(odd, x, None, BALL, ["rp:margin-pgd", "interval:ibp"], task="regression", seed=0)
    assert refused["interval:ibp"].error
    assert refused.bracket.certified is None
    assert "no certifier has an answer" in str(refused)
    json.dumps(refused.to_dict())
    only = rp.compare(model, x, y, BALL, ["interval:ibp"], task="regression")
    assert "no attack ran" in str(only)


def test_wrong_arguments_are_named(unchecked) -> None:
    model, x, y = _linear(2)
    for wrong, named in (
        ({"task": "ranking"}, "`task` is 'ranking'"),
        ({"task": "regression", "y": y[:, :1]}, r"`y` is of shape \(6, 1\)"),
        ({"task": "labels", "y": y}, "0 or 1"),
        ({"y": None}, "`y` is None"),
    ):
        with pytest.raises(rp.ArgumentError, match=named):
            rp.compare(**({"model": model, "x": x, "y": y, "ball": BALL, "components": ["interval:ibp"]} | wrong))
    with pytest.raises(rp.ArgumentError, match="`model`"):
        rp.compare(nn.Unflatten(1, (5, 1)), x, None, BALL, ["interval:ibp"], task="regression")


class Written(nn.Module):
    """A sigmoid of each of its inputs by a formula."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return 1 / (1 + torch.exp(-z))


@pytest.mark.parametrize("last", [nn.Identity(), nn.Sigmoid(), Written()])
def test_every_label_has_its_own_bracket(last) -> None:
    torch.manual_seed(0)
    logits = nn.Linear(5, 3).double()
    model = nn.Sequential(logits, last)
    x = torch.randn((40, 5), dtype=torch.float64)
    with torch.no_grad():
        z = logits(x)
    y = (z > 0).long()
    y[0] = 1 - y[0]
    found = rp.compare(model, x, y, BALL, ["rp:margin-pgd", "interval:crown"], task="labels", seed=0)
    stays = (2 * y - 1) * z > 0.1 * logits.weight.abs().sum(1)
    for i, one in enumerate(found.labels):
        expected = stays[:, i].double().mean().item()
        assert one.bracket == (expected, expected)
    every = stays.all(1).double().mean().item()
    assert found.bracket == (every, every)
    assert found.correct.sum() == 39
    assert "label 2" in str(found)
    assert not found.crossings
    json.dumps(found.to_dict())


def test_labels_of_a_softmax_are_refused() -> None:
    """Probabilities that sum to 1 have no logit each: read as logits, every label would be there."""
    x = torch.randn((4, 5), dtype=torch.float64)
    model = nn.Sequential(nn.Linear(5, 3).double(), nn.Softmax(1))
    with pytest.raises(rp.ArgumentError, match="returns logits z, which decide"):
        rp.compare(model, x, torch.ones((4, 3)), BALL, ["interval:ibp"], task="labels")
