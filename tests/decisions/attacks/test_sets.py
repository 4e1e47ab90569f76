"""Nearest and farthest points of a ball and its clip range, against points that the set really has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import robust_plugins as rp
from robust_plugins.decisions.attacks.sets import farthest, nearest

NORMS = [rp.Linf, rp.L2, rp.L1]


def drawn(seed: int, clip: tuple[float, float] | None) -> tuple[Tensor, Tensor, list[float]]:
    """Inputs, many of them at the ends of the range, points around them, and a radius for each."""
    torch.manual_seed(seed)
    x = torch.rand(40, 2, 6, dtype=torch.float64)
    x = torch.where(torch.rand_like(x) < 0.6, x.round(), x) if clip else x
    return x, x + torch.randn_like(x) * torch.logspace(-2, 1, 40).view(-1, 1, 1), torch.rand(40).mul(3).tolist()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("clip", [(0.0, 1.0), (-torch.inf, 1.0), None])
def test_nearest_is_in_the_set_and_no_point_of_it_is_nearer(norm: type[rp.Ball], clip: tuple[float, float]) -> None:
    x, z, eps = drawn(0, clip)
    ball = norm(eps=eps, clip=clip)
    point = nearest(ball, z, x)
    assert ball.contains(point, x, tolerance=1e-12).all()
    # A point is nearest in a convex set if no direction into the set comes closer to z.
    for other in [*ball.sample(x, 50), *ball.sample(x, 50, draw="corner"), farthest(ball, z - point, x)]:
        assert (((z - point) * (other - point)).flatten(1).sum(1) <= 1e-9 * (1 + (z - x).flatten(1).norm(dim=1))).all()
    torch.testing.assert_close(nearest(ball, point, x), point)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("clip", [(0.0, 1.0), None])
def test_farthest_is_in_the_set_and_no_point_of_it_is_farther(norm: type[rp.Ball], clip: tuple[float, float]) -> None:
    x, z, eps = drawn(1, clip)
    ball, slope = norm(eps=eps, clip=clip), z - x
    slope[::3, 0] = 0.0
    point = farthest(ball, slope, x)
    assert ball.contains(point, x, tolerance=1e-12).all()
    reached = (slope * (point - x)).flatten(1).sum(1)
    for other in [*ball.sample(x, 50), *ball.sample(x, 50, draw="corner"), ball.project(x + 9 * slope, x)]:
        assert (reached >= (slope * (other - x)).flatten(1).sum(1) - 1e-9).all()


@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradients_and_radii_stay(norm: type[rp.Ball]) -> None:
    x = torch.rand(3, 4)
    ball = norm(eps=[0.0, 0.2, 0.2], clip=(0.0, 1.0))
    gradient = torch.ones_like(x)
    gradient[1], gradient[2, 0] = 0.0, torch.nan
    moved = farthest(ball, gradient, x) != x
    assert not moved[:2].any()
    assert moved[2].any()
    assert not moved[2, 0]
    assert torch.equal(nearest(ball, x + 1, x)[0], x[0])
