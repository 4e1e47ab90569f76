"""Estimates of memory: the run that measures a model leaves its input alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robust_plugins as rp
from robust_plugins.harness.memory import activation_sizes


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), nn.LeakyReLU(0.2, inplace=True)], ids=str)
def test_a_first_layer_that_works_in_place_leaves_the_input_alone(first: nn.Module) -> None:
    x = torch.linspace(-1, 1, 12).view(3, 4)
    kept = x.clone()
    assert activation_sizes(nn.Sequential(first, nn.Linear(4, 2)), x) == [4, 4, 2]
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", ["interval:ibp", "interval:crown", "interval:crown-ibp", "interval:alpha-crown"])
def test_bounds_leave_the_input_alone_in_the_first_call(name: str) -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)).eval()
    x = torch.linspace(-1, 1, 12).view(3, 4)
    kept = x.clone()
    alone = rp.certifier(name).bounds(model, x[1:2].clone(), rp.Linf(eps=0.1, clip=None))
    found = rp.certifier(name).bounds(nn.Sequential(*model), x, rp.Linf(eps=0.1, clip=None))
    assert torch.equal(x, kept)
    torch.testing.assert_close(found.lower[1:2], alone.lower)
