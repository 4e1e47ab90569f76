"""Arithmetic of intervals: what it does at the edges of a dtype, with infinite ends, and with what cannot be right."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import robust_plugins as rp
from robust_plugins.intervals import Interval, rounding

INF = float("inf")


def of(low: float, up: float, dtype: torch.dtype = torch.float64) -> Interval:
    return Interval(torch.tensor([low], dtype=dtype), torch.tensor([up], dtype=dtype))


def ends(x: Interval) -> tuple[float, float]:
    return float(x.lower), float(x.upper)


def test_integers_are_refused(unchecked: None) -> None:
    with pytest.raises(rp.ArgumentError, match=r"int64.*torch.float64"):
        Interval.point(torch.tensor([1, 2]))
    hinted = Interval.point(torch.tensor([1, 2]).to(torch.float64))
    assert (hinted * 0.5).lower.tolist() == [0.5, 1.0]
    with pytest.raises(rp.ArgumentError, match="int32"):
        hinted.to(torch.int32)


@pytest.mark.parametrize("a", [(0, 1), (0, 0), (-1, 0), (-2, 3), (2, INF), (-INF, INF)])
@pytest.mark.parametrize("b", [(0, 0), (-INF, INF), (0, INF), (-INF, -1), (-1, 2)])
def test_products_with_infinite_ends_hold_all_products_of_numbers(
    a: tuple[float, float], b: tuple[float, float]
) -> None:
    found = of(*a) * of(*b)
    numbers = [[v for v in (low, up, 0.5 * low, min(max(low, -3.0), up), 1.0) if low <= v <= up and abs(v) < INF]
               for low, up in (a, b)]  # fmt: skip
    for s, t in itertools.product(*numbers):
        assert found.contains(torch.tensor([s * t], dtype=torch.float64)).all()
    assert not found.lower.isnan().any()
    assert not found.upper.isnan().any()
    if a == (0, 0) or b == (0, 0):
        assert ends(found) == (0, 0)


def test_products_with_infinite_ends_have_gradients_without_nan_and_keep_nan() -> None:
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    found = Interval.point(x) * Interval(torch.tensor([-INF, 1.0]), torch.tensor([INF, 2.0]))
    (gradient,) = torch.autograd.grad(found.upper[1], x)
    assert gradient.tolist() == [0.0, 2.0]
    assert (of(0, 1) * of(float("nan"), 1)).lower.isnan().all()


def test_enclosures_of_one_quantity_may_miss_each_other_by_rounding_only() -> None:
    with pytest.raises(rp.ArgumentError, match=r"disjoint.*\[2, 3\] against \[0, 1\]"):
        of(0, 1).sharpened(of(2, 3))
    for dtype in (torch.float32, torch.float64):
        above = float(torch.nextafter(torch.ones((), dtype=dtype), torch.tensor(2.0, dtype=dtype)))
        found = of(0, 1, dtype).sharpened(of(above, 2, dtype))
        assert ends(found) == (1, above)
    assert ends(of(0, 2).sharpened(of(1, 3))) == (1, 2)
    wide = Interval(torch.tensor([[0.0, 1e6], [0.0, 0.0]]), torch.tensor([[1.0, 1e6], [1.0, 1.0]]))
    with pytest.raises(rp.ArgumentError, match=r"at \(1, 0\)"):  # another sample's size is no excuse
        wide.sharpened(Interval(wide.lower + torch.tensor([[0.0], [1.01]]), wide.upper + 2))


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16, torch.float32])
def test_narrower_dtypes_hold_the_set(narrow: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    low = 10 ** (12 * torch.rand(500, generator=g, dtype=torch.float64) - 8)
    low = torch.cat([low, -low, torch.tensor([0.0, 1e5, 1e39, -1e39, 1e-60, -1e-60, 0.5], dtype=low.dtype)])
    x = Interval(low, low + low.abs() * torch.rand(len(low), generator=g, dtype=torch.float64))
    found = x.to(narrow)
    assert found.dtype == narrow
    assert bool((found.lower.double() <= x.lower).all())
    assert bool((found.upper.double() >= x.upper).all())
    assert not found.lower.isnan().any()
    point = Interval.point(torch.tensor([0.5, 2.0], dtype=torch.float64)).to(narrow)
    assert point.is_point
    third = Interval.point(torch.tensor([1 / 3], dtype=torch.float64)).to(narrow)
    assert float(third.lower) < 1 / 3 < float(third.upper)
    assert Interval.point(torch.ones(2)).to(torch.float64).is_point
    assert Interval.point(torch.ones(2)).detach().is_point
    kept = torch.tensor([1 / 3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(Interval(kept, kept + 1).to(narrow).lower.sum(), kept)[0].tolist() == [1.0]


def test_quotients_are_exact_and_divisors_have_one_sign() -> None:
    assert ends(of(-2, 4) / of(1, 2)) == (-2, 4 / 1)
    assert ends(of(1, 4) / of(-2, -1)) == (-4, -0.5)
    assert ends(of(1, 4) / 2) == (0.5, 2)
    for divisor in (of(0, 1), of(-1, 1), 0):
        with pytest.raises(rp.ArgumentError, match="zero"):
            of(1, 2) / divisor


def test_tensors_and_numbers_combine_as_in_torch() -> None:
    x = Interval(torch.tensor([1.0]), torch.tensor([2.0]))
    wide = torch.tensor([0.1], dtype=torch.float64)
    assert (x * wide).dtype == torch.float64 == (x + wide).dtype
    assert ends(wide * x) == ends(x * wide)
    assert ends(torch.tensor([3.0]) - x) == (1, 2)
    assert (x * torch.tensor([2])).lower.tolist() == [2.0]
    with pytest.raises(TypeError):
        _ = 0.5 in x


def test_numbers_that_the_dtype_does_not_have_are_rounded_outward() -> None:
    with rounding.outward():
        found = Interval.point(torch.ones(1)) * 0.1
    assert float(found.lower) < 0.1 < float(found.upper)


@pytest.mark.parametrize("index", [0, slice(1, 3), ..., None, torch.tensor([True, False, True]), (slice(None), 1)])
def test_entries_are_those_of_both_ends(index: object) -> None:
    low: Tensor = torch.arange(6.0).view(3, 2)
    x = Interval(low, low + 1)
    assert torch.equal(x[index].lower, low[index])  # type: ignore[index]
    assert torch.equal(x[index].upper, low[index] + 1)  # type: ignore[index]
    assert Interval.point(low)[index].is_point


def test_intervals_are_joined() -> None:
    a, b = of(0, 1), Interval.point(torch.tensor([2.0], dtype=torch.float64))
    assert Interval.cat([a, b]).upper.tolist() == [1, 2]
    assert Interval.cat([b, b]).is_point
    assert Interval.cat([a[None], b[None]], 1).shape == (1, 2)
    with pytest.raises(rp.ArgumentError, match="empty"):
        Interval.cat([])
