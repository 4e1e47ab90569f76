"""Points of a ball at which single logits are large or small: what bounds must contain."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robust_plugins.adapters.lirpa.failures import out_of_memory
from robust_plugins.balls import Ball

_STEPS = (2.0, 1.0, 0.5, 0.25)
_CORNERS = 16
_MOST = 16
"""Inputs run at a time."""

Run = Callable[[Tensor], Tensor]


def batched(model: nn.Module, size: int | None) -> Run:
    """`model` on batches of any length, where it may run on batches of `size` alone; never on the caller's tensor."""

    def run(z: Tensor) -> Tensor:
        return torch.cat([model(part.clone()) for part in z.split(size or _MOST)])

    return run


def extremes(run: Run, x: Tensor, ball: Ball, spec: Tensor, generator: torch.Generator) -> Tensor:
    """Points of the ball around each sample, (points, *x.shape): corners, and ascents of each row of `spec` both ways.

    The ascents go along signs of gradients or, in a model that cuts or breaks them, along signs estimated from the
    values at the corners. `run` gives the logits of a batch whose length is a multiple of that of `x`.
    """
    corners = ball.sample(x, _CORNERS, generator, draw="corner")
    uniform = ball.sample(x, 1, generator)
    many = 2 * spec.shape[1]
    goals = torch.cat((spec, -spec), 1).transpose(0, 1)  # (many, batch, classes)
    found = [corners, uniform]
    starts = x.expand(many, *x.shape)
    z = starts
    for step in _STEPS:
        gradient = _gradient(run, z, goals)
        if gradient is None:
            found.append(_project(ball, x, x + _steepest(ball, x, _fitted(run, x, corners, goals))))
            break
        z = _project(ball, x, z + step * _steepest(ball, x, gradient))
        found.append(z)
    return torch.cat(found)


def values(run: Run, points: Tensor) -> Tensor:
    """The logits at `points`: (points, batch, classes)."""
    return run(points.flatten(0, 1)).view(*points.shape[:2], -1)


def step_up(run: Run, x: Tensor, ball: Ball, goal: Tensor) -> Tensor:
    """One gradient step from each sample to the border of its ball, along which `goal` times the logits rises."""
    gradient = _gradient(run, x.unsqueeze(0), goal.unsqueeze(0))
    if gradient is None:
        return ball.sample(x, 1, torch.Generator().manual_seed(len(x)), draw="corner")[0]
    return ball.project(x + ball.steepest(gradient[0]), x)


def _project(ball: Ball, x: Tensor, z: Tensor) -> Tensor:
    return torch.stack([ball.project(one, x) for one in z])


def _steepest(ball: Ball, x: Tensor, gradients: Tensor) -> Tensor:
    return torch.stack([ball.steepest(one) for one in gradients])


def _gradient(run: Run, z: Tensor, goals: Tensor) -> Tensor | None:
    """The gradients of the goals by the inputs; None where there are none."""
    try:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            value = (goals * values(run, leaf)).sum()
            if not value.requires_grad:
                return None
            (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
    except Exception as error:  # operations in place on what the gradient needs, integers, operators without one
        if out_of_memory(error):
            raise
        return None
    if gradient is None or not bool(gradient.nan_to_num().any()):
        return None
    return gradient.nan_to_num()


def _fitted(run: Run, x: Tensor, corners: Tensor, goals: Tensor) -> Tensor:
    """The directions in which the goals rise over the corners."""
    changes = (values(run, corners) - run(x)).nan_to_num()
    rise = torch.einsum("gbc,pbc->gbp", goals, changes)
    return torch.einsum("gbp,pb...->gb...", rise, corners - x)
