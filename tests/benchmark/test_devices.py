"""A device is used by one batch at a time, whatever threads and processes ask for it; the devices are made up."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from robust_plugins.benchmark import executing
from robust_plugins.benchmark.work import Answers, Job

HOLDER = """
import sys, time
from robust_plugins.benchmark import executing
held = executing._lock("cuda:0")
print("held" if held is not None else "refused", flush=True)
time.sleep(100)
"""


@pytest.fixture(autouse=True)
def two_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where the locks are
    monkeypatch.setattr(tempfile, "tempdir", None)


def job(device: str) -> Job:
    return Job(subject="s", kind="clean", component=b"", ball=None, samples=(0,), seed=0, device=device)


def ran(devices: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Counter[str], int, int]:
    """Runs a job on each at once; how many each device got, the most on one at a time, and the most in all."""
    guard, now, most, used = threading.Lock(), Counter[str](), [0, 0], Counter[str]()

    def answered(placed: Job, packed: bytes = b"") -> Answers:
        with guard:
            used[placed.device] += 1
            now[placed.device] += 1
            most[0], most[1] = max(most[0], now[placed.device]), max(most[1], now.total())
        time.sleep(0.03)
        with guard:
            now[placed.device] -= 1
        return Answers([{}])

    monkeypatch.setattr(executing, "answered", answered)
    with ThreadPoolExecutor(6) as pool:
        numbers = list(pool.map(lambda i: executing.execute(i, job(devices[i]), b"", False)[0], range(len(devices))))
    assert numbers == list(range(len(devices)))
    return used, most[0], most[1]


def test_each_device_has_one_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    used, at_once, together = ran(["cuda"] * 8, monkeypatch)
    assert set(used) == {"cuda:0", "cuda:1"}
    assert (at_once, together) == (1, 2)


def test_a_device_that_is_named_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    used, at_once, together = ran(["cuda:1"] * 4, monkeypatch)
    assert (used, at_once, together) == (Counter({"cuda:1": 4}), 1, 1)


def test_the_processor_is_everybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    used, at_once, _ = ran(["cpu"] * 6, monkeypatch)
    assert used == Counter({"cpu": 6})
    assert at_once > 1


def test_without_the_lock_batches_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail."""
    monkeypatch.setattr(executing, "_lock", lambda name: executing.os.open("/dev/null", executing.os.O_RDONLY))
    assert ran(["cuda:0"] * 6, monkeypatch)[1] > 1


def test_another_process_holds_it_until_it_ends() -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert executing._lock("cuda:0") is None
    other = executing._lock("cuda:1")
    assert other is not None
    executing.os.close(other)
    process.kill()
    process.communicate()
    mine = executing._lock("cuda:0")
    assert mine is not None
    executing.os.close(mine)
