"""`FMN`: the fast minimum-norm attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robust_plugins.balls import L1, L2, Ball, Box, Linf
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.attacks.ascent import moves, slope
from robust_plugins.decisions.attacks.boundaries import goals, linear_distance, margin
from robust_plugins.decisions.attacks.closest import Closest, check_norm, check_share, falling, with_radii
from robust_plugins.decisions.attacks.objectives import Objective
from robust_plugins.harness.parameters import check_count, check_length


@dataclass(frozen=True, kw_only=True)
class FMN(Attack):
    """The closest adversarial example, by steps on the boundary of a ball whose radius follows the decision.

    Pintor et al. 2021, "Fast minimum-norm adversarial attacks through adaptive norm constraints", algorithm 1: the
    radius grows to where the margin's linearisation is zero until a first example is found, then shrinks by a part of
    `gamma` where the iterate is adversarial and grows by it where it is not; `gamma` and the steps fall along a cosine.

    - `steps` >= 1.
    - `step_size` > 0 in units of the radius, which follows each sample's own scale, where the paper's is in units of
      the input. Steps are the steepest in the ball's norm.
    - `gamma` between 0 and 1.
    - `targets` >= 0: so many further runs, each towards one class: those whose boundaries are closest in the model's
      linearisation at `x`. The first run leaves `y` towards whichever class comes first.

    L-infinity, L2 and L1, and the distance of an `rp.Box`, in units of each feature's radius. The ball bounds the
    search: what is returned lies inside it and is the closest found, brought to where it stops failing. Targeted too.
    Raises ArgumentError for other balls and unusable parameters, and for a model that is not differentiable in its
    input.
    """

    nearest: ClassVar[bool] = True

    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05
    targets: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        check_length("step_size", self.step_size, unit="units of the radius", hint="1 is a step as long as the radius.")
        check_count("targets", self.targets, least=0)
        check_share("gamma", self.gamma, hint="0.05 is the paper's.")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        check_norm(ball, Linf, L2, L1, Box, name="rp:fmn")
        closest = Closest(model, x, y, ball, targeted=targeted)
        if not bool((~closest.found & ball.radii_for(x).gt(0)).any()):
            return closest.x
        for to in goals(model, x, y, ball, count=self.targets, targeted=targeted):
            self._search(model, x, ball, margin(y, to, targeted=targeted), closest)
        return closest.refined()

    def _search(self, model: nn.Module, x: Tensor, ball: Ball, raised: Objective, closest: Closest) -> None:
        limit = ball.radii_for(x)
        z, radius, found = x, torch.zeros_like(limit), torch.zeros_like(limit, dtype=torch.bool)
        for step in range(self.steps):
            gradient, logits, value = slope(model, z, raised)
            wins = closest.offer(z, logits=logits)
            found |= wins
            rate = falling(step, self.steps)
            gamma = self.gamma * rate
            radius = torch.where(wins, torch.minimum(radius * (1 - gamma), closest.distance), radius * (1 + gamma))
            if not bool(found.all()):
                # Beyond where the linearisation is zero, which rounding would never reach.
                ahead = linear_distance(ball, gradient, -value, z)
                first = (1 + gamma) * (ball.distance(z, x) + ahead)
                radius = torch.where(found, radius, first)
            smaller = with_radii(ball, radius.minimum(limit))
            z = moves(smaller, x)(z, gradient, self.step_size * rate)
        closest.offer(z)
