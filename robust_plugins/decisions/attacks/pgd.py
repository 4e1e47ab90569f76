"""`FGSM` and `PGD`: projected gradient ascent on a loss, with the parameters that papers on training state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.attacks.ascent import Size, ascend, moves, slope
from robust_plugins.decisions.attacks.best import Best
from robust_plugins.decisions.attacks.objectives import Loss, objective
from robust_plugins.decisions.attacks.sets import farthest
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.parameters import check_choice, check_count, check_length

Start = Literal["uniform", "gaussian", "none"]


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step to the point of the ball and its clip range that lies farthest along the loss's gradient.

    On L-infinity a step of eps along the sign: Goodfellow et al. 2015, "Explaining and harnessing adversarial
    examples", section 4. On L2 along the gradient, on L1 along its largest coordinates, each as far as its range goes.
    `loss` is `"cross_entropy"`, `"margin"` or `"dlr"`; targeted, the step goes down it. Raises ArgumentError for a
    model that is not differentiable in its input.
    """

    loss: Loss = "cross_entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("loss", self.loss, get_args(Loss), hint="'margin' never saturates.")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        gradient, _, _ = slope(model, x, objective(self.loss, y, targeted=targeted))
        return farthest(ball, gradient, x)


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient ascent on a loss from random starts: `steps` of one length, each kept in the ball.

    Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks", section 2.1.

    - `steps` >= 1, per restart.
    - `step_size` > 0 in input units, or `relative_step` > 0 in units of each sample's eps. Without either,
      `2.5 * eps / steps`: every start can reach every point of the ball, and can then move along its boundary
      (section 5 there).
    - `restarts` >= 1, each from a new random start.
    - `start`: `"uniform"` over the ball; `"gaussian"`, `x + N(0, eps)` projected; `"none"`, at `x`.
    - `best`: each sample keeps the best iterate of all restarts: success first, then loss. False is the last iterate,
      as in the papers on training, for one pass of the model less; with one restart only.
    - `loss`: `"cross_entropy"`, which saturates on large logits, `"margin"` or `"dlr"`.

    Steps go along the signs on L-infinity, along the gradient on L2, and on L1 along the largest coordinates, each as
    far as its range goes; what leaves the ball is projected onto it and its clip range at once. Raises ArgumentError
    for unusable parameters and for a model that is not differentiable in its input.
    """

    steps: int = 40
    step_size: float | None = None
    relative_step: float | None = None
    restarts: int = 1
    start: Start = "uniform"
    best: bool = True
    loss: Loss = "cross_entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        check_choice("start", self.start, get_args(Start), hint="Choose one of them.")
        check_choice("loss", self.loss, get_args(Loss), hint="'margin' never saturates.")
        if self.step_size is not None:
            check_length("step_size", self.step_size, unit="input units", hint="None is 2.5 * eps / steps.")
        if self.relative_step is not None:
            check_length("relative_step", self.relative_step, unit="units of eps", hint="None is 2.5 / steps.")
        if self.relative_step is not None and self.step_size is not None:
            raise ArgumentError(
                "relative_step", f"{self.relative_step} with step_size={self.step_size}", accepted="one of the two",
                hint="step_size is in input units, relative_step in units of eps.",
            )  # fmt: skip
        if self.restarts > 1 and (self.start == "none" or not self.best):
            cause = "start='none'" if self.start == "none" else "best=False"
            raise ArgumentError(
                "restarts", f"{self.restarts} with {cause}", accepted="1, or a random start and best=True",
                hint="Every restart would be the same, or only the last would count.",
            )  # fmt: skip

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        raised = objective(self.loss, y, targeted=targeted)
        best = Best(x, y, raised, targeted=targeted) if self.best else None
        sizes, move, z = [self._size(ball, x)] * self.steps, moves(ball, x), x
        for _ in range(self.restarts):
            z = x if self.start == "none" else ball.sample(x, 1, draw=self.start)[0]
            z = ascend(model, raised, z, sizes, move, best)
        return z if best is None else best.x

    def _size(self, ball: Ball, x: Tensor) -> Size:
        if self.step_size is None:
            return 2.5 / self.steps if self.relative_step is None else self.relative_step
        if not isinstance(ball.radii, tuple):
            return self.step_size / ball.radii if ball.radii else 0.0
        eps = ball.eps_for(x)
        return torch.where(eps > 0, self.step_size / torch.where(eps > 0, eps, 1.0), 0.0)
