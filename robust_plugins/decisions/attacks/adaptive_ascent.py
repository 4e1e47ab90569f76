"""Auto-PGD's run on L-infinity and L2: steps that halve where the objective has ceased to rise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.decisions.attacks.ascent import moves, slope
from robust_plugins.decisions.attacks.best import Best
from robust_plugins.decisions.attacks.objectives import Objective
from robust_plugins.decisions.attacks.sets import nearest

MOMENTUM = 0.75
"""The weight of the gradient's step beside the last movement: alpha of the paper."""

ENOUGH = 0.75
"""The share of steps that have to rise between checkpoints: rho of the paper."""


class Top:
    """The iterate of a run with the largest objective, sample by sample, and the gradient there."""

    def __init__(self, z: Tensor, gradient: Tensor, value: Tensor) -> None:
        self.z, self.gradient, self.value = z.clone(), gradient.clone(), value.nan_to_num(-torch.inf)

    def offer(self, z: Tensor, gradient: Tensor, value: Tensor) -> None:
        """Takes the samples whose objective is larger; NaN never is."""
        higher = value > self.value
        self.value = torch.where(higher, value, self.value)
        self.z, self.gradient = chosen(higher, z, self.z), chosen(higher, gradient, self.gradient)


def chosen(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """For each sample `yes` where `rows` (batch,) says so, and `no` elsewhere."""
    return torch.where(rows.view(-1, *[1] * (yes.dim() - 1)), yes, no)


def checkpoints(steps: int) -> list[int]:
    """The iterations after which step sizes are reconsidered.

    Croce and Hein 2020, section 3.2: the first after 22 % of the steps, then after periods that shrink by 3 % each, to
    no less than 6 %.
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return [math.ceil(share * steps) for share in shares if share <= 1]


def ascend_by_halving(
    model: nn.Module, goal: Objective, x: Tensor, start: Tensor, ball: Ball, steps: int, best: Best
) -> None:
    """Offers `best` the iterates of one run of algorithm 1 of Croce and Hein 2020, from `start`.

    Every sample has its own step size, first of 2 eps. At a checkpoint it is halved, and the run goes on from its best
    iterate, where less than 75 % of the steps since the last one have raised `goal`, or where neither the step size nor
    the best value has changed.
    """
    move, periods = moves(ball, x), checkpoints(steps)
    size = x.new_full((len(x), *[1] * (x.dim() - 1)), 2.0)
    z = before = start
    gradient, logits, value = slope(model, z, goal)
    best.offer(z, logits)
    top = Top(z, gradient, value)
    risen = torch.zeros_like(value)
    unchanged, at_last = torch.zeros_like(best.success), top.value
    for step in range(1, steps + 1):
        moved = move(z, gradient, size)
        if step > 1:
            moved = nearest(ball, z + MOMENTUM * (moved - z) + (1 - MOMENTUM) * (z - before), x)
        before, z = z, moved
        gradient, logits, new = slope(model, z, goal)
        best.offer(z, logits)
        risen += new > value
        value = new
        top.offer(z, gradient, value)
        if step in periods:
            period = step - max(p for p in periods if p < step)
            stuck = (risen < ENOUGH * period) | (unchanged & (top.value == at_last))
            size = chosen(stuck, size / 2, size)
            z, gradient = chosen(stuck, top.z, z), chosen(stuck, top.gradient, gradient)
            value = torch.where(stuck, top.value, value)
            unchanged, at_last, risen = ~stuck, top.value, torch.zeros_like(risen)
