"""Our certificates for estimators of ART, in the words of ART's certified estimators and of its metrics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust_plugins.adapters.art.arrays import classes_in, moved_to
from robust_plugins.adapters.art.model import module_of
from robust_plugins.balls import Ball
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.decisions.results import Verdict
from robust_plugins.errors import ComponentError, UnsupportedModelError
from robust_plugins.harness.arguments import decided
from robust_plugins.harness.bisection import Bisection
from robust_plugins.harness.call import calling


@dataclass(frozen=True, kw_only=True, eq=False)
class Certified:
    """A certifier with an estimator of ART: takes and gives numpy arrays; made by `to_art`."""

    estimator: Any
    certifier: Certifier
    ball: Ball

    def certify(self, x: np.ndarray, *, tolerance: float = 0.01, calls: int = 12) -> tuple[np.ndarray, np.ndarray]:
        """The decisions and a radius for each, up to which no input changes it, as ART's randomised smoothing gives.

        Unlike there the radius is proved, with certainty. It is the largest that the certifier proved in a bisection
        between zero and the ball's radius, which ends within `tolerance` of the latter, or after `calls` calls; zero
        where nothing was proved. What is proved holds of the estimator's own decisions, right or wrong.
        """
        model, inputs, y = self._asked(x)
        largest = self.ball.radii_for(inputs)
        search = Bisection(largest)
        for _ in range(calls):
            at, radii = search.next(tolerance * largest)
            if not len(at):
                break
            around = replace(self.ball, eps=tuple(radii.tolist()))
            proved = self._proved(model, inputs[at], y[at], around)
            search.answer(at, radii, ~proved, known=torch.full_like(radii, torch.inf))
        return y.cpu().numpy(), search.low.cpu().numpy()

    def adversarial_accuracy(self, x: np.ndarray, y: np.ndarray | None = None) -> float:
        """The value below which ART's `adversarial_accuracy` of the same samples cannot fall, whatever the attack.

        As there: without `y` the share of decisions that stay; with `y` that of the right ones. It holds for attacks
        that stay in the ball and in its clip range. NaN where there is no right decision. Both methods raise
        UnsupportedModelError where the certifier cannot bound the network, and ComponentError where it failed.
        """
        model, inputs, decisions = self._asked(x)
        proved = self._proved(model, inputs, decisions, self.ball)
        right = torch.ones_like(proved)
        if y is not None:
            right = classes_in(y, self.estimator.nb_classes).to(decisions.device) == decisions
        return int((proved & right).sum()) / int(right.sum()) if bool(right.any()) else float("nan")

    def _proved(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        """Where the decision is proved. Raises where the certifier has no answer at all: that is no zero."""
        certificate = self.certifier(model, x, y, ball)
        for verdict, message in zip(certificate.verdicts, certificate.messages, strict=True):
            if verdict is Verdict.UNSUPPORTED:
                raise UnsupportedModelError(message)
            if verdict is Verdict.ERROR:
                raise ComponentError(message)
        return certificate.certified

    def _asked(self, x: np.ndarray) -> tuple[nn.Module, Tensor, Tensor]:
        model = module_of(self.estimator, self.ball)
        assert model is not None  # to_art has seen to it
        inputs = moved_to(x, model)
        with torch.no_grad(), calling(model, inputs, self.ball) as call:
            _, logits = decided(call.model, call.x, size=self.certifier.batch_size)
        return model, inputs, logits.argmax(1)
