"""`Square`: a random search for models without gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor, nn

from robust_plugins.balls import L1, L2, Ball, Linf
from robust_plugins.decisions.attack import Attack, Found
from robust_plugins.decisions.attacks.best import Best
from robust_plugins.decisions.attacks.objectives import Loss, objective
from robust_plugins.decisions.attacks.sets import nearest
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.parameters import check_choice, check_count

HALVINGS = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)
"""Queries, of 10,000, from which on the squares have half the area."""

IMAGE = 3
"""The dimensions of one image: channels, rows, columns."""


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random search over squares of the image: it needs logits, no gradients.

    Andriushchenko et al. 2020, "Square attack: a query-efficient black-box adversarial attack via random search",
    algorithm 1 with the proposals of algorithm 2 on L-infinity; on L2 and L1 in the way of algorithm 3, by pyramids:
    what one window has used of the radius, and what is left of it, goes into another. Inputs that are no images of
    shape (channels, rows, columns) count as one row.

    - `queries` >= 1: so many inputs per sample are tried; a sample stops at its first success. `AttackResult.notes`
      says how many it took.
    - `first_area` in (0, 1]: the share of the image that the first squares cover; it halves along the paper's schedule
      (section 3.3).
    - `loss`: `"margin"`, `"dlr"` or `"cross_entropy"`.

    L-infinity, L2 and L1. Raises ArgumentError for other balls and for unusable parameters.
    """

    black_box: ClassVar[bool] = True

    queries: int = 1000
    first_area: float = 0.8
    loss: Loss = "margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("queries", self.queries)
        check_choice("loss", self.loss, get_args(Loss), hint="'margin' never saturates.")
        if not isinstance(self.first_area, int | float) or not 0 < self.first_area <= 1:
            raise ArgumentError(
                "first_area", repr(self.first_area), accepted="a number in (0, 1]", hint="0.8 is the paper's on Linf."
            )

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        return self.find(model, x, y, ball, targeted=targeted).candidates

    def find(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Found:  # noqa: D102
        if not isinstance(ball, Linf | L2 | L1):
            raise ArgumentError(
                "ball", f"{type(ball).__name__}, for which there is no square attack",
                accepted="rp.Linf, rp.L2 or rp.L1", hint="For a Box take rp:margin-pgd or rp:apgd.",
            )  # fmt: skip
        best = Best(x, y, objective(self.loss, y, targeted=targeted), targeted=targeted)
        images = x if x.dim() == IMAGE + 1 else x.flatten(1)[:, None, None]
        propose = _stripes_and_squares(ball, images) if isinstance(ball, Linf) else _moved_windows(ball, images)
        spent = torch.zeros_like(best.value)
        with torch.no_grad():
            best.offer(x, model(x))  # the input itself is what the first proposal has to beat
            for query in range(self.queries):
                if bool(best.success.all()):
                    break
                spent += ~best.success
                area = self.first_area * 0.5 ** sum(query * 10_000 / self.queries >= q for q in HALVINGS)
                z = propose(best.x.view_as(images), area, query == 0).view_as(x)
                # Draws are made for all samples, so that what is found for one does not hang on the others' successes.
                z = torch.where(best.success.view(-1, *[1] * (x.dim() - 1)), best.x, z)
                best.offer(z, model(z))
        told = f"{spent.mean():.0f} queries a sample until its success, {spent.max():.0f} at most"
        return Found(best.x, notes=(told,))


Propose = Callable[[Tensor, float, bool], Tensor]
"""From the best images, the share of the area that changes, and whether this is the first query, to other images."""


def _window(images: Tensor, area: float) -> Tensor:
    """Where a random square of so large a share of each image lies, (batch, 1, rows, columns), 1 inside."""
    count, _, rows, columns = images.shape
    side = math.sqrt(area * rows * columns)
    height = max(1, min(rows, round(side)))
    width = max(1, min(columns, round(area * rows * columns / height)))
    top = (torch.rand(count, device=images.device) * (rows - height + 1)).long().clamp(max=rows - height)
    left = (torch.rand(count, device=images.device) * (columns - width + 1)).long().clamp(max=columns - width)
    row, column = torch.arange(rows, device=images.device), torch.arange(columns, device=images.device)
    inside_rows = (row >= top[:, None]) & (row < top[:, None] + height)
    inside_columns = (column >= left[:, None]) & (column < left[:, None] + width)
    return (inside_rows[:, None, :, None] & inside_columns[:, None, None, :]).to(images)


def _signs(images: Tensor, *shape: int) -> Tensor:
    return torch.randint(0, 2, (len(images), *shape), device=images.device).to(images) * 2 - 1


def _stripes_and_squares(ball: Ball, images: Tensor) -> Propose:
    """Vertical stripes first, then squares with the sign of eps redrawn in each channel: corners of the box."""
    box, eps = ball.box(images), ball.eps_for(images)
    channels, columns = images.shape[1], images.shape[3]

    def propose(now: Tensor, area: float, first: bool) -> Tensor:
        if first:
            return torch.clamp(images + eps * _signs(images, channels, 1, columns), box.lower, box.upper)
        window, corner = _window(images, area), images + eps * _signs(images, channels, 1, 1)
        return torch.where(window > 0, torch.clamp(corner, box.lower, box.upper), now)

    return propose


def _moved_windows(ball: Ball, images: Tensor) -> Propose:
    """Bumps everywhere first; then the budget of one window, and what is left of it all, goes into another."""
    eps = ball.eps_for(images)
    channels, power = images.shape[1], int(ball.norm)

    def length(step: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(step.flatten(1), ord=power, dim=1)
        return norms.view(-1, 1, 1, 1)

    def bump(area: float) -> tuple[Tensor, Tensor]:
        window = _window(images, area)
        # Largest in the middle: distances to the window's edge, along both axes.
        inner = torch.minimum(window.cumsum(2), window.flip(2).cumsum(2).flip(2))
        inner = inner * torch.minimum(window.cumsum(3), window.flip(3).cumsum(3).flip(3)) * window
        return window, inner * _signs(images, channels, 1, 1)

    def propose(now: Tensor, area: float, first: bool) -> Tensor:
        if first:
            step = sum((bump(0.04)[1] for _ in range(25)), torch.zeros_like(images))
            return nearest(ball, images + eps * step / length(step).clamp(min=1e-12), images)
        step = now - images
        (source, _), (sink, rise) = bump(area), bump(area)
        kept = step * (1 - source) * (1 - sink)
        budget = (eps**power - length(kept) ** power).clamp(min=0) ** (1 / power)
        fresh = rise / length(rise).clamp(min=1e-12) + step * sink / length(step * sink).clamp(min=1e-12)
        return nearest(ball, images + kept + budget * fresh / length(fresh).clamp(min=1e-12), images)

    return propose
