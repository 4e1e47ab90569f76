"""Weighted means whose weights lie in a box and sum to one."""

from __future__ import annotations

from torch import Tensor

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval


def mean(p: Interval, t: Interval) -> Interval:
    """The range of `sum_k p_k t_k` over the last axis, for all t in its box and all p in its box that sum to one.

    A fractional knapsack: every p_k starts at its lower end, and what is left goes to the largest t_k first; exact.
    """
    low, up = -_largest(p, -t.lower), _largest(p, t.upper)
    if rounding.active():
        n = t.shape[-1]
        slack = rounding.kappa(4 * n, t.dtype) * t.magnitude.amax(-1) + rounding.underflow(n, t.dtype)
        low, up = low - slack, up + slack
    return Interval(low, up)


def _largest(p: Interval, t: Tensor) -> Tensor:
    ranked, order = t.sort(-1, descending=True)
    room = p.width.expand(t.shape).gather(-1, order)
    before = room.cumsum(-1) - room
    left = (1 - p.lower.sum(-1, keepdim=True)).clamp(min=0)
    extra = (left - before).clamp(min=0).minimum(room)
    return (p.lower * t).sum(-1) + (extra * ranked).sum(-1)
