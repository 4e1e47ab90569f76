"""ART's AutoAttack: an ensemble whose members attack what the ones before left standing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robust_plugins.adapters.art.iterated import auto_pgd
from robust_plugins.adapters.art.queried import square
from robust_plugins.adapters.art.running import MARGINS, Plan, run
from robust_plugins.adapters.checks import check_counts, check_one_radius, check_positive, check_untargeted
from robust_plugins.adapters.views import stretched
from robust_plugins.balls import L1, Ball
from robust_plugins.decisions.attack import Attack


@dataclass(frozen=True, kw_only=True)
class Auto(Attack):
    """ART's AutoAttack: Auto-PGD on cross-entropy and on the logit ratio, DeepFool, and Square on what is left.

    Not the suite of Croce and Hein 2020, which has FAB and targeted Auto-PGD instead of DeepFool. Untargeted only, for
    L-infinity, L2 and L1. The logit ratio is left out for two classes, Square for L1, for inputs that are no images and
    without a clip range.

    - `steps`, `restarts` >= 1: of Auto-PGD, and the restarts of Square.
    - `relative_step` > 0: Auto-PGD's first step in units of eps.
    - `queries` >= 1: of Square, per restart. ART's own 5000 take minutes for a few images.
    """

    steps: int = 100
    restarts: int = 5
    relative_step: float = 2.0
    queries: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps, restarts=self.restarts, queries=self.queries)
        check_positive(relative_step=self.relative_step)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        from art.attacks.evasion import AutoAttack, DeepFool

        from robust_plugins.adapters.art.estimator import classes_of

        check_untargeted("art:auto", targeted)
        check_one_radius("art:auto", ball)
        view = stretched(model, x, ball)
        losses = ("cross_entropy", "difference_logits_ratio")[: 2 if classes_of(model, x) >= MARGINS else 1]
        squares = x.dim() == 4 and ball.clip is not None and not isinstance(ball, L1) and min(x.shape[2:]) >= SMALLEST

        def plan(eps: float) -> Plan:
            step = self.relative_step * eps
            parts = [auto_pgd(loss, self.steps, self.restarts, step, self.batch_size) for loss in losses]
            parts += [Plan(DeepFool, {"max_iter": 100, "epsilon": 1e-3})]
            if squares:
                parts += [square(self.queries, self.restarts, 0.8, self.batch_size)]
            return Plan(AutoAttack, {"attacks": tuple(parts), "eps_step": step})

        found = run(plan, view.model, view.x, y, view.ball, targeted=False, name="art:auto", sparing=True)
        return ball.project(view.back(found), x)


SMALLEST = 10
"""The smallest side of an image for which ART's Square attack finds places for all of its squares."""
