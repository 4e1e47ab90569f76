"""Projected gradient ascent on the loss, by ART: `PGD`, and its special cases `BIM` and `FGSM`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.attacks.best import Best
from robust_plugins.decisions.attacks.objectives import Loss, objective
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.parameters import check_choice

Start = Literal["uniform", "gaussian", "none"]


@dataclass(frozen=True, kw_only=True)
class FGSM(Attack):
    """One step of size eps along the sign of the loss's gradient, for L-infinity; for L2 along the gradient itself,
    for L1 along its largest coordinate (nowhere, if that one is at the end of the clip range already).

    Goodfellow et al. 2015, "Explaining and harnessing adversarial examples", section 4. Targeted, the step goes down
    the loss of the target. Raises ArgumentError for a model that is not differentiable in its input.
    """

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        from robust_plugins.adapters.art.steps import ascent

        if _is_point(ball):
            return x
        following, _ = ascent(model, x, y, ball, step_size=ball.radii, targeted=targeted)(x)
        return following


@dataclass(frozen=True, kw_only=True)
class BIM(Attack):
    """The basic iterative method: `PGD` that starts at `x` itself, with the same step size where none is given.

    Kurakin et al. 2017, "Adversarial examples in the physical world", section 2.2, on L-infinity. `steps` >= 1;
    `step_size` > 0 in input units. Each sample keeps its best iterate: success first, then loss.
    """

    steps: int = 40
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ascent(self.steps, self.step_size)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        return _iterate(model, x, y, ball, [x], self.steps, self.step_size, targeted)


@dataclass(frozen=True, kw_only=True)
class PGD(Attack):
    """Projected gradient descent from random starts: `steps` of signed gradients, each projected onto the ball.

    Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks", section 2.1.

    - `steps` >= 1, per restart.
    - `step_size` > 0 in input units, or `relative_step` > 0 in units of each sample's eps. Without either,
      `2.5 * eps / steps`: every start can reach every point of the ball, and can then move along its boundary
      (section 5 there).
    - `restarts` >= 1, each from a new random start.
    - `start`: `"uniform"` over the ball; `"gaussian"`, `x + N(0, eps)` projected; `"none"`, at `x`.
    - `best`: each sample keeps the best iterate of all restarts: success first, then loss. False is the last iterate,
      as in the papers on training, for one pass of the model less; with one restart only.
    - `loss`: `"cross_entropy"`, which saturates on large logits; `"margin"` or `"dlr"`, which ART itself does not have.

    L2 steps go along the normalised gradient and L1 steps along its largest coordinate, as ART has them. On L-infinity
    the iterates are those of ART to the bit, for the same start and batch. Raises ArgumentError for unusable parameters
    and for a model that is not differentiable in its input.
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
        _check_ascent(self.steps, self.step_size)
        if self.relative_step is not None and not 0 < self.relative_step < math.inf:
            raise ArgumentError(
                "relative_step", repr(self.relative_step), accepted="a finite number above 0 in units of eps, or None",
                hint="None is 2.5 / steps.",
            )  # fmt: skip
        if self.relative_step is not None and self.step_size is not None:
            raise ArgumentError(
                "relative_step", f"{self.relative_step} with step_size={self.step_size}", accepted="one of the two",
                hint="step_size is in input units, relative_step in units of eps.",
            )  # fmt: skip
        _check_count("restarts", self.restarts)
        check_choice("loss", self.loss, get_args(Loss), hint="'margin' never saturates.")
        if self.start not in get_args(Start):
            raise ArgumentError(
                "start", repr(self.start), accepted=", ".join(map(repr, get_args(Start))), hint="Choose one of them."
            )
        if self.start == "none" and self.restarts > 1:
            raise ArgumentError(
                "restarts",
                f"{self.restarts} with start='none'",
                accepted="1, or a random start",
                hint="Every restart would be the same: use start='uniform'.",
            )
        if not self.best and self.restarts > 1:
            raise ArgumentError(
                "restarts", f"{self.restarts} with best=False", accepted="1, or best=True",
                hint="The last iterate of the last restart would be all that counts.",
            )  # fmt: skip

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        draw = self.start
        starts = (x if draw == "none" else ball.sample(x, 1, draw=draw)[0] for _ in range(self.restarts))
        size = self.step_size if self.relative_step is None else _times(ball, self.relative_step)
        return _iterate(model, x, y, ball, starts, self.steps, size, targeted, best=self.best, loss=self.loss)


def _iterate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    starts: Iterable[Tensor],
    steps: int,
    step_size: float | tuple[float, ...] | None,
    targeted: bool,
    *,
    best: bool = True,
    loss: Loss = "cross_entropy",
) -> Tensor:
    """The best iterate of each sample from all starts, or the last one of all."""
    from robust_plugins.adapters.art.steps import ascent

    if _is_point(ball):
        return x
    size = _times(ball, 2.5 / steps) if step_size is None else step_size
    step = ascent(model, x, y, ball, step_size=size, targeted=targeted, loss=loss)
    found, z = Best(x, y, objective(loss, y, targeted=targeted), targeted=targeted), x
    for start in starts:
        z = start
        for _ in range(steps):
            following, logits = step(z)
            if best:
                found.offer(z, logits)
            z = following
        if best:
            with torch.no_grad():
                found.offer(z, model(z))
    return found.x if best else z


def _times(ball: Ball, factor: float) -> float | tuple[float, ...]:
    """A step for each radius."""
    return tuple(factor * eps for eps in ball.radii) if isinstance(ball.radii, tuple) else factor * ball.radii


def _is_point(ball: Ball) -> bool:
    # ART takes no step of size zero.
    return not any(ball.radii) if isinstance(ball.radii, tuple) else ball.radii == 0


def _check_ascent(steps: int, step_size: float | None) -> None:
    _check_count("steps", steps)
    if step_size is not None and not 0 < step_size < math.inf:
        raise ArgumentError(
            "step_size",
            repr(step_size),
            accepted="a finite number above 0 in input units, or None",
            hint="None is 2.5 * eps / steps.",
        )


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ArgumentError(name, repr(value), accepted="an integer of at least 1", hint="Take one or more.")
