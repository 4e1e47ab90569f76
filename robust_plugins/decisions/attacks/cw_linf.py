"""`CWLinf`: Carlini and Wagner's attack on the L-infinity norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robust_plugins.balls import Ball, Box, Linf
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.attacks.ascent import slope
from robust_plugins.decisions.attacks.boundaries import goals, linear_distance, margin
from robust_plugins.decisions.attacks.closest import Closest, check_norm, of_samples, per_sample
from robust_plugins.decisions.attacks.tanh_space import Adam, TanhSpace, lacking
from robust_plugins.harness.parameters import check_count, check_length

SHRINK = 0.95
"""What the threshold becomes after a success, as a part of the distance reached."""

INSIDE = 0.95
"""Inputs start at most so far from the middle of their range; those without influence on the model stay there."""


@dataclass(frozen=True, kw_only=True)
class CWLinf(Attack):
    """The closest adversarial example in L-infinity: a penalty on what exceeds a threshold that shrinks.

    Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks", section VI.C: in tanh space, Adam
    minimises `c * max(margin, 0) + sum_i max(|delta_i| - tau, 0)`, starting from the last iterate. Wherever an iterate
    is adversarial, `tau` becomes 0.95 (in the paper 0.9) times the smaller of it and the iterate's distance; where
    `steps` steps find none within `tau`, `c` doubles; a sample ends when `c` exceeds `largest_c`, or when it has an
    example and `tau` falls below `finest`. Three things save most of the paper's steps: `tau` starts where the margin's
    linearisation is zero, and the first example may lie beyond it; `c` starts where both terms are as steep; samples
    that have ended are no longer evaluated.

    - `steps` >= 1, per `c`; `rounds` >= 1: at most so many times `steps` are taken.
    - `learning_rate` > 0, in tanh space. Inputs at the end of their range start a fortieth inside it, where the tanh
      has a slope.
    - `first_c`, `largest_c` > 0, in units of the inverse of the margin's largest slope at `x`.
    - `targets` >= 0: so many further searches, each towards one class: those whose boundaries are closest in the
      model's linearisation at `x`.
    - `finest` > 0, in input units; the paper's 1/256 is one grey level.

    In the end the linearised model's optima at the closest example are tried, and the result is brought to where it
    stops failing. L-infinity, and the distance of an `rp.Box`, in units of each feature's radius, which are then those
    of `tau` and `finest` too; the same in L2 is `rp:cw-l2`. The ball bounds the search. Targeted too. Raises
    ArgumentError for other balls and unusable parameters, and for a model that is not differentiable in its input.
    """

    nearest: ClassVar[bool] = True

    steps: int = 20
    rounds: int = 20
    learning_rate: float = 0.1
    first_c: float = 1.0
    largest_c: float = 20.0
    finest: float = 1 / 256
    targets: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        check_count("rounds", self.rounds)
        check_count("targets", self.targets, least=0)
        check_length("learning_rate", self.learning_rate, unit="tanh space", hint="The default is 0.1.")
        check_length("first_c", self.first_c, unit="inverse slopes", hint="The default is 1.")
        check_length("largest_c", self.largest_c, unit="inverse slopes", hint="The default is 20.")
        check_length("finest", self.finest, unit="input units", hint="The paper's is 1 / 256.")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        check_norm(ball, Linf, Box, name="rp:cw-linf")
        closest = Closest(model, x, y, ball, targeted=targeted)
        at = (~closest.found & ball.radii_for(x).gt(0)).nonzero().flatten()
        if len(at):
            chosen = of_samples(ball, at)
            for to in goals(model, x[at], y[at], chosen, count=self.targets, targeted=targeted):
                self._search(model, x[at], y[at], to, chosen, at, closest, targeted)
        return closest.refined()

    def _search(
        self, model: nn.Module, x: Tensor, y: Tensor, to: Tensor | None, ball: Ball, at: Tensor, closest: Closest,
        targeted: bool,
    ) -> None:  # fmt: skip
        """Follows the samples `at` until each has ended; all state is of those that have not."""
        space = TanhSpace(x, ball)
        w = space.start(INSIDE)
        adam = Adam(w, self.learning_rate)
        rising, _, value = slope(model, x, margin(y, to, targeted=targeted))
        tau = linear_distance(ball, rising, -value, x).nan_to_num(torch.inf, posinf=torch.inf)
        costs = ball.costs(x) if isinstance(ball, Box) else torch.ones_like(x[:1])
        tau = tau.minimum((space.radius * costs).flatten(1).amax(1))
        steepness = rising.abs() / torch.where(costs > 0, costs, 1)
        c = self.first_c / steepness.flatten(1).amax(1).clamp(min=torch.finfo(x.dtype).tiny)
        largest, tried = self.largest_c / self.first_c * c, torch.zeros_like(tau)
        first = torch.ones_like(tau, dtype=torch.bool)
        for _ in range(self.rounds * self.steps):
            z = space.inputs(w)
            rising, logits, _ = slope(model, z, lacking(margin(y, to, targeted=targeted)))
            wins = closest.offer(z, at, logits=logits)
            delta = z - space.x
            moved = delta.abs() * costs
            distance = moved.flatten(1).amax(1)
            excess = delta.sign() * costs * (moved > per_sample(tau, z))
            gradient = (excess - per_sample(c, z) * rising) * space.slope(w)
            within = wins & (first | (distance <= tau))
            first &= ~wins
            tau = torch.where(within, SHRINK * distance, tau)
            tried = torch.where(within, 0, tried + 1)
            spent = tried >= self.steps
            c, tried = torch.where(spent, 2 * c, c), torch.where(spent, 0, tried)
            w = adam.step(w, gradient, again=within | spent)
            going = (c <= largest) & (first | (tau > self.finest))
            if not bool(going.all()):
                if not bool(going.any()):
                    return
                at, y, to = at[going], y[going], None if to is None else to[going]
                w, tau, c, tried = w[going], tau[going], c[going], tried[going]
                first, largest = first[going], largest[going]
                space, adam = space.of(going), adam.of(going)
