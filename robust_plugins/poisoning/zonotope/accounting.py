"""What the worst choice of poisoned samples adds to a sum over the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.intervals import Interval
from robust_plugins.poisoning.budget import PoisoningBudget

Support = Callable[[bool, bool], Interval]
"""(features moved, label changed) -> what one poisoned sample can add, (..., batch)."""


def worst_sums(budget: PoisoningBudget, support: Support) -> Interval:
    """The range of the sum of what the poisoned samples add, over all choices of samples: batch axis summed.

    With f, l and b what a sample adds whose features move, whose label changes, and with both: samples chosen freely
    add at most top_n(f) + top_m(l) + top_min(n, m)(b - f - l), and at most top_{n+m}(b); for nested choices the
    smaller set adds b instead of what the larger one adds.
    """
    n, m = budget.points, budget.labels
    if not n or not m:
        return _both(lambda added: _top(added, n + m), support(n > 0, m > 0))

    def joint(f: Tensor, changed: Tensor, both: Tensor) -> Tensor:
        f, changed, both = (t.clamp(min=0) for t in (f, changed, both))
        if budget.paired:
            larger = f if n >= m else changed
            added = _top(larger, max(n, m)) + _top(both - larger, min(n, m))
            return torch.minimum(added, _top(torch.maximum(both, larger), max(n, m)))
        added = _top(f, n) + _top(changed, m) + _top(both - f - changed, min(n, m))
        return torch.minimum(added, _top(torch.maximum(both, torch.maximum(f, changed)), n + m))

    return _both(joint, support(True, False), support(False, True), support(True, True))


def _both(total: Callable[..., Tensor], *added: Interval) -> Interval:
    return Interval(-total(*(-a.lower for a in added)), total(*(a.upper for a in added)))


def _top(values: Float[Tensor, "*rows batch"], k: int) -> Float[Tensor, "*rows"]:
    """The sum of the k largest values, of the positive ones among them."""
    k = min(k, values.shape[-1])
    return values.topk(k, dim=-1, sorted=False).values.clamp(min=0).sum(-1)
