"""Proximal steps of the norms, which know how far each input can go: a shorter perturbation, close to a given one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robust_plugins.balls import L1, Ball, Box, Linf

HALVINGS = 30
"""Of the interval in which the scale of an L2 step is looked for."""


def shortened(
    ball: Ball, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"], price: Float[Tensor, " batch"]
) -> Float[Tensor, "batch *features"]:
    """The point `u` of the clip range that minimises `price * ball.norm(u - x) + |u - z|^2 / 2`, for each sample.

    On L1 each coordinate moves towards `x` by the price, which leaves most where they were; on L-infinity the largest
    are cut to one size (Moreau's decomposition); on L2 all are scaled. Each ends at its range at the latest. Exact up
    to rounding for `Linf`, `L2` and `L1` around an `x` in the range, where the solution of each coordinate lies
    between `x` and `z`. `Ball.eps` does not matter. Of a `Box` within the ball, with the distance of `u` from `z` in
    the units of each feature, as its own is; what costs nothing goes as far as it can.
    """
    if isinstance(ball, Box):
        return _in_a_box(ball, z, x, price)
    step, cost = (z - x).flatten(1), price.unsqueeze(1)
    wanted, room = step.abs(), torch.full_like(step, torch.inf)
    if ball.clip is not None:
        room = torch.where(step > 0, ball.clip[1] - x.flatten(1), x.flatten(1) - ball.clip[0]).clamp(min=0)
    if isinstance(ball, L1):
        size = torch.minimum((wanted - cost).clamp(min=0), room)
    elif isinstance(ball, Linf):
        size = torch.minimum(wanted, room).minimum(_height(wanted, room, cost))
    else:
        size = torch.minimum(_scale(wanted, room, cost) * wanted, room)
    return x + (size * step.sign()).view_as(x)


def _in_a_box(ball: Box, z: Tensor, x: Tensor, price: Tensor) -> Tensor:
    units, counted, box = ball.units(x).flatten(1), ball.costs(x).flatten(1) > 0, ball.box(x)
    step, one = (z - x).flatten(1), torch.where(units > 0, units, 1)
    room = torch.where(step > 0, (box.upper - x).flatten(1), (x - box.lower).flatten(1)).clamp(min=0) / one
    wanted = torch.where(units > 0, step.abs() / one, 0.0)
    size = torch.minimum(wanted, room)
    height = _height(torch.where(counted, wanted, 0.0), torch.where(counted, room, 0.0), price.unsqueeze(1))
    size = torch.where(counted, size.minimum(height), size)
    return x + (size * one * step.sign()).view_as(x)


def _height(wanted: Tensor, room: Tensor, cost: Tensor) -> Tensor:
    """The largest size of a coordinate: what is cut off of those that could be larger adds up to the cost."""
    ends, order = torch.minimum(wanted, room).sort(1, descending=True)
    total = wanted.gather(1, order).cumsum(1)
    count = torch.arange(1, ends.shape[1] + 1, dtype=ends.dtype, device=ends.device)
    cut = total - count * F.pad(ends[:, 1:], (0, 1))  # by a height that the next smaller coordinate has
    at = (cut < cost).sum(1, keepdim=True)
    last = at.clamp(max=max(ends.shape[1] - 1, 0))
    height = torch.minimum((total.gather(1, last) - cost) / (last + 1), ends.gather(1, last)).clamp(min=0)
    return torch.where(at < ends.shape[1], height, 0.0)


def _scale(wanted: Tensor, room: Tensor, cost: Tensor) -> Tensor:
    """The s in [0, 1) at which `|min(s * wanted, room)| * (1 - s) = cost * s`; 0 where the cost is too large."""
    low, high = torch.zeros_like(cost), torch.ones_like(cost)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        length = torch.linalg.vector_norm(torch.minimum(middle * wanted, room), dim=1, keepdim=True)
        longer = length * (1 - middle) > cost * middle
        low, high = torch.where(longer, middle, low), torch.where(longer, high, middle)
    return low
