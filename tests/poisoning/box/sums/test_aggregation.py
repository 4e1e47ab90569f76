"""Sums of per-sample bounds over a batch against the same sums computed plainly in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.per_sample_draws import Drawn, dense, outer, plain, terms
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import Interval, rounding
from robust_plugins.poisoning.box.sums import _kernels, compiled, streaming
from robust_plugins.poisoning.box.sums.aggregation import extreme_sums, extremes, replaced, total
from robust_plugins.poisoning.box.sums.per_sample import Dense, Outer

K = st.integers(0, 14)
MEMORY = st.sampled_from([1, 2000, 20000, 2**27])


@pytest.fixture(params=["torch", "compiled"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs in plain torch and with the compiled kernels."""
    if request.param == "torch":
        monkeypatch.setenv("ROBUST_PLUGINS_NATIVE", "0")
    elif _kernels.library() is None:
        pytest.skip("no C++ compiler")
    return str(request.param)


def _pairs(drawn: list[Drawn]) -> list[tuple[float, Any]]:
    return [(t.sign, t.g) for t in drawn]


def _close(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float = 1e-12) -> None:
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f.double(), e, rtol=tolerance, atol=tolerance)


@given(drawn=terms(), k=K, offset=st.sampled_from([0.0, 0.7]), signed=st.booleans(), memory=MEMORY)
def test_the_k_largest(drawn: list[Drawn], k: int, offset: float, signed: bool, memory: int) -> None:
    found = extremes(_pairs(drawn), k, offset=offset, signed=signed, memory=memory)
    _close(found, plain(drawn, k, offset=offset, signed=signed))


@given(drawn=terms(dtype=torch.float32), k=K)
def test_in_single_precision(drawn: list[Drawn], k: int) -> None:
    _close(extremes(_pairs(drawn), k), plain(drawn, k), tolerance=1e-4)


@given(drawn=terms(), k=K, offset=st.sampled_from([0.0, 0.7]), signed=st.booleans(), memory=MEMORY)
def test_cvar_is_never_below_the_k_largest(
    drawn: list[Drawn], k: int, offset: float, signed: bool, memory: int
) -> None:
    found = extremes(_pairs(drawn), k, offset=offset, signed=signed, memory=memory, method="cvar")
    for f, e in zip(found, plain(drawn, k, offset=offset, signed=signed), strict=True):
        assert bool((f >= e - 1e-12).all())
        if k >= drawn[0].g.batch or k == 0:
            torch.testing.assert_close(f, e)


@pytest.mark.parametrize(("k", "kinds"), [(3, ("any", "positive")), (10, ("any", "point")), (100, ("any", "any"))])
def test_cvar_is_a_few_percent_above_the_k_largest(k: int, kinds: tuple[str, str]) -> None:
    g = torch.Generator().manual_seed(0)
    drawn = [outer(g, (400, 8, 20), kinds, sign, False, None, torch.float64) for sign in (1.0, -1.0)]
    found, exact = extremes(_pairs(drawn), k, method="cvar"), plain(drawn, k)
    for f, e in zip(found, exact, strict=True):
        assert float(f.sum() / e.sum()) < 1.01
        assert bool((f <= 1.1 * e).all())


@given(drawn=terms(largest=1), memory=MEMORY)
def test_totals(drawn: list[Drawn], memory: int) -> None:
    (term,) = drawn
    found = total(term.g, memory=memory)
    low, up = term.lower.sum(0), term.upper.sum(0)
    assert bool((found.lower <= low + 1e-12).all() and (found.upper >= up - 1e-12).all())
    # Products of matrices are up to 1.18 times too wide where neither factor's sign is known.
    assert bool((found.upper - found.lower <= 1.18 * (up - low) + 1e-12).all())
    if not (isinstance(term.g, Outer) and term.g.clip is None):
        _close((found.lower, found.upper), (low, up))


@given(drawn=terms(largest=1), k=K)
def test_sums_of_any_k_samples(drawn: list[Drawn], k: int) -> None:
    (term,) = drawn
    found = extreme_sums(term.g, k)
    low, up = term.lower.sort(0).values[:k].sum(0), term.upper.sort(0, descending=True).values[:k].sum(0)
    assert bool((found.lower <= low + 1e-12).all() and (found.upper >= up - 1e-12).all())
    if not (isinstance(term.g, Outer) and term.g.clip is None):
        _close((found.lower, found.upper), (low, up))


