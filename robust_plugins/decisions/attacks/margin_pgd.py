"""`MarginPGD`: projected gradient ascent on the margin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from robust_plugins.balls import L1, Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.attacks.ascent import ascend, blends, moves
from robust_plugins.decisions.attacks.best import Best
from robust_plugins.decisions.attacks.classes import reachable_classes
from robust_plugins.decisions.attacks.objectives import objective, towards
from robust_plugins.harness.parameters import check_choice, check_count

MarginLoss = Literal["margin", "dlr"]


@dataclass(frozen=True, kw_only=True)
class MarginPGD(Attack):
    """Projected gradient ascent on the margin, whose gradient does not vanish where the logits are large.

    PGD of Madry et al. 2018, section 2.1, with f_6 of Carlini and Wagner 2017, section V, as its loss, on the exact
    intersection of the ball and its clip range. Each sample keeps the best iterate of all runs: success first, then
    the loss.

    - `steps` >= 1, per run. Their lengths fall along a cosine from 2 eps to nothing: a run crosses the ball first and
      settles in the end. On L1 they are steps of Frank and Wolfe between sparse corners, from the whole way on.
    - `restarts` >= 1: the first run starts at `x`, every further one at a point drawn uniformly from the ball.
    - `targets` >= 0: so many further runs per restart, each towards one class other than `y`: those of which the
      model's linearisation at `x` promises the largest margin. None where `target=` names the class.
    - `loss`: `"margin"`, or `"dlr"`, the ratio of differences of logits (Croce and Hein 2020, equation 6), for three
      classes or more.

    On a linear model it finds the worst case; with three classes or more, `targets` of at least 1 make sure of it.
    Raises ArgumentError for unusable parameters and for a model that is not differentiable in its input.
    """

    steps: int = 40
    restarts: int = 1
    targets: int = 0
    loss: MarginLoss = "margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        check_count("targets", self.targets, least=0)
        check_choice("loss", self.loss, get_args(MarginLoss), hint="For cross-entropy there is rp:pgd.")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        if not ball.largest:
            return x
        raised = objective(self.loss, y, targeted=targeted)
        goals = [raised]
        if self.targets and not targeted:
            goals += [towards(self.loss, y, to) for to in reachable_classes(model, x, y, ball, self.targets)]
        best = Best(x, y, raised, targeted=targeted)
        sparse = isinstance(ball, L1)
        move = blends(ball, x) if sparse else moves(ball, x)
        first = 1.0 if sparse else 2.0
        sizes = [first * (1 + math.cos(math.pi * i / self.steps)) / 2 for i in range(self.steps)]
        for restart in range(self.restarts):
            for goal in goals:
                start = ball.sample(x, 1)[0] if restart else x
                ascend(model, goal, start, sizes, move, best)
        return best.x
