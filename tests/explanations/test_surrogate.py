"""Surrogates: near the network, and with a gradient of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.explanations.surrogate import smoothed


@pytest.mark.parametrize(
    "piecewise",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.LeakyReLU(0.1),
        nn.Hardtanh(-0.5, 2.0),
        nn.ReLU6(),
        F.relu,
        torch.relu,
        Tensor.relu,
        lambda z: z.clamp(0, 1),
        lambda z: z.clamp(max=1.0),
        lambda z: torch.clamp(z, min=0.5),
    ],
)
def test_near_and_smooth(piecewise: Callable[[Tensor], Tensor]) -> None:
    z = torch.linspace(-2, 8, 101, dtype=torch.float64, requires_grad=True)
    exact = piecewise(z.detach().clone())
    for beta in (5.0, 50.0):
        with smoothed(beta):
            found = piecewise(z.clone())
        off = (found - exact).abs().max()
        assert 0 < off <= math.log(2) / beta + 1e-12
        (slope,) = torch.autograd.grad(found.sum(), z, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), z)
        assert bend.abs().max() > beta / 5
    assert torch.equal(piecewise(z.detach().clone()), exact)  # nothing stays behind


@pytest.mark.parametrize("smooth", [nn.Tanh(), nn.Softplus(), nn.Sigmoid(), lambda z: z.clamp(min=torch.zeros(()))])
def test_the_rest_is_left_alone(smooth: Callable[[Tensor], Tensor]) -> None:
    z = torch.linspace(-2, 8, 11)
    with smoothed(5.0):
        assert torch.equal(smooth(z), smooth(z.clone()))
        found = smooth(z)
    assert torch.equal(found, smooth(z))
