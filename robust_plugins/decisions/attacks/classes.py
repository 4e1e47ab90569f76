"""Which classes are worth attacking towards."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.decisions.attacks.ascent import slope
from robust_plugins.decisions.attacks.objectives import towards
from robust_plugins.decisions.attacks.sets import farthest

CANDIDATES = 10
"""At most so many classes are linearised, or as many as are asked for: those with the largest logits."""


def reachable_classes(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, count: int) -> Iterator[Tensor]:
    """The `count` classes other than `y` that the linearised model favours most somewhere in the ball, best first.

    Each is a tensor (batch,). A class is judged by `z_class - z_y` at its farthest point along its gradient at `x`:
    on a linear model that is its largest margin, by which the first class is the worst one.
    """
    with torch.no_grad():
        logits = model(x)
    others = logits.scatter(1, y.unsqueeze(1), -torch.inf)
    candidates = others.topk(min(max(CANDIDATES, count), logits.shape[1] - 1), dim=1).indices
    reach = []
    for to in candidates.unbind(1):
        gradient, _, value = slope(model, x, towards("margin", y, to))
        gain = (gradient.nan_to_num(0.0) * (farthest(ball, gradient, x) - x)).flatten(1).sum(1)
        reach.append(value + gain)
    order = torch.stack(reach, 1).nan_to_num(-torch.inf).topk(min(count, candidates.shape[1]), dim=1).indices
    return iter(candidates.gather(1, order).unbind(1))
