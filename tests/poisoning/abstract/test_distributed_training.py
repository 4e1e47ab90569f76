"""Two processes with a part of every batch each end with the bounds that one process has for the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.small_trainings import Batches, data, network, train

import robust_plugins as rp
from robust_plugins.errors import ArgumentError

SETTINGS: list[tuple[rp.PoisoningBudget, dict[str, Any]]] = [
    (rp.PoisoningBudget(points=2, eps=0.02, labels=1), {}),
    (rp.PoisoningBudget(points=2, eps=0.02), {"clip_gradient": rp.NormClip(0.5), "optimizer": rp.Adam(lr=0.02)}),
    (rp.PoisoningBudget.substitution(1), {"clip_gradient": 0.05}),
    (rp.PoisoningBudget.addition(1), {"clip_gradient": 0.05}),
    (rp.PoisoningBudget.removal(1), {}),
    (rp.PoisoningBudget(points=20, eps=2.0), {"stop_when_vacuous": True}),
]


def _runs(batches: Batches, group: dist.ProcessGroup | None) -> list[dict[str, torch.Tensor]]:
    found = []
    for budget, how in SETTINGS:
        run = train(network(), batches, budget, aggregation="cvar", group=group, **how)
        found.append({f"{n} {end}": getattr(p, end) for n, p in run.parameters.items() for end in ("lower", "upper")}
                     | {n: p.detach() for n, p in run.nominal.named_parameters()})  # fmt: skip
    return found


def _rank(rank: int, folder: str) -> None:
    import warnings

    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    try:
        # The second process has nothing of the last batch.
        parts = [(x[:6], y[:6]) if rank == 0 else (x[6:], y[6:]) for x, y in data(25)]
        torch.save(_runs(parts, dist.group.WORLD), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:update")
@pytest.mark.filterwarnings("ignore:the budget has")
@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    one = _runs(data(25), None)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for alone, first, second in zip(one, *ranks, strict=True):
        for name, value in alone.items():
            torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
            torch.testing.assert_close(first[name], value, rtol=1e-9, atol=1e-9)


def test_only_sums_are_exchanged(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        with pytest.raises(ArgumentError, match="`aggregation` is 'topk'; accepted: \"cvar\" with a process group"):
            train(network(), data(), group=dist.group.WORLD)
    finally:
        dist.destroy_process_group()
