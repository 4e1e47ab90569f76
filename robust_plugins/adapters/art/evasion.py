"""Our attacks as evasion attacks of ART. Imports ART: import this module inside functions only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from art.attacks import EvasionAttack
from art.estimators import BaseEstimator
from art.estimators.classification.classifier import ClassifierMixin
from torch import Tensor

from robust_plugins.adapters.art.arrays import classes_in, drawn, moved_to
from robust_plugins.adapters.art.model import module_of
from robust_plugins.balls import L1, L2, Ball, Linf
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.attacks import Minimal
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.arguments import decided
from robust_plugins.harness.call import calling


class Evasion(EvasionAttack):  # type: ignore[misc] # ART is untyped
    """An attack of this package, of a plugin, or of any adapter, where ART wants one of its own; made by `to_art`.

    `eps`, `norm`, `targeted`, `minimal`, `ball` and `seed` can be read and set, by `set_params` as well.
    """

    attack_params = [*EvasionAttack.attack_params, "ball", "eps", "norm", "targeted", "minimal", "seed"]  # noqa: RUF012
    _estimator_requirements = (BaseEstimator, ClassifierMixin)

    def __init__(
        self,
        estimator: Any,
        *,
        attack: Attack,
        ball: Ball,
        targeted: bool = False,
        minimal: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(estimator=estimator)
        self.attack, self.ball, self.targeted, self.minimal, self.seed = attack, ball, targeted, minimal, seed
        self._check_params()

    @property
    def eps(self) -> float | tuple[float, ...]:
        """The ball's radius, or one per sample."""
        return self.ball.radii

    @eps.setter
    def eps(self, eps: float) -> None:
        self.ball = replace(self.ball, eps=eps)

    @property
    def norm(self) -> float:
        """The ball's norm: inf, 2 or 1. Setting another one keeps radius and clip range."""
        return self.ball.norm

    @norm.setter
    def norm(self, norm: float | str) -> None:
        kinds: dict[float, type[Ball]] = {np.inf: Linf, 2: L2, 1: L1}
        number = float(norm) if norm in (1, 2, np.inf, "inf") else 0.0
        if number not in kinds or type(self.ball) not in kinds.values():
            raise ArgumentError("norm", repr(norm), accepted="inf, 2 or 1, for a ball that is Linf, L2 or L1",
                                hint="Give to_art the ball instead.")  # fmt: skip
        self.ball = kinds[number](eps=self.ball.radii, clip=self.ball.clip)

    def _check_params(self) -> None:
        super()._check_params()
        if not hasattr(self, "seed"):  # ART checks before there is anything
            return
        for name in ("targeted", "minimal"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError(name, repr(getattr(self, name)), accepted="True or False", hint="False is usual.")
        module_of(self.estimator, self.ball)  # raises where it cannot be a module, or has another clip range

    def generate(self, x: np.ndarray, y: np.ndarray | None = None, **kwargs: Any) -> np.ndarray:
        """Adversarial examples for `x`, in ART's float32, each inside the ball and its clip range.

        `y`: classes or one-hot rows, to leave or, if `targeted`, to reach. Without it the estimator's own decisions are
        to be left, as in ART. Where nothing worse than a sample was found, the sample itself comes back. Without a
        `seed` one is drawn from numpy's global state, on which ART's own attacks depend. Raises ArgumentError for
        further arguments, such as `mask`.
        """
        for name, value in kwargs.items():
            if value is not None:
                raise ArgumentError(name, "given", accepted="x and y alone", hint=f"Leave `{name}` out; for features "
                                    "that must stay, give to_art an rp.Box with immutable ones.")  # fmt: skip
        model = module_of(self.estimator, self.ball)
        assert model is not None  # _check_params has seen to it
        inputs = moved_to(x, model)
        if not len(inputs):
            return np.array(x, dtype=np.float32)
        with torch.no_grad(), calling(model, inputs, self.ball) as call:
            _, logits = decided(call.model, call.x, size=self.attack.batch_size)
        labels = self._labels(y, logits)
        attack = self.attack
        if self.minimal and not attack.nearest:
            attack = Minimal(attack=attack, batch_size=attack.batch_size)
        # What is the true class says nothing about a target, but has to be another one.
        true = (labels + 1) % logits.shape[1] if self.targeted else labels
        target = labels if self.targeted else None
        seed = drawn() if self.seed is None else self.seed
        result = attack(model, inputs, true, self.ball, target=target, seed=seed)
        found: np.ndarray = result.x_adv.float().cpu().numpy()
        return found

    def _labels(self, y: np.ndarray | None, logits: Tensor) -> Tensor:
        if y is not None:
            return classes_in(y, logits.shape[1]).to(logits.device)
        if self.targeted:
            raise ArgumentError("y", None, accepted="the classes to reach", hint="Or set targeted to False.")
        return logits.argmax(1)
