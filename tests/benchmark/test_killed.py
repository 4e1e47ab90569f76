"""Runs that are killed at random moments, or interrupted: what is in the store stays, and the rest follows."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.length import length
from support.studies import Moods, answers, study

import robust_plugins as rp
from robust_plugins.benchmark.store import Store
from robust_plugins.registry.registry import Registry, using

pytest.importorskip("pydantic")

pytestmark = pytest.mark.slow

PROGRAM = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has its jobs in the background ignore
import robust_plugins as rp
from support.studies import Moods, study
rp.register(Moods(), "test")
isolate = sys.argv[2] == "isolated"
slow = {"use": "test:moody", "parameters": {"seconds": 0.1}}
print("begun", flush=True)
found = study(Path(sys.argv[1]), components=[slow, {"use": "interval:ibp"}], seed=[0, 1, 2, 3],
              run={"batch_size": 2, "isolate": isolate, "jobs": 2 if isolate else 1})
outcome = found.run()
print("interrupted" if outcome.interrupted else "done", flush=True)
"""
TOTAL = 12 + 24 + 4 * 24


@pytest.fixture(autouse=True)
def moods() -> Iterator[None]:
    with using(Registry(entry_points=False, block=(), load=())):
        rp.register(Moods(), "test")
        yield


def begun(folder: Path, how: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", PROGRAM, str(folder), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)


def written(folder: Path) -> int:
    try:
        with Store(folder / "s.sqlite") as store:
            return len(store)
    except rp.ArgumentError:  # not there yet
        return 0


@pytest.mark.parametrize("how", ["isolated", "here"])
def test_killed_many_times_and_resumed(tmp_path: Path, how: str) -> None:
    draw = random.Random(0)
    counts = [0]
    for _ in range(length(3, 10)):
        process = begun(tmp_path, how)
        enough = counts[-1] + draw.randrange(1, 8)
        while written(tmp_path) < enough and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.random() / 10)
        process.kill()
        process.communicate()
        counts.append(written(tmp_path))
    assert counts[1] > 0
    assert counts == sorted(counts)
    assert counts[-1] < TOTAL
    process = begun(tmp_path, how)
    assert process.communicate()[0].split() == [b"begun", b"done"]
    slow = {"use": "test:moody", "parameters": {"seconds": 0.1}}
    whole = study(tmp_path / "whole", components=[slow, {"use": "interval:ibp"}], seed=[0, 1, 2, 3],
                  run={"batch_size": 2, "isolate": False})  # fmt: skip
    whole.run()
    expected = answers(whole)
    assert len(expected) == TOTAL
    assert answers(study(tmp_path)) == expected


@pytest.mark.parametrize("how", ["isolated", "here"])
def test_an_interrupt_ends_a_run_at_once_and_leaves_nothing_running(tmp_path: Path, how: str) -> None:
    process = begun(tmp_path, how)
    while written(tmp_path) < 20:
        assert process.poll() is None
        time.sleep(0.02)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.communicate()[0].split() == [b"begun", b"interrupted"]
    assert time.monotonic() - start < 30
    count = written(tmp_path)
    assert 20 <= count < TOTAL
    assert count % 2 == 0
    time.sleep(1)
    assert written(tmp_path) == count


STUDY = """store = "k.sqlite"
keep = ["examples"]
[[models]]
name = "standard"
source = "mlp(widths=(32,))"
train = { epochs = 3 }
[[models]]
name = "certified"
source = "mlp(widths=(32,))"
train = { recipe = "ibp", eps = 0.05, epochs = 3 }
[[data]]
name = "digits"
samples = 40
[[balls]]
eps = [0.01, 0.03, 0.06, 0.1]
[[components]]
use = "rp:fgsm"
[[components]]
use = "rp:pgd(steps=20)"
[[components]]
use = "rp:apgd(steps=20)"
[[components]]
use = "interval:ibp"
[[components]]
use = "interval:crown"
[[components]]
use = "interval:alpha-crown"
[run]
batch_size = 5
jobs = 2
"""
ROWS = 2 * 40 * (1 + 4 * 6)


def test_a_study_of_real_components_is_killed_and_resumed(tmp_path: Path) -> None:
    def run(folder: Path) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        (folder / "k.toml").write_text(STUDY)
        code = "from robust_plugins.cli import main; main()"
        command = [sys.executable, "-c", code, "bench", "run", str(folder / "k.toml"), "--quiet"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)

    def count() -> int:
        try:
            with Store(tmp_path / "part" / "k.sqlite") as store:
                return len(store)
        except rp.ArgumentError:
            return 0

    draw, kills = random.Random(1), length(2, 10)
    counts = [0]
    for number in range(kills):
        process = run(tmp_path / "part")
        enough = counts[-1] + draw.randrange(1, (ROWS - counts[-1]) // (kills + 1 - number))
        while count() < enough and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        counts.append(count())
    assert 0 < counts[1] <= counts[-1] < ROWS
    assert counts == sorted(counts)
    for folder in ("part", "whole"):
        said, _ = (process := run(tmp_path / folder)).communicate()
        assert process.returncode == 0, said.decode()
        assert b"no violation" in said
    whole, part = (answers(rp.load_study(tmp_path / folder / "k.toml")) for folder in ("whole", "part"))
    assert len(whole) == ROWS
    assert part == whole
