"""Two processes that hold parts of a batch find what one process finds for the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from support.per_sample_draws import Drawn, dense, outer, plain

from robust_plugins.intervals import Interval, rounding
from robust_plugins.poisoning.box.sums.aggregation import extreme_sums, extremes, replaced, total
from robust_plugins.poisoning.box.sums.per_sample import Dense, Outer, PerSample

BATCH = 60
CUTS = (25, 0)  # the second process holds the samples from there on


def _terms() -> list[list[Drawn]]:
    g = torch.Generator().manual_seed(0)
    signs = (1.0, -1.0)
    return [
        [outer(g, (BATCH, 3, 20), ("any", "any"), sign, True, None, torch.float64) for sign in signs],
        [outer(g, (BATCH, 3, 20), ("any", "positive"), sign, False, 0.5, torch.float64) for sign in signs],
        [dense(g, (BATCH, 3, 2, 2), "any", sign, False, 0.5, torch.float64) for sign in signs],
    ]


def _part(g: PerSample, samples: slice) -> PerSample:
    def cut(t: Interval | None) -> Interval | None:
        return None if t is None else t.map(lambda end: end[samples])

    if isinstance(g, Outer):
        delta, activation = cut(g.delta), cut(g.activation)
        assert delta is not None
        assert activation is not None
        return Outer(delta, activation, scale=cut(g.scale), clip=g.clip)
    values = g.chunk(slice(0, g.batch))
    return Dense.stored(values.map(lambda end: end[samples]))


def _everything(samples: slice, group: dist.ProcessGroup | None) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for drawn in _terms():
        pairs = [(t.sign, _part(t.g, samples)) for t in drawn]
        first = pairs[0][1]
        for k in (0, 1, 7, 59, 60, 70):
            for signed in (False, True):
                found += extremes(pairs, k, signed=signed, method="cvar", group=group)
            for sums in (extreme_sums(first, k, method="cvar", group=group),
                         replaced(first, k, gamma=9.0, method="cvar", group=group)):  # fmt: skip
                found += [sums.lower, sums.upper]
        with rounding.outward():
            found += extremes(pairs, 7, method="cvar", group=group)
        whole = total(first, group=group)
        found += [whole.lower, whole.upper]
    return found


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    try:
        for cut in CUTS:
            mine = slice(cut, BATCH) if rank else slice(0, cut)
            torch.save(_everything(mine, dist.group.WORLD), f"{folder}/{cut}_{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    one = _everything(slice(0, BATCH), None)
    for cut in CUTS:
        ranks: list[Any] = [torch.load(tmp_path / f"{cut}_{rank}.pt") for rank in range(2)]
        for alone, first, second in zip(one, *ranks, strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0)
            torch.testing.assert_close(first, alone, rtol=1e-10, atol=1e-10)


def test_one_process_is_right() -> None:
    for drawn in _terms():
        pairs = [(t.sign, t.g) for t in drawn]
        for f, e in zip(extremes(pairs, 7, method="cvar"), plain(drawn, 7), strict=True):
            assert bool((f >= e - 1e-12).all())
            assert float(f.sum() / e.sum()) < 1.03
