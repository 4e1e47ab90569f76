"""`rp.minimal`: the bisection of a radius for any attack."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp

pytestmark = pytest.mark.usefixtures("unchecked")


class Walls(nn.Module):
    """Two classes, on both sides of 1 along the first coordinate."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack((1 - x[:, 0], x[:, 0] - 1), 1)


@dataclass(frozen=True, kw_only=True)
class Step(rp.Attack):
    """As far as the ball goes along the first coordinate; remembers what it was asked."""

    asked: list[list[float]] = field(default_factory=list, compare=False)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        self.asked.append(ball.eps_for(x).flatten().tolist())
        return x + ball.eps_for(x) * torch.eye(x.shape[1])[0]


X = torch.tensor([[0.9, 0.0], [0.5, 0.0], [0.123, 0.0], [-3.0, 0.0], [2.0, 0.0]])
CRITICAL = 1 - X[:, 0]
Y = torch.zeros(5, dtype=torch.long)


def test_the_smallest_radius_is_found_in_twelve_calls() -> None:
    step, ball = Step(), rp.Linf(eps=1.5, clip=None)
    result = rp.minimal(step)(Walls(), X, Y, ball)
    assert result.success.tolist() == [True, True, True, False, True]
    assert result.distance[3] == 0, "nothing was found, so the sample stays"
    assert result.distance[4] == 0, "misclassified as it is"
    gap = result.distance[:3] - CRITICAL[:3]
    assert (gap >= -1e-6).all()
    assert (gap <= 1.5e-3).all()
    assert len(step.asked) <= 12
    assert len(step.asked[0]) == 4, "the misclassified sample is in no call"
    assert all(len(radii) <= 3 for radii in step.asked[1:]), "nor is, after the first, the one that holds there"
    assert step.asked[0] == [1.5] * 4


def test_calls_that_find_nothing_closer_cost_precision_alone() -> None:
    few = rp.minimal(Step(), calls=1)(Walls(), X, Y, rp.Linf(eps=1.5, clip=None))
    assert few.success[:3].all(), "the first call finds them, and they are pulled closer"
    coarse = Step()
    rp.minimal(coarse, tolerance=0.25)(Walls(), X, Y, rp.Linf(eps=1.5, clip=None))
    assert len(coarse.asked) <= 4


def test_a_ball_of_radii_bounds_each_sample() -> None:
    ball = rp.L2(eps=[0.05, 0.6, 2.0, 5.0, 0.0], clip=None)
    result = rp.minimal(Step())(Walls(), X, Y, ball)
    assert result.success.tolist() == [False, True, True, True, True]
    assert ball.contains(result.x_adv, X).all()
    torch.testing.assert_close(result.distance[1:4], CRITICAL[1:4], rtol=0, atol=5e-3)


def test_it_is_chunked_named_and_nested_as_data() -> None:
    ball = rp.Linf(eps=1.5, clip=None)
    whole, parts = (rp.minimal(Step(batch_size=size))(Walls(), X, Y, ball) for size in (None, 2))
    assert torch.equal(whole.x_adv, parts.x_adv)
    assert rp.minimal("art:pgd(steps=3)") == rp.attack("rp:minimal", attack="art:pgd(steps=3)")
    assert "art:pgd(steps=3)" in repr(rp.minimal("art:pgd(steps=3)"))
    again = rp.minimal(rp.minimal(Step()))(Walls(), X, Y, ball)
    assert (again.distance <= whole.distance + 1e-6).all()


def test_what_the_attack_returns_is_not_trusted() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Bad(Step):
        def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
            far = super().perturb(model, x, y, ball, targeted=targeted) + 7
            return torch.where(torch.arange(len(x)).unsqueeze(1) == 1, torch.nan, far)

    ball = rp.Linf(eps=1.5, clip=None)
    result = rp.minimal(Bad())(Walls(), X, Y, ball)
    assert ball.contains(result.x_adv, X).all()
    assert result.x_adv.isfinite().all()


def test_the_closest_is_kept_though_farther_ones_have_the_larger_loss() -> None:
    """The call prefers the larger loss only between the input and the one candidate that it is given."""
    result = rp.minimal(Step())(Walls(), X, Y, rp.Linf(eps=1.5, clip=None))
    fixed = Step()(Walls(), X, Y, rp.Linf(eps=1.5, clip=None))
    assert (result.loss[:3] < fixed.loss[:3]).all()
    assert (result.distance[:3] < fixed.distance[:3]).all()


@pytest.mark.parametrize(
    "wrong", [{"tolerance": 0}, {"tolerance": 1}, {"calls": 0}, {"calls": True}, {"attack": 3}, {"batch_size": 0}]
)
def test_parameters_are_checked(wrong) -> None:
    with pytest.raises(rp.ArgumentError, match=next(iter(wrong))):
        rp.minimal(**{"attack": "art:pgd"} | wrong)
    with pytest.raises(rp.UnknownNameError):
        rp.minimal("art:pdg")


def test_an_attack_that_fails_at_the_largest_radius_is_asked_there_alone() -> None:
    """As the documentation says of steps that overshoot."""

    class Ring(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack(((x[:, 0] - 0.5).abs() - 0.2, torch.zeros(len(x))), 1)

    step = Step()
    result = rp.minimal(step)(Ring(), torch.zeros(1, 2), torch.tensor([0]), rp.Linf(eps=1.0, clip=None))
    assert not result.success.any()
    assert len(step.asked) == 1
    several = step(Ring(), torch.zeros(1, 2), torch.tensor([0]), rp.Linf(eps=1.0, clip=None), eps=[0.25, 0.5, 1.0])
    assert [bool(r.success) for r in several] == [False, True, False]
