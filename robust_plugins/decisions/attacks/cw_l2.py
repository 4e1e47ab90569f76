"""`CWL2`: Carlini and Wagner's attack on the L2 norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robust_plugins.balls import L2, Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.attacks.ascent import slope
from robust_plugins.decisions.attacks.boundaries import goals, linear_distance, margin
from robust_plugins.decisions.attacks.closest import Closest, check_norm, falling, of_samples, per_sample, with_radii
from robust_plugins.decisions.attacks.objectives import Objective
from robust_plugins.decisions.attacks.tanh_space import Adam, TanhSpace, lacking
from robust_plugins.harness.parameters import check_count, check_length

INSIDE = 0.99
"""Inputs start at most so far from the middle of their range."""


@dataclass(frozen=True, kw_only=True)
class CWL2(Attack):
    """The closest adversarial example in L2: a ced sum of distance and margin, with the c searched for.

    Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks", section VI.A: in tanh space, Adam
    minimises `|delta|^2 + c * max(margin, 0)` from `x` on. `c` grows tenfold until that finds an adversarial example,
    and is then bisected; each sample has its own. The margin is measured in its own at `x`, and squared distances in
    that at which the model's linearisation has none left: whatever the scale of the logits, 2 is the smallest `c` that
    finds an example of a linear model.

    - `steps` >= 1, per `c`; `searches` >= 1, how many `c` are tried. Steps get shorter along a cosine.
    - `learning_rate` > 0, in tanh space.
    - `first_c` > 0, in the units above.
    - `targets` >= 0: so many further searches, each towards one class: those whose boundaries are closest in the
      model's linearisation at `x`.

    The result is brought to where it stops failing. L2 only: the same in L-infinity, and in an `rp.Box`, is
    `rp:cw-linf`. The ball bounds the search. Targeted too. Raises ArgumentError for other balls and unusable
    parameters, and for a model that is not differentiable in its input.
    """

    nearest: ClassVar[bool] = True

    steps: int = 100
    searches: int = 9
    learning_rate: float = 0.1
    first_c: float = 4.0
    targets: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        check_count("searches", self.searches)
        check_count("targets", self.targets, least=0)
        check_length("learning_rate", self.learning_rate, unit="tanh space", hint="The default is 0.1.")
        check_length("first_c", self.first_c, unit="the units of the linearisation", hint="The default is 4.")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        check_norm(ball, L2, name="rp:cw-l2")
        closest = Closest(model, x, y, ball, targeted=targeted)
        at = (~closest.found & ball.radii_for(x).gt(0)).nonzero().flatten()
        if not len(at):
            return closest.x
        chosen = of_samples(ball, at)
        limit = chosen.radii_for(x[at])
        for to in goals(model, x[at], y[at], chosen, count=self.targets, targeted=targeted):
            short = lacking(margin(y[at], to, targeted=targeted))
            gradient, _, value = slope(model, x[at], short)
            unit = linear_distance(chosen, gradient, -value, x[at]).minimum(limit).square()
            unit = unit / (-value).clamp(min=torch.finfo(x.dtype).tiny)
            c, low = torch.full_like(limit, self.first_c), torch.zeros_like(limit)
            high = torch.full_like(limit, torch.inf)
            for _ in range(self.searches):
                # What is closer than the closest found lies in a smaller box, whose tanh has steps of its size.
                space = TanhSpace(x[at], with_radii(chosen, torch.minimum(limit, closest.distance[at])))
                won = self._descend(model, space, short, c * unit, at, closest)
                low, high = torch.where(won, low, c), torch.where(won, c, high)
                c = torch.where(high.isfinite(), (low + high) / 2, 10 * c)
        return closest.refined()

    def _descend(
        self, model: nn.Module, space: TanhSpace, short: Objective, c: Tensor, at: Tensor, closest: Closest
    ) -> Tensor:
        """Runs Adam once and says for which samples it met an adversarial example in the second half of its steps."""
        w = space.start(INSIDE)
        adam, won = Adam(w, self.learning_rate), torch.zeros_like(c, dtype=torch.bool)
        for step in range(self.steps):
            z = space.inputs(w)
            rising, logits, _ = slope(model, z, short)
            wins = closest.offer(z, at, logits=logits)
            won |= wins & (step >= self.steps // 2)  # before that the momentum overshoots
            gradient = (2 * (z - space.x) - per_sample(c, z) * rising) * space.slope(w)
            w = adam.step(w, gradient, rate=falling(step, self.steps))
        return won
