"""Other people's training loops: accumulation, plain ones, and several processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.by_hand import BALL, MIXED, fixed, mixed_ibp, network, samples, trained

import robust_plugins as rp


@pytest.mark.parametrize("worst", ["art:fgsm", "interval:ibp"])
def test_gradient_accumulation(worst: str) -> None:
    model, (x, y) = network(), samples()
    loss = rp.MixedLoss(worst=worst, gamma=0.5, ball=BALL, schedule=fixed())
    loss(model, x, y).backward()
    whole = [p.grad for p in model.parameters()]
    model.zero_grad()
    for part in (slice(0, 3), slice(3, 6)):
        (loss(model, x[part], y[part]) / 2).backward()
    for parameter, expected in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_a_bare_loop() -> None:
    model, (x, y) = network(), samples()
    loss, optimizer = mixed_ibp(schedule=rp.Ramp(start=0, end=20)), torch.optim.Adam(model.parameters(), lr=0.02)
    values = []
    for epoch in range(60):
        optimizer.zero_grad()
        value = loss(model, x, y)
        value.backward()
        optimizer.step()
        loss.step(epoch, 0, 1)
        values.append(value.item())
    assert values[-1] < min(values[20], 1.0)


_PROCESS = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from support.by_hand import MIXED, samples, trained
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
x, y = samples()
found = [trained(x[rank::2], y[rank::2], *case, DistributedDataParallel) for case in MIXED]
torch.save(found, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_parameters_of_one(tmp_path: Path) -> None:
    here = Path(__file__).parents[1]  # where `support` is
    processes = [
        subprocess.Popen([sys.executable, "-c", _PROCESS, str(rank), str(tmp_path)], cwd=here) for rank in range(2)
    ]
    expected = [trained(*samples(), *case, lambda model: model) for case in MIXED]
    assert [process.wait(200) for process in processes] == [0, 0]
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)
