"""The compiled kernels: how they are built, that threads change nothing, and that faults in them are found."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support.per_sample_draws import box, dense, outer, plain

from robust_plugins.intervals import Interval, rounding
from robust_plugins.poisoning.box.sums import _kernels, compiled
from robust_plugins.poisoning.box.sums.aggregation import extremes, total
from robust_plugins.poisoning.box.sums.per_sample import Outer
from robust_plugins.poisoning.box.sums.streaming import Deviations


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to build in; what this process has loaded is forgotten before and after."""
    if _kernels.library() is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    _kernels._loaded.cache_clear()
    yield tmp_path / "robust_plugins"
    _kernels._loaded.cache_clear()


def test_several_builds_at_once_leave_one_file(fresh: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: _kernels._built(), range(2))
    assert first == second
    assert list(fresh.iterdir()) == [first]
    assert _kernels.library() is not None


def test_a_compiler_that_does_not_know_the_machine_is_asked_for_any(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picky = tmp_path / "picky"
    picky.write_text(f"""#!/bin/sh
case "$*" in *native*) echo unknown machine >&2; exit 1;; esac
exec {_kernels._compiler()} "$@"
""")
    picky.chmod(0o755)
    monkeypatch.setenv("CXX", str(picky))
    assert _kernels.library() is not None
    test_the_sum_of_a_clipped_layer()


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_without_a_compiler_torch_does_it_and_says_so_once(
    compiler: str, fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if compiler == "false":
        monkeypatch.setenv("CXX", compiler)
    else:
        monkeypatch.setattr(_kernels.shutil, "which", lambda name: None)
    drawn = [outer(torch.Generator().manual_seed(0), (9, 3, 20), ("any", "any"), 1.0, False, None, torch.float64)]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = extremes([(1.0, drawn[0].g)], 2)
    for f, e in zip(found, plain(drawn, 2), strict=True):
        torch.testing.assert_close(f, e)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "ROBUST_PLUGINS_NATIVE=0" in caplog.text
    assert not list(fresh.glob("*"))


@pytest.mark.parametrize("k", [5, 40])
def test_threads_change_nothing(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    cases = [
        [outer(g, (90, 5, 33), ("any", "any"), sign, True, 0.8, torch.float32) for sign in (1.0, -1.0)],
        [dense(g, (90, 7, 33), "any", sign, False, None, torch.float32) for sign in (1.0, -1.0)],
    ]
    monkeypatch.setattr(compiled, "_PARALLEL", 0)
    for drawn in cases:
        results = []
        for threads in (1, 3):
            monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
            results.append(extremes([(t.sign, t.g) for t in drawn], k))
        for one, many in zip(*results, strict=True):
            torch.testing.assert_close(one, many, rtol=0, atol=0)
        for f, e in zip(results[0], plain(drawn, k), strict=True):
            torch.testing.assert_close(f.double(), e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [3, 30, 60, 199])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_to_torch_in_large_batches_with_ties(k: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches in which samples occur several times, and in which fewer than k count."""
    g = torch.Generator().manual_seed(k)
    drawn = [
        outer(g, (50, 6, 70), ("any", kind), sign, False, None, dtype)
        for sign, kind in ((1.0, "any"), (-1.0, "positive"))
    ]
    pairs = [(t.sign, t.g) for t in drawn]
    for _, term in pairs:
        for factor in ("delta", "activation"):
            whole = getattr(term, factor).map(lambda t: t.repeat(4, 1))
            object.__setattr__(term, factor, whole)
        object.__setattr__(term, "batch", 200)
    for signed in (False, True):
        found = extremes(pairs, k, signed=signed)
        with monkeypatch.context() as patch:
            patch.setenv("ROBUST_PLUGINS_NATIVE", "0")
            slow = extremes(pairs, k, signed=signed)
        for f, s in zip(found, slow, strict=True):
            torch.testing.assert_close(f, s, rtol=1e-5, atol=1e-4 if dtype is torch.float32 else 1e-12)


def test_outward_rounding_equals_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And costs some units in the last place."""
    g = torch.Generator().manual_seed(0)
    drawn = [
        outer(g, (50, 6, 70), ("any", "any"), sign, True, clip, torch.float64)
        for sign, clip in ((1.0, 0.5), (-1.0, None))
    ]
    pairs = [(t.sign, t.g) for t in drawn]
    near = extremes(pairs, 9, offset=0.2)
    with rounding.outward():
        fast = extremes(pairs, 9, offset=0.2)
        monkeypatch.setenv("ROBUST_PLUGINS_NATIVE", "0")
        slow = extremes(pairs, 9, offset=0.2)
    for n, f, s in zip(near, fast, slow, strict=True):
        torch.testing.assert_close((f - n) / n, (s - n) / n, rtol=0.2, atol=0)
        assert bool((f > n).all())
        assert bool((f < n * (1 + 1e-12)).all())


def _same_moments() -> bool:
    """Of a layer with closed gates whose other samples all have D > 0."""
    g = torch.Generator().manual_seed(0)
    delta = box(g, (30, 5), "positive", torch.float64)
    activation = Interval.point(torch.rand(30, 20, generator=g, dtype=torch.float64) + 0.1)
    for floor in (0.0, -math.inf):
        d = compiled.deviations([(1.0, Outer(delta, activation))], offset=0.0, floor=floor, samples=30, memory=2**20)
        slow = Deviations(d.terms, 0.0, floor, 30, 2**20)
        if not all(torch.allclose(f, s) for f, s in zip(d.moments(), slow.moments(), strict=True)):
            return False
    return True


def test_moments_equal_those_of_torch() -> None:
    assert _same_moments()


FAULTS = {
    "a sign case": ("const T* with_upper = upper >= 0 ? up : low;", "const T* with_upper = up;"),
    "a fast path for any activation": ("term.non_negative && !clipped", "!clipped"),
    "a clip": ("if (clipped) u =", "if (false) u ="),
    "one of the k, by insertion": ("q < k; q++) sum +=", "q + 1 < k; q++) sum +="),
    "one of the k, by bisection": ("fill<T>(T(k))", "fill<T>(T(k - 1))"),
    "the search for the k-th largest": ("if (tried) low =", "low ="),
    "a sample": (
        "for (int64_t i = 0; i < count; i++) {\n      deviation",
        "for (int64_t i = 1; i < count; i++) {\n      deviation",
    ),
    "closed gates where all samples count": ("p.values || p.offset != 0 || p.floor != 0", "p.values"),
    "the zeros of closed gates": ("const T outside = count < p.batch ? T(0) :", "const T outside ="),
    "an excess": ("over[n] += larger(x, fill<T>(0))", "over[n] += x"),
    "the floor of sums": ("sum[n] += larger(d[n], fill<T>(T(p.floor)))", "sum[n] += d[n]"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def right() -> bool:
        g = torch.Generator().manual_seed(0)
        cases = (([1.0, -1.0], "any"), ([1.0], "any"), ([1.0], "positive"))
        for (signs, kind), clip, signed in itertools.product(cases, (None, 0.5), (False, True)):
            drawn = [outer(g, (60, 4, 40), (kind, kind), sign, True, clip, torch.float64) for sign in signs]
            pairs = [(t.sign, t.g) for t in drawn]
            for k in (3, 20, 55, 60):
                exact = plain(drawn, k, signed=signed)
                found = extremes(pairs, k, signed=signed)
                above = extremes(pairs, k, signed=signed, method="cvar")
                for f, a, e in zip(found, above, exact, strict=True):
                    if not (torch.allclose(f, e) and bool((a >= e - 1e-9).all())):
                        return False
        return _same_moments()

    assert right()
    source = _kernels._SOURCE.read_text()
    assert FAULTS[fault][0] in source
    changed = tmp_path / "changed.cpp"
    changed.write_text(source.replace(*FAULTS[fault]))
    monkeypatch.setattr(_kernels, "_SOURCE", changed)
    _kernels._loaded.cache_clear()
    assert _kernels.library() is not None
    assert not right()


def test_the_sum_of_a_clipped_layer() -> None:
    term = outer(torch.Generator().manual_seed(0), (20, 4, 40), ("any", "any"), 1.0, True, 0.5, torch.float64)
    found = total(term.g)
    torch.testing.assert_close(found.lower, term.lower.sum(0))
    torch.testing.assert_close(found.upper, term.upper.sum(0))
