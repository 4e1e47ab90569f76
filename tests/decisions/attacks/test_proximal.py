"""Proximal steps against a minimum that is found by another way, and against their own optimality."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

import robust_plugins as rp
from robust_plugins.decisions.attacks.proximal import shortened

pytestmark = pytest.mark.usefixtures("unchecked")

CLIP = (0.0, 1.0)
NORMS = (rp.Linf, rp.L2, rp.L1)
CASES = [(norm, clip) for norm in NORMS for clip in (CLIP, None)]


def cost(ball: rp.Ball, u: Tensor, z: Tensor, x: Tensor, price: Tensor) -> Tensor:
    return price * ball.distance(u, x) + (u - z).square().flatten(1).sum(1) / 2


def case(samples: int = 6, features: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Some inputs at the end of their range, points within and beyond it, prices from nothing to too much."""
    torch.manual_seed(4)
    x = torch.rand(samples, features, dtype=torch.float64)
    x = torch.where(torch.rand_like(x) < 0.4, x.round(), x)
    return x, x + 0.7 * torch.randn_like(x), torch.tensor([0.0, 1e-3, 0.1, 0.4, 1.0, 50.0], dtype=torch.float64)


@pytest.mark.parametrize(("norm", "clip"), CASES)
def test_no_point_of_the_range_costs_less(norm, clip) -> None:
    x, z, price = case()
    ball = norm(eps=1.0, clip=clip)
    found = shortened(ball, z, x, price)
    if clip is not None:
        assert ((found >= 0) & (found <= 1)).all()
    least = cost(ball, found, z, x, price)
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 0.1, 1e-2, 1e-4):
        others = found + size * torch.randn((200, *x.shape), generator=generator, dtype=x.dtype)
        others = (others if clip is None else others.clamp(*clip)).flatten(0, 1)
        paid = cost(ball, others, z.repeat(200, 1), x.repeat(200, 1), price.repeat(200))
        assert (paid >= least.repeat(200) - 1e-12).all()
    inside = found if clip is None else z.clamp(*clip)
    torch.testing.assert_close(found[0], inside[0] if clip else z[0])  # nothing is paid
    assert torch.equal(found[5], x[5])  # too much is asked


@pytest.mark.parametrize("clip", [CLIP, None])
def test_the_minimum_is_that_of_a_solver(clip) -> None:
    """On L2, where the objective is smooth away from `x`."""
    x, z, price = case()
    ball = rp.L2(eps=1.0, clip=clip)
    for i in (2, 3):
        found = shortened(ball, z, x, price)[i]

        def paid(u, i: int = i) -> float:
            return float(cost(ball, torch.tensor(u)[None], z[i : i + 1], x[i : i + 1], price[i : i + 1]))

        bounds = None if clip is None else [clip] * x.shape[1]
        told = minimize(paid, (x[i] + z[i].clamp(0, 1)) / 2, bounds=bounds, method="L-BFGS-B", tol=1e-14)
        torch.testing.assert_close(found, torch.tensor(told.x), atol=1e-4, rtol=0)


def test_on_l1_most_inputs_stay_exactly() -> None:
    x, z, _ = case()
    found = shortened(rp.L1(eps=1.0, clip=CLIP), z, x, torch.full((6,), 0.8, dtype=torch.float64))
    assert (found == x).double().mean() > 0.6
    assert (found != x).any()
