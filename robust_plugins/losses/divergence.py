"""`Diverging`: the inputs at which the model's decision is furthest from that on the clean ones, for TRADES."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.evaluation import evaluating
from robust_plugins.losses.batch import Batch, WorstCase

JITTER = 0.001
"""The standard deviation of the start: at `x` itself the divergence has no gradient."""


@dataclass(frozen=True, kw_only=True)
class Diverging(WorstCase):
    """The logits at the x' that ascent on `KL(f(x) || f(x'))` finds: labels play no part.

    `steps` of `step` times the ball's steepest step, each projected onto the ball, from `x + N(0, 0.001^2)`. Zhang et
    al. 2019, "Theoretically principled trade-off between robustness and accuracy", algorithm 1; the default step is
    that of its training on CIFAR-10, 0.007 of 0.031.
    """

    steps: int = 10
    step: float = 0.007 / 0.031

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ArgumentError("steps", self.steps, accepted="an integer of at least 1", hint="Take one or more.")
        if not 0 < self.step < math.inf:
            raise ArgumentError("step", self.step, accepted="a finite number above 0", hint="It is in units of eps.")

    def outputs(self, batch: Batch) -> Float[Tensor, "batch classes"]:  # noqa: D102 (inherited)
        if batch.continuous:
            raise ArgumentError(
                "y", f"of {batch.y.dtype}, with a divergence", accepted="classes", hint="Use a certifier for numbers."
            )
        return batch.at(self._inputs(batch))

    def _inputs(self, batch: Batch) -> Tensor:
        x, ball, model = batch.x.detach(), batch.ball, batch.model
        z = ball.project(x + JITTER * torch.randn_like(x), x)
        with evaluating(model, freeze=True), torch.enable_grad():
            clean = model(x).log_softmax(1).detach()
            for _ in range(self.steps):
                z.requires_grad_()
                divergence = F.kl_div(model(z).log_softmax(1), clean, reduction="sum", log_target=True)
                (up,) = torch.autograd.grad(divergence, z)
                z = ball.project(z.detach() + self.step * ball.steepest(up), x)
        return z
