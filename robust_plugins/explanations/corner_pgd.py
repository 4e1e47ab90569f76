"""`gradient:corner-pgd`: random corners, then projected gradient ascent on smooth surrogates of the network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.explanations.attack import ExplanationAttack
from robust_plugins.explanations.surrogate import smoothed
from robust_plugins.explanations.task import Task, Weights, chosen


@dataclass(frozen=True, kw_only=True)
class CornerPGD(ExplanationAttack):
    """Draws corners of the ball, and ascends from the best one on softplus surrogates that approach the network.

    - `corners` >= 1: random corners of the ball and of the weights' intervals.
    - `betas`: the sharpness of each surrogate, in this order, above 0; on each of them
    - `steps` >= 1 of steepest ascent in the ball's norm are taken: the first half of size eps / 4, the second of
      eps / 20.

    Every corner and every iterate is scored on the network itself. The explanation of a ReLU network is piecewise
    constant, so that ascent on the network itself would not move: Dombrowski et al. 2019, "Explanations can be
    manipulated and geometry is to blame", section 3.
    """

    corners: int = 100
    betas: tuple[float, ...] = (10.0, 50.0)
    steps: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("corners", self.corners), ("steps", self.steps)):
            if not isinstance(value, int) or value < 1:
                raise ArgumentError(name, repr(value), accepted="an integer of at least 1", hint="Take one or more.")
        if not all(isinstance(beta, int | float) and 0 < beta < math.inf for beta in self.betas):
            raise ArgumentError(
                "betas", repr(self.betas), accepted="finite numbers above 0", hint="For example (10.0, 50.0)."
            )

    def search(self, task: Task) -> None:  # noqa: D102 (inherited)
        z, weights = self._best_corner(task)
        for beta in self.betas:
            with smoothed(beta):
                reference = task.gradient(task.x, task.own_weights())
            for step in range(self.steps):
                rate = 0.25 if step < self.steps / 2 else 0.05
                z, weights = _ascended(task, z, weights, reference, beta, rate)
                task.offer(z, weights)

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
