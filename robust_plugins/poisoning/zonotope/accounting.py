"""Bounds on what the worst choice of poisoned samples adds to a sum over the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.intervals import Interval
from robust_plugins.poisoning.accounts import Change, accounts
from robust_plugins.poisoning.budget import PoisoningBudget

Support = Callable[[bool, bool], Interval]
"""(features moved, label changed) -> what one poisoned sample can add, (..., batch)."""


def worst_sums(budget: PoisoningBudget, support: Support) -> Interval:
    """The range of the sum of what the poisoned samples add, over all choices of samples: batch axis summed.

    `accounts` says which sums; the least of them counts. No effect is below 0, as a sample may also stay as it is.
    """
    if not budget.points or not budget.labels:
        effects = {"features" if budget.points else "labels": support(budget.points > 0, budget.labels > 0)}
    else:
        effects = {"features": support(True, False), "labels": support(False, True), "both": support(True, True)}

    def largest(*given: Tensor) -> Tensor:
        added = dict(zip(effects, (t.clamp(min=0) for t in given), strict=True))
        if "both" in added:  # the bound on both changes holds each of them too
            added["both"] = torch.maximum(added["both"], torch.maximum(added["features"], added["labels"]))
        sums = [
            sum((_top(_combined(added, terms), k) for terms, k in account), start=given[0].new_zeros(()))
            for account in accounts(budget)
        ]
        return sums[0] if len(sums) == 1 else torch.minimum(*sums)

    return _both(largest, *effects.values())


def _combined(added: Mapping[str, Tensor], terms: Mapping[Change, float]) -> Tensor:
    parts = [added[kind] if sign == 1.0 else sign * added[kind] for kind, sign in terms.items()]
    return sum(parts[1:], start=parts[0])


def _both(total: Callable[..., Tensor], *added: Interval) -> Interval:
    return Interval(-total(*(-a.lower for a in added)), total(*(a.upper for a in added)))


def _top(values: Float[Tensor, "*rows batch"], k: int) -> Float[Tensor, "*rows"]:
    """The sum of the k largest values, of the positive ones among them."""
    k = min(k, values.shape[-1])
    return values.topk(k, dim=-1, sorted=False).values.clamp(min=0).sum(-1)
