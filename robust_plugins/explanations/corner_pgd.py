"""`gradient:corner-pgd`: random corners and restarts, with projected gradient ascent on smooth surrogates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.explanations.attack import ExplanationAttack
from robust_plugins.explanations.surrogate import smoothed
from robust_plugins.explanations.task import Task, Weights, chosen


@dataclass(frozen=True, kw_only=True)
class CornerPGD(ExplanationAttack):
    """Ascends from the best of many corners, then from random points, on softplus surrogates of the network.

    - `corners` >= 1: random corners of the ball and of the weights' intervals; from the best of them
    - `steps` >= 1 of steepest ascent in the ball's norm are taken on the surrogate of each sharpness in `betas`: the
      first half of size eps / 4, the second of eps / 20.
    - `restarts` >= 0: ascents from random points of the ball, with
    - `rung` >= 1 steps on each surrogate of the `ladder`, from smooth to sharp; every second restart takes one four
      times as sharp, since how sharp is best depends on eps and on the weights.

    Every corner and every iterate is scored on the network itself, and the best is kept. The explanation of a ReLU
    network is piecewise constant, so that ascent on the network itself would not move: Dombrowski et al. 2019,
    "Explanations can be manipulated and geometry is to blame", section 3.

    The cost, in gradients of the network: `corners`, and about 4 for each step: 420 and 1280 for the first ascent and
    the restarts of the default. As restarts run side by side, small networks take about twice the time of
    `restarts=0`, which is the same search without them, and never better for the same seed.
    """

    corners: int = 100
    betas: tuple[float, ...] = (10.0, 50.0)
    steps: int = 40
    restarts: int = 8
    ladder: tuple[float, ...] = (5.0, 15.0, 40.0, 120.0)
    rung: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("corners", 1), ("steps", 1), ("restarts", 0), ("rung", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ArgumentError(
                    name, repr(value), accepted=f"an integer of at least {least}", hint="It counts evaluations."
                )
        for name, betas, example in (("betas", self.betas, (10.0, 50.0)), ("ladder", self.ladder, (5.0, 15.0))):
            if not all(isinstance(beta, int | float) and 0 < beta < math.inf for beta in betas):
                raise ArgumentError(
                    name, repr(betas), accepted="finite numbers above 0", hint=f"For example {example}."
                )

    def search(self, task: Task) -> None:  # noqa: D102 (inherited)
        z, weights = self._best_corner(task)
        if self.betas:
            task.ascents.append(_climb(task, z, weights, self.betas, self.steps))
        for sharper in range(2):
            ladder = [beta * 4**sharper for beta in self.ladder]
            count = (self.restarts + 1 - sharper) // 2
            # Weights of every sample's own fill the memory already.
            at_once = 1 if task.box is not None else max(1, count)
            for _ in range(count // at_once):
                side = task.repeated(at_once)
                start = side.ball.sample(side.x, 1)[0]
                reached = _climb(side, start, _corner_of(side), ladder, self.rung)
                task.ascents += reached.view(at_once, -1).unbind()
                task.take(side, at_once)

    def _best_corner(self, task: Task) -> tuple[Tensor, Weights | None]:
        """Not `task.best`: at x itself, which may be best so far, the deviation has no gradient."""
        top = torch.full_like(task.best_score, -torch.inf)
        best, best_weights = task.x, task.own_weights()
        for _ in range(self.corners):
            z = task.ball.sample(task.x, 1, draw="corner")[0]
            weights = _corner_of(task)
            score = task.offer(z, weights)
            better = score > top
            top, best = torch.where(better, score, top), chosen(better, z, best)
            if weights is not None and best_weights is not None:
                best_weights = {name: chosen(better, w, best_weights[name]) for name, w in weights.items()}
        return best, best_weights


def _corner_of(task: Task) -> Weights | None:
    if task.box is None:
        return None
    size = (len(task.x),)
    return {
        name: torch.where(torch.rand(size + box.shape, device=box.device) < 0.5, box.lower, box.upper)
        for name, box in task.box.items()
    }


def _climb(task: Task, z: Tensor, weights: Weights | None, betas: Sequence[float], steps: int) -> Tensor:
    """Ascends on one surrogate after the other, and offers every iterate; returns the best objective on the way."""
    top = task.offer(z, weights)
    for beta in betas:
        with smoothed(beta):
            reference = task.gradient(task.x, task.own_weights())
        for step in range(steps):
            rate = 0.25 if step < steps / 2 else 0.05
            z, weights = _ascended(task, z, weights, reference, beta, rate)
            top = torch.maximum(top, task.offer(z, weights))
    return top


def _ascended(
    task: Task, z: Tensor, weights: Weights | None, reference: Tensor, beta: float, rate: float
) -> tuple[Tensor, Weights | None]:
    """One step up the objective of the surrogate, projected."""
    z = z.detach().requires_grad_()
    own = None if weights is None else {name: w.detach().requires_grad_() for name, w in weights.items()}
    with smoothed(beta):
        height = task.objective(task.gradient(z, own, create_graph=True), reference).sum()
    leaves = [z, *(own or {}).values()]
    if height.requires_grad:
        slopes = torch.autograd.grad(height, leaves, materialize_grads=True)
    else:  # a linear model: its explanation is the same everywhere
        slopes = tuple(torch.zeros_like(leaf) for leaf in leaves)
    with torch.no_grad():
        z = task.ball.project(z + rate * task.ball.steepest(slopes[0]), task.x)
        if own is None or task.box is None:
            return z, None
        moved = {
            name: w + rate * task.box[name].radius * slope.sign()
            for (name, w), slope in zip(own.items(), slopes[1:], strict=True)
        }
        return z, task.inside(moved)