@given(k=K, seed=st.integers(0, 1000))
def test_sums_with_k_samples_replaced(k: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    term = outer(g, (10, 3, 20), ("any", "any"), 1.0, True, 0.4, torch.float64)
    found, left = replaced(term.g, k, gamma=0.4), max(10 - k, 0)
    low, up = term.lower.sort(0).values[:left].sum(0), term.upper.sort(0, descending=True).values[:left].sum(0)
    _close((found.lower, found.upper), (low - 0.4 * (10 - left), up + 0.4 * (10 - left)))


@pytest.mark.parametrize("shape", [(), (3,), (3, 2, 2, 2)])
def test_parameters_of_any_shape(shape: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(1)
    drawn = [dense(g, (7, *shape), "any", sign, False, None, torch.float64) for sign in (1.0, -1.0)]
    for memory in (1, 2**20):
        _close(extremes(_pairs(drawn), 2, memory=memory), plain(drawn, 2))
        found = total(drawn[0].g, memory=memory)
        _close((found.lower, found.upper), (drawn[0].lower.sum(0), drawn[0].upper.sum(0)))
        assert drawn[0].g.chunk(slice(2, 5)).shape == (3, *shape)


def test_the_sum_of_points_is_a_point() -> None:
    g = torch.Generator().manual_seed(1)
    term = outer(g, (7, 2, 3), ("point", "point"), 1.0, False, None, torch.float64)
    assert total(term.g).is_point


@pytest.mark.parametrize("method", ["topk", "cvar"])
@pytest.mark.parametrize("kind", ["outer", "dense"])
def test_an_empty_batch_adds_up_to_zero(method: Any, kind: str) -> None:
    empty = Interval(torch.zeros(0, 3), torch.zeros(0, 3))
    g = Outer(empty, empty) if kind == "outer" else Dense.stored(Interval(torch.zeros(0, 3, 3), torch.zeros(0, 3, 3)))
    for end in (*extremes([(1.0, g)], 2, method=method), total(g).lower, total(g).upper):
        torch.testing.assert_close(end, torch.zeros(3, 3))


@pytest.mark.parametrize("method", ["topk", "cvar"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_an_overflowing_bound_gives_infinity(method: Any, bad: float) -> None:
    g = torch.Generator().manual_seed(1)
    drawn = [outer(g, (7, 2, 3), ("any", "any"), sign, False, None, torch.float64) for sign in (1.0, -1.0)]
    for t in drawn:
        assert isinstance(t.g, Outer)
        t.g.delta.lower[4, 1], t.g.delta.upper[4, 1] = -bad, bad
    poisoned = drawn[0].g.activation
    # Zero times infinity is zero: the moved sample's entry is then none, and the clean one's bound covers it already.
    zero = (poisoned.lower[4] == 0) & (poisoned.upper[4] == 0)
    assert bool(zero.any())
    for end in extremes(_pairs(drawn), 2, method=method):
        assert torch.equal(end[1].isinf(), ~zero if math.isinf(bad) else torch.ones_like(zero))
        assert bool(end[0].isfinite().all())


@given(drawn=terms(dtype=torch.float32), k=K, signed=st.booleans(), method=st.sampled_from(["topk", "cvar"]))
def test_rounded_outward(drawn: list[Drawn], k: int, signed: bool, method: Any) -> None:
    with rounding.outward():
        found = extremes(_pairs(drawn), k, signed=signed, method=method)
        whole = total(drawn[0].g)
    for f, e in zip(found, plain(drawn, k, signed=signed), strict=True):
        assert bool((f.double() >= e).all())
    assert bool((whole.lower.double() <= drawn[0].lower.sum(0)).all())
    assert bool((whole.upper.double() >= drawn[0].upper.sum(0)).all())


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_PLUGINS_NATIVE", "0")
    sizes: list[int] = []
    g = torch.Generator().manual_seed(0)
    term = outer(g, (200, 64, 64), ("any", "any"), 1.0, False, None, torch.float32)
    original = streaming.Deviations.part

    def part(self: streaming.Deviations, samples: slice, rows: slice) -> Tensor:
        made = original(self, samples, rows)
        sizes.append(made.numel() * made.element_size())
        return made

    monkeypatch.setattr(streaming.Deviations, "part", part)
    extremes([(1.0, term.g)], 3, memory=2**20)
    assert max(sizes) <= 2**20 / 4
    assert len(sizes) > 10


def test_wrong_arguments_are_named(unchecked: None) -> None:
    g = torch.Generator().manual_seed(1)
    one, other = (outer(g, (7, 2, n), ("any", "any"), 1.0, False, None, torch.float64).g for n in (3, 4))
    with pytest.raises(ArgumentError, match="terms"):
        extremes([(1.0, one), (-1.0, other)], 1)
    with pytest.raises(ArgumentError, match="terms"):
        extremes([], 1)
    with pytest.raises(ArgumentError, match="`k`"):
        extremes([(1.0, one)], -1)
    with pytest.raises(ArgumentError, match="method"):
        extremes([(1.0, one)], 1, method="best")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="gamma"):
        replaced(one, 1, gamma=0.0)
    with pytest.raises(ArgumentError, match="clip"):
        Dense.stored(Interval.point(torch.zeros(2, 3)), clip=0.0)
    with pytest.raises(ArgumentError, match="scale"):
        Dense.stored(Interval.point(torch.zeros(2, 3)), scale=Interval.point(torch.zeros(3)))
    with pytest.raises(ArgumentError, match="activation"):
        Outer(Interval.point(torch.zeros(2, 3)), Interval.point(torch.zeros(3, 3)))


@pytest.mark.parametrize("fault", ["k - 1", "clip", "scale", "one sign case"])
def test_the_comparison_finds_planted_faults(fault: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(3)
    drawn = [outer(g, (9, 3, 20), ("any", "any"), 1.0, True, 0.4, torch.float64)]
    _close(extremes(_pairs(drawn), 3), plain(drawn, 3))
    if fault == "k - 1":
        cls = streaming.Deviations if path == "torch" else compiled.Compiled
        topk = cls.topk
        monkeypatch.setattr(cls, "topk", lambda self, k: topk(self, k - 1))
    elif fault == "one sign case":
        monkeypatch.setattr(Interval, "__mul__", lambda a, b: Interval(a.lower * b.lower, a.upper * b.upper))
    else:
        object.__setattr__(drawn[0].g, fault, None)
    with pytest.raises(AssertionError):
        _close(extremes(_pairs(drawn), 3), plain(drawn, 3))
