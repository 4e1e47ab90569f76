"""Attacks of ART that follow gradients for a fixed radius: with momentum, or with step sizes that they choose."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robust_plugins.adapters.art.running import MARGINS, Plan, run
from robust_plugins.adapters.checks import check_counts, check_positive
from robust_plugins.balls import Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class MIM(Attack):
    """The momentum iterative method: signed steps along a decaying sum of normalised gradients, from `x` itself.

    Dong et al. 2018, "Boosting adversarial attacks with momentum", algorithm 1, for L-infinity, L2 and L1, targeted or
    not. The last iterate is what it returns, as ART does.

    - `steps` >= 1.
    - `relative_step` > 0, the step in units of each sample's eps; None is 2.5 / steps, as in `art:pgd`.
    - `decay` > 0: how much of the sum the next step keeps.
    """

    steps: int = 40
    relative_step: float | None = None
    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps)
        check_positive(decay=self.decay)
        if self.relative_step is not None:
            check_positive(relative_step=self.relative_step)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        from art.attacks.evasion import MomentumIterativeMethod

        relative = 2.5 / self.steps if self.relative_step is None else self.relative_step

        def plan(eps: float) -> Plan:
            # ART refuses steps longer than eps, which end where those of length eps do on L-infinity.
            step = min(relative, 1.0) * eps
            return Plan(MomentumIterativeMethod, {"max_iter": self.steps, "eps_step": step, "decay": self.decay})

        return run(plan, model, x, y, ball, targeted=targeted, name="art:mim")


@dataclass(frozen=True, kw_only=True)
class APGDCE(Attack):
    """Auto-PGD on cross-entropy: projected gradients with momentum whose steps halve where progress stops.

    Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", algorithm 1, as ART has it, for L-infinity, L2 and L1, targeted or not; every start is random, and ART
    returns the last iterate of the last start.

    - `steps` >= 1, per restart; `restarts` >= 1, for samples that the ones before left standing.
    - `relative_step` > 0: the first step in units of each sample's eps, 2 in the paper.
    """

    steps: int = 100
    restarts: int = 1
    relative_step: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps, restarts=self.restarts)
        check_positive(relative_step=self.relative_step)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        return self._ascend(model, x, y, ball, targeted, "art:apgd-ce", "cross_entropy")

    def _ascend(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, targeted: bool, name: str, loss: str
    ) -> Tensor:
        return run(
            lambda eps: auto_pgd(loss, self.steps, self.restarts, self.relative_step * eps),
            model, x, y, ball, targeted=targeted, name=name,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class APGDDLR(APGDCE):
    """Auto-PGD on the difference of logits ratio, which no scale of the logits saturates; for three classes or more.

    Croce and Hein 2020, equation 6: `-(z_y - max_j z_j) / (z_1 - z_3)`, with the logits z_1 >= z_2 >= z_3 in order.
    Norms, targets and fields are those of `art:apgd-ce`.
    """

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        from robust_plugins.adapters.art.estimator import classes_of

        if (classes := classes_of(model, x)) < MARGINS:
            raise ArgumentError(
                "model", f"one of {classes} classes, for art:apgd-dlr", accepted=f"{MARGINS} classes or more",
                hint="Use art:apgd-ce.",
            )  # fmt: skip
        return self._ascend(model, x, y, ball, targeted, "art:apgd-dlr", "difference_logits_ratio")


def auto_pgd(loss: str, steps: int, restarts: int, step: float, batch_size: int | None = None) -> Plan:
    """ART's Auto-PGD, with its first step in input units."""
    from art.attacks.evasion import AutoProjectedGradientDescent

    return Plan(
        AutoProjectedGradientDescent,
        {"max_iter": steps, "nb_random_init": restarts, "eps_step": step, "loss_type": loss, "batch_size": batch_size},
    )
