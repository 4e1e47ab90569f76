"""`APGD`: projected gradient ascent that chooses its step sizes itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from torch import Tensor, nn

from robust_plugins.balls import L1, Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.attacks.adaptive_ascent import ascend_by_halving
from robust_plugins.decisions.attacks.best import Best
from robust_plugins.decisions.attacks.classes import reachable_classes
from robust_plugins.decisions.attacks.objectives import Loss, objective, towards
from robust_plugins.decisions.attacks.sparse_ascent import ascend_sparsely
from robust_plugins.harness.parameters import check_choice, check_count


@dataclass(frozen=True, kw_only=True)
class APGD(Attack):
    """Auto-PGD: projected gradient ascent with momentum, whose step sizes follow from how the loss rises.

    Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", algorithm 1, on L-infinity and L2; on L1 the sparse steps of Croce and Hein 2021, "Mind the box: l1-APGD
    for sparse adversarial attacks on image classifiers", algorithm 1, in balls of three, two and one times the radius.
    On the exact intersection of the ball and its clip range. Each sample keeps the best iterate of all runs: success
    first, then the loss.

    - `steps` >= 1, per run.
    - `restarts` >= 1: the first run starts at `x`, every further one at a point drawn uniformly from the ball.
    - `targets` >= 0: so many further runs per restart, each towards one class other than `y`: those of which the
      model's linearisation at `x` promises the largest margin. None where `target=` names the class.
    - `loss`: `"margin"`; `"dlr"`, the ratio of differences of logits (equation 6; towards a class equation 7), for
      three classes or more; `"cross_entropy"`, which saturates on large logits.

    `loss="cross_entropy"` and `loss="dlr", targets=9` are the two halves that AutoAttack has of it. Raises
    ArgumentError for unusable parameters and for a model that is not differentiable in its input.
    """

    steps: int = 100
    restarts: int = 1
    targets: int = 0
    loss: Loss = "margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        check_count("targets", self.targets, least=0)
        check_choice("loss", self.loss, get_args(Loss), hint="'margin' never saturates.")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        if not ball.largest:
            return x
        raised = objective(self.loss, y, targeted=targeted)
        goals = [raised]
        if self.targets and not targeted:
            goals += [towards(self.loss, y, to) for to in reachable_classes(model, x, y, ball, self.targets)]
        best = Best(x, y, raised, targeted=targeted)
        run = ascend_sparsely if isinstance(ball, L1) else ascend_by_halving
        for restart in range(self.restarts):
            for goal in goals:
                start = ball.sample(x, 1)[0] if restart else x
                run(model, goal, x, start, ball, self.steps, best)
        return best.x
