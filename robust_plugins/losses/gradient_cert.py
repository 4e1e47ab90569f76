"""`GradientCertLoss`: trains networks whose explanations are certifiable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError
from robust_plugins.explanations import ExplanationCertifier, explanation_certifier
from robust_plugins.explanations.explained import Of


@dataclass(frozen=True, kw_only=True)
class GradientCertLoss:
    """A term to add to any loss: `alpha` times the width of the bounds on the explanation over the ball.

        loss = F.cross_entropy(model(x), y) + penalty(model, x, y, epoch=epoch)

    - `ball`, `of`, `weights`: what is bounded, and over what, as for `rp.ExplanationCertifier`. The term is the
      Euclidean norm of a sample's widths, averaged over the batch. The logit's gradient (default) costs less accuracy
      than the loss's.
    - `schedule`: from the epoch to a factor in [0, 1] of `ball.eps` and of `weights`, such as `rp.losses.Ramp`; None
      trains at full strength from the start, which can collapse to a constant network.
    - `certifier`: whose bounds; the cheapest ones, by name or the component itself. A network that is trained on them
      can be certified with tighter ones.

    Wicker et al. 2022, "Robust explanation constraints for neural networks", section 5.
    """

    ball: Ball
    alpha: float = 1.0
    weights: float = 0.0
    of: Of = "logit"
    schedule: Callable[[float], float] | None = None
    certifier: str | ExplanationCertifier = "interval:ibp"

    def __post_init__(self) -> None:
        if not self.alpha >= 0:
            raise ArgumentError("alpha", self.alpha, accepted="a number >= 0", hint="0 switches the term off.")

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
        if self.schedule is None:
            factor = 1.0
        elif epoch is None:
            raise ArgumentError(
                "epoch", None, accepted="the present epoch", hint="The schedule needs it: penalty(..., epoch=epoch)."
            )
        else:
            factor = self.schedule(epoch)
        if not len(x):
            return x.sum()
        radii = self.ball.radii
        eps = tuple(factor * r for r in radii) if isinstance(radii, tuple) else factor * radii
        certifier = explanation_certifier(self.certifier) if isinstance(self.certifier, str) else self.certifier
        bounds = certifier.bounds(model, x, y, replace(self.ball, eps=eps), of=self.of, weights=factor * self.weights)
        norms: Tensor = torch.linalg.vector_norm(bounds.width.flatten(1), dim=1)
        return self.alpha * norms.mean()
