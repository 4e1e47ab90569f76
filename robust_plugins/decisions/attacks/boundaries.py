"""Which class boundaries are closest to a sample, by the model's linearisation there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.balls import L1, Ball, Box, Linf
from robust_plugins.decisions.attacks.ascent import slope
from robust_plugins.decisions.attacks.objectives import Objective, objective, towards

CANDIDATES = 10
"""At most so many classes are linearised: those with the largest logits."""


def goals(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, count: int, targeted: bool) -> list[Tensor | None]:
    """The classes that an attack of smallest norm goes towards, one run after the other; None for any but `y`.

    The margin's gradient leads to the class of the second largest logit, whose boundary need not be the closest. The
    `count` others, each of shape (batch,), are those whose boundaries are closest in the linearised model, whose order
    is DeepFool's (Moosavi-Dezfooli et al. 2016, equation 8). None but None with `targeted`, where `y` is the class.
    """
    if targeted or not count:
        return [None]
    with torch.no_grad():
        others = model(x).scatter(1, y.unsqueeze(1), -torch.inf)
    candidates = others.topk(min(max(CANDIDATES, count), others.shape[1] - 1), dim=1).indices
    if candidates.shape[1] == 1:
        return [None]
    distances = []
    for to in candidates.unbind(1):
        gradient, _, value = slope(model, x, towards("margin", y, to))
        distances.append(linear_distance(ball, gradient, -value, x))
    order = torch.stack(distances, 1).nan_to_num(torch.inf, posinf=torch.inf).argsort(dim=1, stable=True)
    return [None, *candidates.gather(1, order)[:, :count].unbind(1)]


def margin(y: Tensor, to: Tensor | None, *, targeted: bool) -> Objective:
    """The objective that leads from `y` towards the class `to`, or to any other; with `targeted` to `y` itself."""
    return objective("margin", y, targeted=targeted) if to is None else towards("margin", y, to)


def linear_distance(
    ball: Ball, gradient: Float[Tensor, "batch *features"], needed: Float[Tensor, " batch"], x: Tensor
) -> Float[Tensor, " batch"]:
    """The distance from `x`, in the ball's norm and its clip range, at which a linear function has risen by `needed`.

    Zero where nothing is needed, inf where the range does not allow it. Exact for `Linf`, `L2` and `L1`; of a `Box`
    within the ball around `x`, where features whose radius is infinite take the whole of `eps` for their range.
    """
    flat = gradient.nan_to_num(0.0).flatten(1)
    slopes, start = flat.abs(), x.flatten(1)
    room = torch.full_like(slopes, torch.inf)
    if isinstance(ball, Box):
        box = ball.box(x)
        room = torch.where(flat > 0, box.upper.flatten(1) - start, start - box.lower.flatten(1)).clamp(min=0)
    elif ball.clip is not None:
        room = torch.where(flat > 0, ball.clip[1] - start, start - ball.clip[0]).clamp(min=0)
    room = torch.where(slopes > 0, room, 0.0)
    if not slopes.shape[1]:
        return torch.where(needed > 0, torch.inf, 0.0).to(x)
    needed = needed.clamp(min=0).unsqueeze(1)
    if isinstance(ball, L1):  # the steepest coordinates first, each as far as it has room
        order = slopes.argsort(dim=1, descending=True)
        slopes, room = slopes.gather(1, order), room.gather(1, order)
        gains = _products(slopes, room).cumsum(1)
        last = (gains < needed).sum(1, keepdim=True)
        before, length = (F.pad(total, (1, 0)).gather(1, last) for total in (gains, room.cumsum(1)))
        rest = (needed - before) / F.pad(slopes, (0, 1)).gather(1, last)
        return torch.where(needed > 0, length + rest, 0.0).squeeze(1)
    # All coordinates at once, at the speed that the norm gives them, until each has no room left.
    speed = torch.ones_like(slopes) if isinstance(ball, Linf) else slopes
    if isinstance(ball, Box):
        eps = ball.radii_for(x).unsqueeze(1)
        speed = ball.eps_for(x).flatten(1) / torch.where(eps > 0, eps, 1)
    moving = (slopes > 0) & (speed > 0)
    stops, order = torch.where(moving, room / torch.where(moving, speed, 1), 0.0).sort(dim=1)
    weights = (slopes * speed).gather(1, order)
    left = weights.flip(1).cumsum(1).flip(1)  # of coordinates that move until the stop at least
    gains = _products(weights, stops).cumsum(1)
    last = (gains + _products(F.pad(left[:, 1:], (0, 1)), stops) < needed).sum(1, keepdim=True)
    before = F.pad(gains, (1, 0)).gather(1, last)
    time = torch.where(needed > 0, (needed - before) / F.pad(left, (0, 1)).gather(1, last), 0.0)
    if isinstance(ball, Linf | Box):
        return time.squeeze(1)
    moved = torch.minimum(_products(speed, time.expand_as(speed)), room)
    length = torch.linalg.vector_norm(moved, dim=1)
    return torch.where(time.squeeze(1).isfinite(), length, torch.inf)


def _products(slopes: Tensor, lengths: Tensor) -> Tensor:
    """The products, zero for coordinates that do not rise, however far they go."""
    return torch.where(slopes > 0, slopes * lengths, 0.0)
