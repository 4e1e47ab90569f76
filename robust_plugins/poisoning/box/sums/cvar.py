"""An upper bound on the sum of the k largest, from sums and counts alone.

For every threshold t, the k largest of D_1, ..., D_b add up to at most

    f(t) = k t + sum_b (D_b - t)^+

(Rockafellar and Uryasev 2000, "Optimization of conditional value-at-risk"), with equality where t is the k-th largest.
f is convex and its cost does not depend on k; batches divided over several processes add up.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from robust_plugins.intervals import rounding
from robust_plugins.poisoning.box.sums.streaming import Deviations


def bound(d: Deviations, k: int, *, passes: int, group: dist.ProcessGroup | None) -> Tensor:
    """Bounds on the sums of the k largest, 0 < k < d.samples: (2, *shape), the smallest f(t) seen.

    One pass for mean and spread, from which the first t follows as if D were normal; `passes` to move t towards the
    k-th largest, as if what lies above t were exponential.
    """
    b = d.samples
    total, squares, low, high = d.moments()
    total, squares = reduced(torch.stack([total, squares]), group).unbind()
    high, negated = reduced(torch.stack([high, -low]), group, largest=True).unbind()
    low = -negated
    # f at both ends of the range. Where D takes both signs its sum cancels, so its error refers to sum |D|.
    best = _up(k * high, k * high.abs(), b)
    best = torch.minimum(best, _up(total - (b - k) * low, (b * squares).sqrt() + b * low.abs(), b))

    mean = total / b
    spread = (squares / b - mean.square()).clamp(min=0).sqrt()
    t = torch.minimum(torch.maximum(mean + _normal_quantile(1 - k / b) * spread, low), high)
    for _ in range(passes):
        over, count = reduced(torch.stack(d.excess(t)), group).unbind()
        best = torch.minimum(best, _up(k * t + over, k * t.abs() + over, b))
        low, high = torch.where(count > k, t, low), torch.where(count > k, high, t)
        step = over / count.clamp(min=1) * (count.clamp(min=0.5) / k).log()
        following = t + step
        t = torch.where((following > low) & (following < high), following, low / 2 + high / 2)
    return best


def reduced(values: Shaped[Tensor, "..."], group: dist.ProcessGroup | None, *, largest: bool = False) -> Tensor:
    """The sums (or the largest) over all processes of a group; without one the values themselves."""
    if group is not None:
        values = values.contiguous()
        dist.all_reduce(values, op=dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group=group)
    return values


def _up(value: Tensor, scale: Tensor, terms: int) -> Tensor:
    """Rounded outward, where that is active, for a sum of so many terms whose absolute values add up to `scale`."""
    if not rounding.active():
        return value
    return value + rounding.kappa(terms, value.dtype) * scale + rounding.underflow(terms, value.dtype)


def _normal_quantile(p: float) -> float:
    return math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * p - 1, dtype=torch.float64)))
