"""Products of intervals: exact where the module says so, within the stated factor elsewhere."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robust_plugins.intervals import Interval
from robust_plugins.intervals.products import product


def _box(g: torch.Generator, shape: tuple[int, ...], kind: str) -> Interval:
    a, b = torch.randn((2, *shape), generator=g, dtype=torch.float64)
    low, up = torch.minimum(a, b), torch.maximum(a, b)
    if kind == "point":
        return Interval.point(a)
    if kind == "positive":
        return Interval(low.abs(), low.abs() + up - low)
    if kind == "negative":
        return Interval(-low.abs() - up + low, -low.abs())
    return Interval(low, up)


def _exact(a: Interval, b: Interval) -> Interval:
    """The product of matrices, entry by entry: sums of exact products of numbers."""
    terms = Interval(a.lower.unsqueeze(-1), a.upper.unsqueeze(-1)) * Interval(b.lower, b.upper)
    return Interval(terms.lower.sum(-2), terms.upper.sum(-2))


KINDS = ["point", "positive", "negative", "any"]


@given(first=st.sampled_from(KINDS), second=st.sampled_from(KINDS), seed=st.integers(0, 1000))
def test_exact_where_a_factor_is_a_point_or_has_a_sign(first: str, second: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b = _box(g, (3, 4), first), _box(g, (4, 2), second)
    found, exact = product(torch.matmul, a, b, terms=4), _exact(a, b)
    if first == second == "any":
        assert bool((found.lower <= exact.lower + 1e-12).all() and (found.upper >= exact.upper - 1e-12).all())
        assert bool((found.width <= 1.18 * exact.width + 1e-12).all())
    else:
        torch.testing.assert_close(found.lower, exact.lower)
        torch.testing.assert_close(found.upper, exact.upper)


def test_two_factors_of_unknown_sign_are_at_most_18_percent_too_wide() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = _box(g, (20, 30), "any"), _box(g, (30, 20), "any")
    exact, found = _exact(a, b), product(torch.matmul, a, b, terms=30)
    assert bool((found.lower <= exact.lower + 1e-12).all() and (found.upper >= exact.upper - 1e-12).all())
    assert float((found.width / exact.width).max()) <= 1.18


def test_elementwise_products_are_exact() -> None:
    g = torch.Generator().manual_seed(0)
    for first, second in itertools.product(KINDS, KINDS):
        a, b = _box(g, (200,), first), _box(g, (200,), second)
        found = a * b
        ends = torch.stack([x * y for x in (a.lower, a.upper) for y in (b.lower, b.upper)])
        torch.testing.assert_close(found.lower, ends.amin(0))
        torch.testing.assert_close(found.upper, ends.amax(0))


@pytest.mark.parametrize("kinds", [("any", "point"), ("positive", "any"), ("any", "any")])
def test_a_bias_is_added(kinds: tuple[str, str]) -> None:
    g = torch.Generator().manual_seed(0)
    a, b, bias = _box(g, (3, 4), kinds[0]), _box(g, (4, 2), kinds[1]), _box(g, (2,), "any")

    def ends(i: Interval) -> tuple[Tensor, Tensor]:
        return i.lower, i.upper

    plain, shifted = product(torch.matmul, a, b, terms=4), product(torch.matmul, a, b, terms=4, bias=bias)
    for p, s, t in zip(ends(plain), ends(shifted), ends(bias), strict=True):
        torch.testing.assert_close(s, p + t)
