"""Rules of the values at places of their order: sorting, the largest k, the median."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Ranked
from robust_plugins.intervals.rules.along_axes import over_largest
from robust_plugins.intervals.rules.registry import LinearBound, backward_rule, forward_rule, relaxation_rule


@forward_rule(Ranked)
def ranked(layer: Ranked, x: Interval) -> Interval:
    """No value of any place falls when an entry rises."""
    return x.map(layer.forward)


@backward_rule(Ranked)
def ranked_vjp(layer: Ranked, x: Interval, grad: Interval) -> Interval:
    """An entry has the gradient of its place: behind those that are surely smaller, before those surely larger."""
    z, g = (i.map(lambda t: t.movedim(layer.dim, -1)) for i in (x, grad))
    n = z.shape[-1]
    surely = z.upper.unsqueeze(-2) < z.lower.unsqueeze(-1)  # (..., entry, the smaller one)
    first, last = surely.sum(-1), n - 1 - surely.sum(-2)
    at = torch.arange(n, device=x.device)
    reached = (at >= first.unsqueeze(-1)) & (at <= last.unsqueeze(-1))
    places = torch.tensor(layer.places, device=x.device)
    low, up = (t.new_zeros((*t.shape[:-1], n)).index_copy(-1, places, t).unsqueeze(-2) for t in (g.lower, g.upper))
    least = torch.where(reached, low, torch.inf).amin(-1).movedim(-1, layer.dim)
    if x.is_point and grad.is_point and bool((first == last).all()):
        return Interval.point(least)
    return Interval(least, torch.where(reached, up, -torch.inf).amax(-1).movedim(-1, layer.dim))


@relaxation_rule(Ranked, outward=True)
def ranked_relaxation(layer: Ranked, x: Interval) -> tuple[LinearBound, LinearBound]:
    """The value at place k is at most the largest of any k + 1 entries, and at least the smallest of any n - k.

    Taken are the k + 1 with the smallest upper ends, and the n - k with the largest lower ends.
    """
    z = x.map(lambda t: t.movedim(layer.dim, -1).unsqueeze(-2))
    n, places = z.shape[-1], torch.tensor(layer.places, device=x.device).unsqueeze(-1)
    ulps = 4.0 * (n + len(layer.places) + 8)
    lines = []
    for side, entries, order in ((1, z, z.upper), (-1, -z, -z.lower)):
        count = places + 1 if side == 1 else n - places
        counts = order.argsort(-1).argsort(-1) < count
        among = Interval(*(torch.where(counts, t, -torch.inf) for t in (entries.lower, entries.upper)))
        _, slopes, offset = over_largest(entries, among, ulps=ulps)
        lines.append(LinearBound(_transposed(layer, slopes), side * offset.movedim(-1, layer.dim)))
    return lines[1], lines[0]


def _transposed(layer: Ranked, slopes: Tensor) -> Any:
    """Coefficients of the places as those of the entries, by slopes (..., places, entries)."""

    def transpose(k: Tensor) -> Tensor:
        moved = k.movedim(layer.dim + 1, -1).unsqueeze(-2)
        return (moved @ slopes.unsqueeze(1)).squeeze(-2).movedim(-1, layer.dim + 1)

    return transpose
