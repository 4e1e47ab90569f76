"""Steps up an objective that stay in the ball and its clip range."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from robust_plugins.balls import L1, Ball, Linf
from robust_plugins.decisions.attack import undifferentiable
from robust_plugins.decisions.attacks.best import Best
from robust_plugins.decisions.attacks.objectives import Objective
from robust_plugins.decisions.attacks.sets import farthest, greedy, nearest

Size = float | Tensor
"""The length of a step in units of eps: a number, or one per sample, shaped (batch, 1, ...)."""

Move = Callable[[Tensor, Tensor, Size], Tensor]
"""From an iterate, the gradient there and the length of the step, to the next iterate."""


def slope(model: nn.Module, z: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of each sample's objective at `z`, with the logits and the values (batch,) there.

    Raises ArgumentError where the model's logits are not differentiable in its input.
    """
    z = z.detach().requires_grad_()
    logits = model(z)
    if not logits.requires_grad:
        raise undifferentiable()
    value = objective(logits)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    return gradient, logits.detach(), value.detach()


def moves(ball: Ball, x: Tensor) -> Move:
    """The steepest step of the given length within the ball around `x` and its clip range.

    On L-infinity along the signs; on L2 along the gradient; on L1 along the coordinates of the largest slopes, each as
    far as its range goes. What leaves the ball is projected. NaN moves nothing.
    """
    if isinstance(ball, Linf):
        box = ball.box(x)
        eps: Size = ball.eps_for(x) if isinstance(ball.radii, tuple) else ball.radii

        def signed(z: Tensor, gradient: Tensor, size: Size) -> Tensor:
            return torch.sign(gradient).mul_(eps * size).add_(z).clamp_(box.lower, box.upper)

        return signed
    if isinstance(ball, L1):
        reach, radius = ball.box(x), ball.eps_for(x)

        def sparse(z: Tensor, gradient: Tensor, size: Size) -> Tensor:
            slopes = gradient.nan_to_num(0.0)
            room = torch.where(slopes > 0, reach.upper - z, z - reach.lower).clamp(min=0)
            step = greedy(slopes.flatten(1), room.flatten(1), (radius * size).flatten(1)).view_as(z)
            return nearest(ball, z + step * slopes.sign(), x)

        return sparse

    def straight(z: Tensor, gradient: Tensor, size: Size) -> Tensor:
        return nearest(ball, z + size * ball.steepest(gradient.nan_to_num(0.0)), x)

    return straight


def blends(ball: Ball, x: Tensor) -> Move:
    """The step of Frank and Wolfe: so large a part of the way to the farthest point of the set along the gradient.

    It never leaves the set, and a step of size 1 solves a linear model.
    """
    return lambda z, gradient, size: z + size * (farthest(ball, gradient, x) - z)


def ascend(
    model: nn.Module, objective: Objective, start: Tensor, sizes: Iterable[Size], move: Move, best: Best | None
) -> Tensor:
    """The last iterate of as many steps as there are `sizes`; every iterate is offered to `best`."""
    z = start
    for size in sizes:
        gradient, logits, value = slope(model, z, objective)
        if best is not None:
            best.offer(z, logits, value if objective is best.objective else None)
        z = move(z, gradient, size)
    if best is not None:
        with torch.no_grad():
            best.offer(z, model(z))
    return z
