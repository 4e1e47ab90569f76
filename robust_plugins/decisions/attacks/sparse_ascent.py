"""Auto-PGD's run on L1: steps along a few coordinates, how many follows from how sparse the best iterate is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.decisions.attacks.adaptive_ascent import Top, chosen
from robust_plugins.decisions.attacks.ascent import slope
from robust_plugins.decisions.attacks.best import Best
from robust_plugins.decisions.attacks.objectives import Objective
from robust_plugins.decisions.attacks.sets import farthest, nearest

FIRST = 0.2
"""The share of coordinates that the first steps move."""

PERIOD = 0.04
"""The share of the steps between checkpoints."""

SPARSER = 1.5
"""By how much fewer coordinates are moved than the best iterate has moved, and by how much step sizes shrink."""

SETTLED = 0.95
"""Where more than this share of the moved coordinates is left since the last checkpoint, sparsity has settled."""

SMALLEST = 0.1
"""The smallest step size, in units of eps."""

RADII = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
"""The balls of a run, in units of eps, and the share of the steps in each."""


def ascend_sparsely(
    model: nn.Module, goal: Objective, x: Tensor, start: Tensor, ball: Ball, steps: int, best: Best
) -> None:
    """Offers `best` the iterates of one run of algorithm 1 of Croce and Hein 2021, from `start`.

    It searches balls of three and of two times the radius before the ball itself (section 3.3 there); only what lies in
    the ball itself is offered. Two things are ours: coordinates at the end of their range are not among those that
    steps move, and in the end the farthest point along the best iterate's gradient is offered, which solves a linear
    model, where steps of a tenth of eps go on wavering.
    """
    z, left = start, steps
    for factor, share in RADII:
        part = left if factor == 1 else int(share * steps)
        left -= part
        if part:
            wider = ball.scaled(factor)
            top = _run(model, goal, x, nearest(wider, z, x), wider, part, best if factor == 1 else None)
            z = top.z
    corner = farthest(ball, top.gradient, x)
    with torch.no_grad():
        best.offer(corner, model(corner))


def _run(model: nn.Module, goal: Objective, x: Tensor, start: Tensor, ball: Ball, steps: int, best: Best | None) -> Top:
    features, period = x[0].numel(), max(int(PERIOD * steps), 1)
    eps, ones = ball.eps_for(x), [1] * (x.dim() - 1)
    size, moving = torch.ones_like(eps), torch.full((len(x),), FIRST * features, dtype=x.dtype, device=x.device)
    moved_at_last = torch.full_like(moving, float(features))
    z, box = start, ball.box(x)
    gradient, logits, value = slope(model, z, goal)
    if best is not None:
        best.offer(z, logits)
    top = Top(z, gradient, value)
    for step in range(1, steps + 1):
        free = torch.where(gradient > 0, z < box.upper, z > box.lower)
        z = nearest(ball, z + size * eps * _sparse_signs(torch.where(free, gradient, 0.0), moving), x)
        gradient, logits, value = slope(model, z, goal)
        if best is not None:
            best.offer(z, logits)
        top.offer(z, gradient, value)
        if step % period == 0:
            moved = (top.z != x).flatten(1).sum(1).to(x)
            settled = (moved >= SETTLED * moved_at_last).view(-1, *ones)
            size = torch.where(settled, (size / SPARSER).clamp(min=SMALLEST), 1.0)
            again = ~settled.flatten()
            z, gradient = chosen(again, top.z, z), chosen(again, top.gradient, gradient)
            moving, moved_at_last = moved / SPARSER, moved
    return top


def _sparse_signs(gradient: Tensor, moving: Tensor) -> Tensor:
    """The signs of so many of each sample's largest components, at least one, with absolute values that sum to 1."""
    flat = gradient.flatten(1).nan_to_num(0.0)
    count = moving.long().clamp(1, flat.shape[1])
    ranked, order = flat.abs().sort(1, descending=True)
    kept = torch.arange(flat.shape[1], device=flat.device) < count.unsqueeze(1)
    signs = torch.zeros_like(flat).scatter(1, order, torch.where(kept & (ranked > 0), 1.0, 0.0).to(flat)) * flat.sign()
    return (signs / count.unsqueeze(1)).view_as(gradient)
