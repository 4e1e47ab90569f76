"""The walk through the linear regions of a ReLU network, against a grid of inputs and a closed form."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from support.scripts import script
from torch import nn

pytestmark = pytest.mark.usefixtures("unchecked")

CLIP = (0.0, 1.0)
walk = script("comparisons/exact_l2.py")


def network(seed: int, *widths: int) -> nn.Sequential:
    torch.manual_seed(seed)
    sizes = (2, *widths)
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], 3)).double().requires_grad_(False)
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.mul_(3)
            layer.bias.uniform_(-1, 1)
    model[-1].bias.sub_(model(grid(21)).mean(0))  # so that more classes than one are decided
    return model


def grid(side: int = 301) -> torch.Tensor:
    ticks = torch.linspace(0, 1, side, dtype=torch.float64)
    return torch.cartesian_prod(ticks, ticks)


@pytest.mark.parametrize("widths", [(), (6,), (7, 5)])
def test_no_point_of_a_grid_is_nearer_and_one_is_about_as_near(widths) -> None:
    points, reached, closed = grid(), 0, 0
    for seed in range(3):
        model = network(seed, *widths)
        decided = model(points).argmax(1)
        for x in torch.rand(3, 2, dtype=torch.float64):
            y = int(model(x[None]).argmax(1))
            known = (points[decided != y] - x).norm(dim=1)
            nearest = float(known.min()) if len(known) else math.inf
            found = walk.nearest_other_class(model, x, y, known=math.sqrt(2), clip=CLIP)
            assert found.lower <= nearest
            if nearest < math.inf:
                reached += 1
                assert nearest <= found.lower + 2 / 300, (seed, found, nearest)
                closed += found.upper <= found.lower * (1 + 1e-4)  # else it is a corner, which no ray enters
    assert reached > 6
    assert closed >= 0.8 * reached


def test_what_is_not_visited_is_not_promised() -> None:
    """After one region the bound is the distance of the nearest neighbour."""
    model = network(2, 7, 5)
    x = torch.tensor([0.5, 0.5], dtype=torch.float64)
    y = int(model(x[None]).argmax(1))
    whole, one = (walk.nearest_other_class(model, x, y, known=2.0, clip=CLIP, regions=n) for n in (2000, 1))
    assert whole.regions > 1
    assert one.lower <= whole.lower <= whole.upper <= one.upper


def test_a_walk_that_never_leaves_its_region_promises_too_much(monkeypatch) -> None:
    """The fault that the grid is there for."""
    monkeypatch.setattr(walk._Walk, "neighbours", lambda self, pattern, most: iter(()))
    with pytest.raises(AssertionError):
        test_no_point_of_a_grid_is_nearer_and_one_is_about_as_near((7, 5))


def test_other_layers_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="Tanh"):
        walk.nearest_other_class(model, torch.rand(2), 0, known=1.0, clip=CLIP)
