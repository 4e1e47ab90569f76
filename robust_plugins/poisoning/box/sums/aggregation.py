"""From bounds on the gradient of every sample to bounds on the gradient of a poisoned batch.

Notation of abstract gradient training (Sosnin et al. 2024, "Certified robustness to data poisoning in gradient-based
training"): for per-sample bounds [L_b, U_b], SEMax_k(U) is the sum, per coordinate, of the k largest U_b, SEMin_k(L)
that of the k smallest L_b. A poisoner who reaches at most k samples moves the batch's sum by at most

    SEMax_k((sum_s sign_s U_s)^+),        for one pass `poisoned` over moved samples: SEMax_k((U' - U)^+),

and downwards by the same of the lower ends. Nothing here stores a tensor of (batch, *parameter).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import Interval, rounding
from robust_plugins.intervals.products import product
from robust_plugins.poisoning.box.sums import cvar
from robust_plugins.poisoning.box.sums.compiled import deviations
from robust_plugins.poisoning.box.sums.per_sample import Outer, PerSample

Method = Literal["topk", "cvar"]
MEMORY = 2**27
"""Bytes that a part of the per-sample gradients may take by default."""


@torch.no_grad()
def total(g: PerSample, *, memory: int = MEMORY, group: dist.ProcessGroup | None = None) -> Interval:
    """The sum over the batch, of the parameter's shape: [sum L, sum U].

    Where nothing is clipped elementwise, a linear layer's sum is a product of matrices, which is exact unless delta
    and activation both have entries of unknown sign (`robust_plugins.intervals.products`); all others are exact. The
    sum of points is a point. With `group` every process holds a part of the batch and all get the sum of the whole.
    """
    samples = _samples(g, group)
    if isinstance(g, Outer) and g.clip is None:
        result = product(lambda d, a: d.T @ a, g.scaled, g.activation, terms=max(samples, 1))
    else:
        low, up = deviations([(1.0, g)], offset=0.0, floor=-math.inf, samples=samples, memory=memory).sums()
        result = Interval(-low, up)
    if group is None:
        return result
    low, up = cvar.reduced(torch.stack([result.lower, result.upper]), group)
    return Interval.point(low) if result.is_point else Interval(low, up)


@torch.no_grad()
def extremes(
    terms: Sequence[tuple[float, PerSample]],
    k: int,
    *,
    offset: float = 0.0,
    signed: bool = False,
    method: Method = "topk",
    passes: int = 3,
    memory: int = MEMORY,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """How far at most k samples of the batch can push the sum down and up: (lower, upper), both >= 0.

    Per coordinate, `upper = SEMax_k((sum_s sign_s U_s + offset)^+)` and `lower = SEMax_k((sum_s -sign_s L_s +
    offset)^+)` for `terms` (sign, per-sample bounds) of one parameter. With `signed`, exactly k samples count, whatever
    their sign (all of them where the batch is smaller), and the results may be negative.

    - `method="topk"` is exact. On the CPU a compiled kernel does it, whose cost hardly depends on k; elsewhere, or
      without a C++ compiler, torch does.
    - `method="cvar"` is an upper bound, typically 0.1 to 1 % too large, whose cost does not depend on k: `passes`
      thresholds are tried (`poisoning/box/sums/cvar.py`). With `group`, every process holds a part of the batch,
      only sums per coordinate are exchanged, and all get the same result; `topk` refuses a group.

    Infinite where the bounds overflow. `memory` is in bytes. Raises ArgumentError.
    """
    _check(terms, k, method, group)
    first = terms[0][1]
    samples = _samples(first, group)
    d = deviations(terms, offset=offset, floor=-math.inf if signed else 0.0, samples=samples, memory=memory)
    if k == 0 or samples == 0:
        result = d.empty(0.0)
    elif k >= samples:
        result = cvar.reduced(d.sums(), group)
    elif method == "topk":
        result = d.topk(k)
    else:
        result = cvar.bound(d, k, passes=passes, group=group)
    # Infinity minus infinity, in a bound that has overflowed: nothing is known.
    lower, upper = result.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf).unbind()
    return lower, upper


def extreme_sums(
    g: PerSample,
    k: int,
    *,
    method: Method = "topk",
    memory: int = MEMORY,
    group: dist.ProcessGroup | None = None,
) -> Interval:
    """[SEMin_k(L), SEMax_k(U)]: bounds on the sum over any k samples of the batch (all, where it is smaller).

    Found from the b - k that are left out where these are fewer.
    """
    left = _samples(g, group) - k
    if not 0 <= left < k:
        low, up = extremes([(1.0, g)], k, signed=True, method=method, memory=memory, group=group)
        return Interval(-low, up)
    # The rest's smallest sum: SEMax_k(U) = sum U + SEMax_{b-k}(-U).
    low, up = extremes([(-1.0, g)], left, signed=True, method=method, memory=memory, group=group)
    return _moved(total(g, memory=memory, group=group), low, up)


def replaced(
    g: PerSample,
    k: int,
    *,
    gamma: float,
    method: Method = "topk",
    memory: int = MEMORY,
    group: dist.ProcessGroup | None = None,
) -> Interval:
    """The batch's sum after at most k samples have given way to others with gradients in [-gamma, gamma].

    [SEMin_{b-k}(L) - k gamma, SEMax_{b-k}(U) + k gamma] for per-sample bounds clipped to [-gamma, gamma], found as
    `sum U + SEMax_k((gamma - U)^+)`.
    """
    if not gamma > 0:
        raise ArgumentError("gamma", gamma, accepted="a number above 0", hint="The elementwise clipping of gradients.")
    low, up = extremes([(-1.0, g)], k, offset=gamma, method=method, memory=memory, group=group)
    return _moved(total(g, memory=memory, group=group), low, up)


def _moved(interval: Interval, down: Tensor, up: Tensor) -> Interval:
    return Interval(*rounding.widened(interval.lower - down, interval.upper + up))


def _samples(g: PerSample, group: dist.ProcessGroup | None) -> int:
    """The number of samples of the whole batch."""
    if group is None:
        return g.batch
    return int(cvar.reduced(torch.tensor(g.batch, device=g.like.device), group))


def _check(terms: Sequence[tuple[float, PerSample]], k: int, method: str, group: dist.ProcessGroup | None) -> None:
    if not terms:
        raise ArgumentError("terms", "empty", accepted="at least one", hint="Pairs of a sign and per-sample bounds.")
    first = terms[0][1]
    for _, g in terms:
        if g.shape != first.shape or g.batch != first.batch:
            raise ArgumentError(
                "terms",
                f"of shapes {tuple(first.shape)} and {tuple(g.shape)}, batches {first.batch} and {g.batch}",
                accepted="bounds for one parameter and one batch",
                hint="Bound the same samples in every pass.",
            )
    if not isinstance(k, int) or isinstance(k, bool) or k < 0:
        raise ArgumentError("k", repr(k), accepted="an integer >= 0", hint="Count samples.")
    if method not in ("topk", "cvar"):
        raise ArgumentError("method", repr(method), accepted="'topk' or 'cvar'", hint="'topk' is exact.")
    if method == "topk" and group is not None:
        raise ArgumentError(
            "method",
            "'topk' with group",
            accepted="'cvar' where processes share a batch",
            hint="The largest of all samples cannot be found from sums.",
        )
