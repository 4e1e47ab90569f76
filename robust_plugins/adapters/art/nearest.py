"""Attacks of ART that follow gradients to the nearest success, whatever the radius; the call cuts them to the ball."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robust_plugins.adapters.art.running import Plan, run
from robust_plugins.adapters.checks import check_clip, check_counts, check_positive, check_untargeted
from robust_plugins.adapters.views import stretched
from robust_plugins.balls import Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack):
    """Steps to the nearest boundary of the linearised model, in L2, until the decision is another one.

    Moosavi-Dezfooli et al. 2016, "DeepFool: a simple and accurate method to fool deep neural networks", algorithm 2.
    Untargeted only. What it finds is projected onto balls of the other norms, for which it is no nearest point.
    ART scales its steps by the clip range; here it sees inputs in [0, 1], where that changes nothing.

    - `steps` >= 1.
    - `overshoot` > 0: how far beyond the boundary it goes, as a share of the whole perturbation.
    - `classes` >= 1: so many of the largest logits are candidates.
    """

    steps: int = 50
    overshoot: float = 0.02
    classes: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps, classes=self.classes)
        check_positive(overshoot=self.overshoot)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        from art.attacks.evasion import DeepFool

        check_untargeted("art:deepfool", targeted)
        arguments = {"max_iter": self.steps, "epsilon": self.overshoot, "nb_grads": self.classes}
        view = stretched(model, x, ball)
        found = run(
            lambda eps: Plan(DeepFool, arguments),
            view.model, view.x, y, view.ball, targeted=False, name="art:deepfool", sparing=True,
        )  # fmt: skip
        return ball.project(view.back(found), x)


@dataclass(frozen=True, kw_only=True)
class CWL2(Attack):
    """Carlini and Wagner's L2 attack: distance plus `c` times the margin, minimised in tanh space, with `c` searched.

    Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks", section V, as ART has it; targeted
    or not. It needs a clip range, which tanh space is made of. What it finds is projected onto balls of other norms.

    - `steps` >= 1, for each `c`; `searches` >= 1, how many values of `c` are tried.
    - `first_constant` > 0: the first of them. ART's own .01 reaches 30 % of the targets that .1 reaches.
    - `learning_rate` > 0, in tanh space; `confidence` >= 0, the margin in logits that counts as success.
    """

    steps: int = 10
    searches: int = 10
    first_constant: float = 0.1
    learning_rate: float = 0.01
    confidence: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(steps=self.steps, searches=self.searches)
        check_positive(first_constant=self.first_constant, learning_rate=self.learning_rate)
        if not self.confidence >= 0:
            raise ArgumentError("confidence", repr(self.confidence), accepted="a number >= 0", hint="0 is any success.")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        from art.attacks.evasion import CarliniL2Method

        check_clip("art:cw-l2", ball, "tanh space is made of it")
        arguments = {
            "max_iter": self.steps,
            "binary_search_steps": self.searches,
            "initial_const": self.first_constant,
            "learning_rate": self.learning_rate,
            "confidence": self.confidence,
        }
        view = stretched(model, x, ball)
        found = run(
            lambda eps: Plan(CarliniL2Method, arguments),
            view.model, view.x, y, view.ball, targeted=targeted, name="art:cw-l2", sparing=True,
        )  # fmt: skip
        return ball.project(view.back(found), x)
