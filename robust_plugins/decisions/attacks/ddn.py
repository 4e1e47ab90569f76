"""`DDN`: decoupled direction and norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robust_plugins.balls import L2, Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.attacks.ascent import slope
from robust_plugins.decisions.attacks.boundaries import goals, linear_distance, margin
from robust_plugins.decisions.attacks.closest import Closest, check_norm, check_share, falling, per_sample, where
from robust_plugins.decisions.attacks.objectives import Objective, objective
from robust_plugins.harness.parameters import check_count, check_length


@dataclass(frozen=True, kw_only=True)
class DDN(Attack):
    """The closest adversarial example in L2, by gradient steps that are set back onto a sphere of changing radius.

    Rony et al. 2019, "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks", algorithm 1:
    after each step the radius shrinks by a part of `gamma` where the iterate is adversarial and grows by it where it is
    not; the steps' length falls along a cosine.

    - `steps` >= 1.
    - `step_size` > 0 in units of the radius, and the first radius is that at which the margin's linearisation is zero,
      where the paper starts with 1 for both, in units of the input.
    - `gamma` between 0 and 1; it falls with the steps.
    - `targets` >= 0: so many further runs, each up the margin of one class: those whose boundaries are closest in the
      model's linearisation at `x`.

    The first run's gradient is that of the cross-entropy, or of the margin where that one vanishes. L2 only: for other
    norms, and an `rp.Box`, which has radii in place of a norm, there is `rp:fmn`. The ball bounds the search: what is
    returned lies inside it and is the closest found, brought to where it stops failing. Targeted too. Raises
    ArgumentError for other balls and unusable parameters, and for a model that is not differentiable in its input.
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
        check_norm(ball, L2, name="rp:ddn")
        closest = Closest(model, x, y, ball, targeted=targeted)
        if not bool((~closest.found & ball.radii_for(x).gt(0)).any()):
            return closest.x
        entropy = objective("cross_entropy", y, targeted=targeted)
        for to in goals(model, x, y, ball, count=self.targets, targeted=targeted):
            raised = margin(y, to, targeted=targeted)
            self._search(model, x, ball, entropy if to is None else raised, raised, closest)
        return closest.refined()

    def _search(
        self, model: nn.Module, x: Tensor, ball: Ball, raised: Objective, distant: Objective, closest: Closest
    ) -> None:
        limit, tiny = ball.radii_for(x), torch.finfo(x.dtype).tiny
        gradient, _, value = slope(model, x, distant)
        radius = linear_distance(ball, gradient, -value, x).minimum(limit)
        z = x
        for step in range(self.steps):
            gradient, logits, _ = slope(model, z, raised)
            wins = closest.offer(z, logits=logits)
            dead = _length(gradient) < tiny**0.5  # its squares have vanished too
            if bool(dead.any()):
                gradient = where(dead, slope(model, z, distant)[0], gradient)
            gradient, rate = gradient.nan_to_num(0.0), falling(step, self.steps)
            if step:
                change = torch.where(wins, -self.gamma * rate, self.gamma * rate)
                radius = (radius * (1 + change)).minimum(limit)
            length = self.step_size * rate * radius / _length(gradient).clamp(min=tiny)
            moved = z - x + per_sample(length, x) * gradient
            z = ball.project(x + per_sample(radius / _length(moved).clamp(min=tiny), x) * moved, x)
        closest.offer(z)


def _length(step: Tensor) -> Tensor:
    flat = step.flatten(1).nan_to_num(0.0)
    return torch.linalg.vector_norm(flat, dim=1) if flat.shape[1] else flat.new_zeros(len(flat))
