"""The gradient of the cross-entropy, bounded with the fact that probabilities sum to one.

`dL/dx = sum_{m != y} p_m (J_m - J_y)` with J the rows of the logits' Jacobian: a sum of differences of rows, weighted
by probabilities that lie in a box and on the simplex. Each feature's bound is a small linear programme.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from robust_plugins.intervals import Interval, Relaxation, rounding
from robust_plugins.intervals.rules.selection import softmax_range


def probabilities(relaxation: Relaxation, y: Int[Tensor, " batch"]) -> Interval:
    """Bounds on softmax of the last node's output over the box, (batch, classes): from those on z_m - z_y."""
    logits = relaxation.values[-1]
    eye = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    own = F.one_hot(y.long(), logits.shape[1]).to(eye)
    found = relaxation.bounds(len(relaxation.values) - 1, eye - own.unsqueeze(1))
    from_logits = logits - Interval(
        *(end.gather(1, y.long().unsqueeze(1)).expand(logits.shape) for end in (logits.lower, logits.upper))
    )
    found = found.agreeing(from_logits)
    # z_y - z_y is 0 and not an interval around it.
    differences = Interval(found.lower * (1 - own), found.upper * (1 - own))
    return softmax_range(differences, -1).agreeing(softmax_range(logits, -1))


def directions(y: Int[Tensor, " batch"], classes: int) -> tuple[Int[Tensor, "batch others"], Tensor]:
    """The classes other than y, in order, and for each the coefficients of `z_m - z_y`: (batch, others, classes)."""
    others = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    others = others + (others >= y.unsqueeze(1)).long()
    return others, F.one_hot(others, classes) - F.one_hot(y.long(), classes).unsqueeze(1)


def weighted_sum(p: Interval, total: Interval, terms: Interval) -> Interval:
    """Bounds on `sum_m p_m t_m` for all t in `terms`, (batch, others, *features), and all p in the box `p`, (batch,
    others), whose sum lies in `total`, (batch,).

    A fractional knapsack for each feature: every p_m starts at its lower end; what is left goes to the largest t_m
    first, as long as they are positive or the sum's lower end is not reached.
    """
    low, up = -_largest(p, total, -terms.lower), _largest(p, total, terms.upper)
    if rounding.active():
        n = p.shape[1]
        slack = 2 * rounding.kappa(4 * n, p.dtype) * terms.magnitude.amax(1) + rounding.underflow(n, p.dtype)
        low, up = low - slack, up + slack
    return Interval(low, up)


def _largest(p: Interval, total: Interval, t: Tensor) -> Tensor:
    shape = (len(t), -1, *[1] * (t.dim() - 2))
    ranked, order = t.sort(1, descending=True)
    room = p.width.view(shape).expand(t.shape).gather(1, order)
    before = room.cumsum(1) - room
    used = p.lower.sum(1)
    most, least = ((end - used).clamp(min=0).view(shape) for end in (total.upper, total.lower))
    extra = torch.minimum(room, (torch.where(ranked > 0, most, least) - before).clamp(min=0))
    return (p.lower.view(shape) * t).sum(1) + (extra * ranked).sum(1)
