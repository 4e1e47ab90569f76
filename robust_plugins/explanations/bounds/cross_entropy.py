"""The gradient of the cross-entropy, bounded with the fact that probabilities sum to one.

`dL/dx = sum_{m != y} p_m (J_m - J_y)` with J the rows of the logits' Jacobian: a sum of differences of rows, weighted
by probabilities that lie in a box and on the simplex. Each feature's bound is a small linear programme.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from robust_plugins.explanations.bounds.parallel_lines import with_parallel_lines
from robust_plugins.intervals import Interval, Relaxation, rounding
from robust_plugins.intervals.rules.selection import softmax_range

PAIRED = 32
"""Up to this many classes the differences of all pairs of logits are bounded: n (n - 1) / 2 rows in place of n."""


def probabilities(relaxation: Relaxation, y: Int[Tensor, " batch"]) -> Interval:
    """Bounds on softmax of the last node's output over the box, (batch, classes).

    `p_m = 1 / sum_k exp(z_k - z_m)`, from bounds on the differences of all pairs of logits, or for many classes of
    those to y. Of each difference by lines that are best in the middle, and by parallel ones: neither is always
    tighter.
    """
    logits = relaxation.values[-1]
    classes = logits.shape[1]
    if classes > PAIRED:
        return _beside(relaxation, y)
    first, second = torch.triu_indices(classes, classes, 1, device=y.device)
    found = logits[:, first] - logits[:, second]
    if classes > 1:
        eye = torch.eye(classes, dtype=logits.dtype, device=logits.device)
        found = _differences(relaxation, (eye[first] - eye[second]).unsqueeze(0), found)
    ends = []
    for end, opposite in ((found.lower, -found.upper), (found.upper, -found.lower)):
        table = end.new_zeros((len(end), classes, classes))  # for each m, z_k - z_m of all k
        table[:, second, first], table[:, first, second] = end, opposite
        ends.append(table)
    every = softmax_range(Interval(*ends), -1).map(lambda t: t.diagonal(dim1=1, dim2=2))
    return every.agreeing(softmax_range(logits, -1))


def _beside(relaxation: Relaxation, y: Tensor) -> Interval:
    """Bounds as `probabilities` has them, from those on z_m - z_y alone."""
    logits = relaxation.values[-1]
    eye = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
    own = F.one_hot(y.long(), logits.shape[1]).to(eye)
    from_logits = logits - Interval(
        *(end.gather(1, y.long().unsqueeze(1)).expand(logits.shape) for end in (logits.lower, logits.upper))
    )
    found = _differences(relaxation, eye - own.unsqueeze(1), from_logits)
    # z_y - z_y is 0 and not an interval around it.
    differences = Interval(found.lower * (1 - own), found.upper * (1 - own))
    return softmax_range(differences, -1).agreeing(softmax_range(logits, -1))


def _differences(relaxation: Relaxation, spec: Tensor, known: Interval) -> Interval:
    """Bounds on `spec` times the logits, for which `known` holds too."""
    last, parallel = len(relaxation.values) - 1, with_parallel_lines(relaxation)
    found = known.agreeing(relaxation.bounds(last, spec))
    return found if parallel is None else found.agreeing(parallel.bounds(last, spec))


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
