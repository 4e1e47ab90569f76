"""All products of two intervals: any sum of products of their entries, given as a bilinear function.

Linear layers, convolutions, transposed convolutions and their gradients are all of that form, with coefficients that
are zero or one. Three methods, from the cheapest:

- a factor is a point: centre and radius, two evaluations, exact. `A x` over `|x - c| <= r` is `A c -+ |A| r`.
- a factor has one known sign: the other is split by sign, four evaluations, exact.
- both may have either sign: the part that is symmetric around zero is taken out of one factor and the rest split by
  sign, nine evaluations, exact for every pair of entries of which one has a known sign and never more than 1.18 times
  too wide for the others (Nguyen 2011, "Efficient implementation of interval matrix multiplication").
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval

Bilinear = Callable[[Tensor, Tensor], Tensor]


def product(f: Bilinear, a: Interval, b: Interval, *, terms: int, bias: Interval | None = None) -> Interval:
    """Bounds on `f(a, b) + bias`, `f` bilinear with coefficients zero or one.

    `terms` is the number of products that `f` adds up for one entry, for outward rounding. `bias` broadcasts against
    the result. Exact unless both factors may have either sign; see the module.
    """
    if rounding.active() and bias is None and _non_negative(a) and _non_negative(b):
        return _floored(_product(f, a, b, terms, None))
    return _product(f, a, b, terms, bias)


def _product(f: Bilinear, a: Interval, b: Interval, terms: int, bias: Interval | None) -> Interval:
    if a.is_point and b.is_point:
        result = Interval.point(f(a.lower, b.lower))
    elif b.is_point:
        return _by_point(f, a, b.lower, terms, bias)
    elif a.is_point:
        return _by_point(lambda s, t: f(t, s), b, a.lower, terms, bias)
    elif _non_negative(a):
        result = _split(f, a, b)
    elif _non_negative(b):
        result = _split(lambda s, t: f(t, s), b, a)
    else:
        result = _split_symmetric(f, a, b)
    if bias is not None:
        # Plain additions: the widening below covers them, in whichever order the network adds its bias.
        low = result.lower + bias.lower
        result = Interval(low, low if result.is_point and bias.is_point else result.upper + bias.upper)
    return _rounded(result, f, a, b, terms, bias) if rounding.active() else result


def _by_point(f: Bilinear, a: Interval, b: Tensor, terms: int, bias: Interval | None) -> Interval:
    """Centre and radius. Rounding needs no further product: its error folds into the radius."""
    if not rounding.active():
        # Halved after the product: exact, and the result is usually the smaller tensor.
        center, spread = f(a.lower + a.upper, b) * 0.5, f(a.upper - a.lower, b.abs()) * 0.5
        if bias is not None and bias.is_point:
            center = center + bias.lower
    else:
        u, tiny = rounding.unit(a.dtype)
        kappa = rounding.kappa(terms, a.dtype)
        c = a.lower / 2 + a.upper / 2
        r = torch.maximum(a.upper - c, c - a.lower) * (1 + 4 * u) + tiny
        center, spread = f(c, b), f(r + kappa * (c.abs() + r) + tiny, b.abs()) + rounding.underflow(terms, a.dtype)
        if bias is not None:
            spread = spread + kappa * bias.magnitude
            if bias.is_point:
                center = center + bias.lower
    low, up = center - spread, center + spread
    if bias is not None and not bias.is_point:
        low, up = low + bias.lower, up + bias.upper
    return Interval(low, up)


def _floored(y: Interval) -> Interval:
    """A sum of terms that are not negative, which no rounding makes negative: a root may follow."""
    return Interval(y.lower.clamp(min=0), y.upper)


def _non_negative(a: Interval) -> bool:
    return bool((a.lower >= 0).all())


def _split(f: Bilinear, a: Interval, b: Interval) -> Interval:
    """`a >= 0`: the product is largest at a's upper end where `b > 0`, at its lower end where `b < 0`."""
    return Interval(
        f(a.lower, b.lower.clamp(min=0)) + f(a.upper, b.lower.clamp(max=0)),
        f(a.upper, b.upper.clamp(min=0)) + f(a.lower, b.upper.clamp(max=0)),
    )


def _split_symmetric(f: Bilinear, a: Interval, b: Interval) -> Interval:
    """`a = [-m, m] + positive + negative`, at most two of the three for each entry; each part times `b` is exact."""
    m = torch.minimum(-a.lower, a.upper).clamp(min=0)
    positive = Interval(a.lower.clamp(min=0), (a.upper - m).clamp(min=0))
    negative = Interval((a.lower + m).clamp(max=0), a.upper.clamp(max=0))
    symmetric = f(m, b.magnitude)
    above, below = _split(f, positive, b), _split(f, -negative, b)
    return Interval(above.lower - below.upper - symmetric, above.upper - below.lower + symmetric)


def _rounded(result: Interval, f: Bilinear, a: Interval, b: Interval, terms: int, bias: Interval | None) -> Interval:
    """Widened by the rounding errors of our evaluation and of the network's own."""
    kappa = rounding.kappa(terms, a.dtype)
    slack = kappa * f(a.magnitude, b.magnitude) + rounding.underflow(terms, a.dtype)
    if bias is not None:
        slack = slack + kappa * bias.magnitude
    return Interval(result.lower - slack, result.upper + slack)


def total(x: Interval, dims: tuple[int, ...]) -> Interval:
    """The sum over `dims`; of no axes, x itself."""
    if not dims:
        return x
    return summing(x, lambda t: t.sum(dims), prod(x.shape[d] for d in dims))


def reduced(x: Interval, shape: tuple[int, ...]) -> Interval:
    """Summed to `shape`, as the gradient of a value that was broadcast."""
    if x.shape == shape:
        return x
    return summing(x, lambda t: t.sum_to_size(shape), x.lower.numel() // max(prod(shape), 1))


def summing(x: Interval, f: Callable[[Tensor], Tensor], terms: int) -> Interval:
    """`f(x)`, each entry a sum of at most `terms` entries of x with weights from 0 to 1."""
    y = x.map(f)
    if not rounding.active():
        return y
    slack = rounding.kappa(terms, y.dtype) * f(x.magnitude) + rounding.underflow(terms, y.dtype)
    found = Interval(y.lower - slack, y.upper + slack)
    return _floored(found) if _non_negative(x) else found
