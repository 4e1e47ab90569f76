"""Nearest and farthest points of a ball together with its clip range, which `Ball.project` takes one after the other.

Cutting to the clip range shortens what the ball has projected: a search that projects so never uses its whole radius
where inputs are at the ends of the range.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robust_plugins.balls import L1, L2, Ball

ROUNDS = 50
"""At most so many rounds of a search for the scale of an L2 step; a handful are needed."""


def nearest(ball: Ball, z: Tensor, x: Tensor) -> Tensor:
    """The point nearest to `z` that lies both in the ball around `x` and in its clip range.

    For an L1 ball this is Proposition 2.1 of Croce and Hein 2021, "Mind the box". Exact up to rounding for `Linf`,
    `L2` and `L1`; `Ball.project` for others.
    """
    if ball.clip is None or not isinstance(ball, L1 | L2):
        return ball.project(z, x)
    step = (z - x).flatten(1)
    room, eps = _room(ball, step, x), ball.eps_for(x).flatten(1)
    size = torch.minimum(step.abs(), room)
    if isinstance(ball, L2):
        size = torch.where(_length(size) > eps, _scaled(step.abs(), room, eps), size)
    else:
        size = torch.where(size.sum(1, keepdim=True) > eps, _shrunk(step.abs(), room, eps), size)
    return x + (size * step.sign()).view_as(x)


def farthest(ball: Ball, gradient: Tensor, x: Tensor) -> Tensor:
    """A point of the ball around `x` and its clip range at which a linear function with this gradient is largest.

    Where the gradient is zero, `x` itself.
    """
    slope = gradient.flatten(1).nan_to_num(0.0)
    room, eps = _room(ball, slope, x), ball.eps_for(x).flatten(1)
    if isinstance(ball, L2):
        size = slope.abs()
        size = size / size.amax(1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)  # squares stay normal
        size = _scaled(size, torch.where(size > 0, room, 0.0), eps)
    elif isinstance(ball, L1):
        size = greedy(slope, room, eps)
    else:
        return ball.project(x + ball.steepest(gradient.nan_to_num(0.0)), x)
    return x + (size * slope.sign()).view_as(x)


def greedy(slope: Tensor, room: Tensor, budget: Tensor) -> Tensor:
    """Sizes, at most `room` and at most `budget` (batch, 1) together, spent where the slope is largest.

    Croce and Hein 2021, "Mind the box", Proposition 2.2: the steepest step in L1 that knows the ends of the range.
    """
    order = torch.where(room > 0, slope.abs(), -1.0).argsort(1, descending=True)
    ranked = room.gather(1, order)
    before = ranked.cumsum(1) - ranked
    return torch.zeros_like(room).scatter(1, order, torch.minimum(ranked, (budget - before).clamp(min=0)))


def _room(ball: Ball, step: Tensor, x: Tensor) -> Tensor:
    """How far each coordinate can go in the direction of the step."""
    box, flat = ball.box(x), x.flatten(1)
    return torch.where(step > 0, box.upper.flatten(1) - flat, flat - box.lower.flatten(1)).clamp(min=0)


def _length(step: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(step, dim=1, keepdim=True)
    return length


def _scaled(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """`min(s * size, room)` with the scale s at which its length is `eps`, or all the room where that is shorter.

    Coordinates that reach their room leave more of the radius to the others, whose scale only grows: a finite search.
    """
    full, scale = torch.zeros_like(size, dtype=torch.bool), torch.zeros_like(eps)
    for _ in range(ROUNDS):
        left = (eps.square() - torch.where(full, room, 0.0).square().sum(1, keepdim=True)).clamp(min=0).sqrt()
        free = _length(torch.where(full, 0.0, size))
        scale = torch.where(free > 0, left / torch.where(free > 0, free, 1.0), scale)
        now = full | (scale * size >= room)
        if torch.equal(now, full):
            break
        full = now
    return torch.where(full, room, torch.minimum(scale * size, room))


def _shrunk(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """`min(max(size - t, 0), room)` with the threshold t >= 0 at which its sum is `eps`: sorted breakpoints of t."""
    # From above, a coordinate begins to grow at t = size and has reached its room at t = size - room.
    at = torch.cat([size, size - room], 1).clamp(min=0)
    turn = torch.cat([torch.ones_like(size), -torch.ones_like(size)], 1)
    at, order = at.sort(1, descending=True)
    slope = turn.gather(1, order).cumsum(1)
    total = torch.nn.functional.pad((slope[:, :-1] * (at[:, :-1] - at[:, 1:])).cumsum(1), (1, 0))
    last = ((total <= eps).sum(1, keepdim=True) - 1).clamp(min=0)
    growth = slope.gather(1, last)
    beyond = torch.where(growth > 0, (eps - total.gather(1, last)) / growth.clamp(min=1), 0.0)
    threshold = (at.gather(1, last) - beyond).clamp(min=0)
    return torch.minimum((size - threshold).clamp(min=0), room)
