"""`GradientCertLoss`: trains networks whose explanations are certifiable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError
from robust_plugins.explanations import ExplanationCertifier, explanation_certifier
from robust_plugins.explanations.explained import Of
from robust_plugins.harness.parameters import check_fields
from robust_plugins.losses.batch import Batch
from robust_plugins.losses.refused import check_gradients
from robust_plugins.losses.regularisers import Regulariser, classes_of


@dataclass(frozen=True, kw_only=True)
class GradientCertLoss(Regulariser):
    """A term to add to any loss: `alpha` times the width of the bounds on the explanation over the ball.

        loss = rp.recipe("standard", regularisers=[penalty])                           # for rp.fit
        value = F.cross_entropy(model(x), y) + penalty(model, x, y, epoch=epoch)       # in a loop of your own

    - `ball`, `of`: what is bounded, and over what, as for `rp.ExplanationCertifier`. The term is the Euclidean norm of
      a sample's widths, averaged over the batch. The logit's gradient (default) costs less accuracy than the loss's.
    - `radius`: how far every parameter may be off besides, relative to its size.
    - `schedule`: from the epoch to a factor in [0, 1] of `ball.eps` and of `radius`, such as `rp.Ramp`. None takes that
      of the mixed loss whose regulariser it is; on its own, and where that has none, it is at full strength from the
      start, which can collapse to a constant network.
    - `certifier`: whose bounds; the cheapest ones, by name or the component itself. A network that is trained on them
      can be certified with tighter ones.

    Wicker et al. 2022, "Robust explanation constraints for neural networks", section 5.
    """

    ball: Ball
    alpha: float = 1.0
    radius: float = 0.0
    of: Of = "logit"
    schedule: Callable[[float], float] | None = None
    certifier: str | ExplanationCertifier = "interval:ibp"

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.alpha < math.inf:
            raise ArgumentError("alpha", self.alpha, accepted="a finite number >= 0", hint="0 switches the term off.")
        if not 0 <= self.radius < math.inf:
            raise ArgumentError(
                "radius", self.radius, accepted="a finite number >= 0", hint="0 keeps parameters fixed."
            )

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        y: Int[Tensor, " batch"],
        *,
        epoch: float | None = None,
    ) -> Float[Tensor, ""]:
        """The term for one batch, differentiable in the model's parameters; 0 for an empty one.

        The bounds hold in evaluation mode; the model's mode is left as found. `epoch`, which may be a fraction, is
        what the schedule asks for. Raises ArgumentError where there is a schedule and no epoch, and as the certifier
        does.
        """
        check_gradients()
        if self.schedule is None:
            factor = 1.0
        elif epoch is None:
            raise ArgumentError(
                "epoch", None, accepted="the present epoch", hint="The schedule needs it: call with epoch=epoch."
            )
        else:
            factor = self.schedule(epoch)
        return self._width(model, x, y, factor)

    def penalty(self, batch: Batch) -> Float[Tensor, ""]:
        """The term for one batch of a mixed loss. Batch normalisation uses the statistics of the clean batch."""
        y = classes_of(batch, self)
        factor = batch.factor if self.schedule is None else self.schedule(batch.epoch)
        with batch.bounding(history=False):
            return self._width(batch.model, batch.x, y, factor)

    def _width(self, model: nn.Module, x: Tensor, y: Tensor, factor: float) -> Tensor:
        if not len(x):
            return x.sum()
        ball = self.ball.scaled(factor)
        certifier = explanation_certifier(self.certifier) if isinstance(self.certifier, str) else self.certifier
        with torch.autocast(x.device.type, enabled=False):  # bounds in half precision would bound nothing
            widths = certifier.widths(model, x, y, ball, of=self.of, radius=factor * self.radius)
            norms: Tensor = torch.linalg.vector_norm(widths.flatten(1), dim=1)
        return self.alpha * norms.mean()
