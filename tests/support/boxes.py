"""A set of every kind of feature, and all of its points, as far as they can matter."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

import robust_plugins as rp

MIXED = rp.Box(
    eps=1, radius=[0.1, 1, 1, 1, 2, 0.5], clip=([0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 9, 1]),
    one_hot=[[1, 2, 3]], integers=[4], immutable=[5],
)  # fmt: skip
"""A number, a group of three categories, a whole number, and a number that stays."""


def mixed(count: int, seed: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Inputs of `MIXED`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((count, 6), generator=generator, dtype=dtype)
    x[:, 1:4] = torch.nn.functional.one_hot(torch.randint(3, (count,), generator=generator), 3).to(dtype)
    x[:, 4] = torch.randint(10, (count,), generator=generator).to(dtype)
    return x


def members(ball: rp.Box, x: Tensor, *, grid: int = 2) -> Tensor:
    """The points of `MIXED`, of another radius too, around one input; of the first feature `grid` values."""
    eps = float(ball.radii)  # type: ignore[arg-type]
    low, up = max(0.0, x[0, 0].item() - 0.1 * eps), min(1.0, x[0, 0].item() + 0.1 * eps)
    first = torch.linspace(low, up, grid, dtype=x.dtype).tolist()
    groups = torch.eye(3).tolist() if eps > 0 else [x[0, 1:4].tolist()]
    whole = [n for n in range(10) if abs(n - x[0, 4].item()) <= 2 * eps]
    points = [[a, *group, n, x[0, 5].item()] for a, group, n in itertools.product(first, groups, whole)]
    return torch.tensor(points, dtype=x.dtype)
