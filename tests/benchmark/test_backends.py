"""Studies on processes, on a Dask and on a Ray cluster, with workers that are killed in mid-run: the same records."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.studies import Moods, answers, study

import robust_plugins as rp
from robust_plugins.benchmark.store import Store
from robust_plugins.registry.registry import Registry, using

pytest.importorskip("pydantic")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the libraries, about threads and ports


@pytest.fixture(autouse=True)
def moods() -> Iterator[None]:
    with using(Registry(entry_points=False, block=(), load=())):
        rp.register(Moods(), "test")
        yield


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


SLOW = [{"use": "test:moody", "parameters": {"seconds": 0.3}}, {"use": "interval:ibp"}]


def once(tmp_path: Path, **run: object) -> dict[str, dict[str, object]]:
    """The records of a study on this backend, each written once, and none of them made in this process."""
    teller = {"use": "test:moody", "name": "teller", "parameters": {"mood": "tells"}}
    found = study(tmp_path, components=[*SLOW, teller], run={"batch_size": 5, **run})
    assert found.run().written == 84
    rows = answers(found)
    places = {row["error"] for row in rows.values() if row["component"] == "teller"}
    assert all(re.fullmatch(r"RuntimeError: process \d+", str(place)) for place in places)
    assert (f"RuntimeError: process {os.getpid()}" in places) is (run == {"isolate": False})
    return {name: row for name, row in rows.items() if row["component"] != "teller"}


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, dict[str, object]]:
    return once(tmp_path / "here", isolate=False)


@pytest.mark.parametrize("isolate", [False, True])
def test_processes(tmp_path: Path, expected: dict[str, dict[str, object]], isolate: bool) -> None:
    assert once(tmp_path, backend="loky", jobs=2, isolate=isolate) == expected


def test_threads_with_processes_of_their_own(tmp_path: Path, expected: dict[str, dict[str, object]]) -> None:
    assert once(tmp_path, backend="threading", jobs=2) == expected


def test_a_crash_that_takes_a_worker_with_it_does_not_end_the_study(tmp_path: Path) -> None:
    components = [{"use": "test:moody", "parameters": {"mood": "crashes"}}, {"use": "interval:ibp"}]
    found = study(
        tmp_path, components=components, run={"batch_size": 5, "backend": "loky", "jobs": 2, "isolate": False}
    )
    outcome = found.run()
    assert outcome.written == 60
    assert {component for component, _ in outcome.failures} == {"test:moody"}
    assert outcome.failures.total() == 24
    causes = {cause for _, cause in outcome.failures}
    assert any("SIGSEGV" in cause for cause in causes)
    # A component that crashes on sample after sample is given up.
    assert all("SIGSEGV" in cause or cause.startswith("not run: the component crashes") for cause in causes)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A Dask scheduler and two workers, as processes: the address, and the workers."""
    pytest.importorskip("distributed")
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, log: str) -> Path:
        path = tmp_path / log
        with path.open("wb") as file:
            command = [sys.executable, "-m", "dask", *arguments]
            processes.append(subprocess.Popen(command, stdout=file, stderr=file, cwd=tmp_path))
        return path

    try:
        log = start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", log="scheduler.log")
        address = wait(lambda: re.search(r"tcp://127\.0\.0\.1:\d+", log.read_text()))[0]
        for i in range(2):
            start("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", log=f"worker{i}.log")
        wait(lambda: log.read_text().count("Register worker") == 2)
        yield address, processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait(condition: Callable[[], object], seconds: float = 500) -> object:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come about in time")


@pytest.mark.parametrize("isolate", [False, True])
def test_a_dask_cluster_that_loses_a_worker(
    tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]], expected: dict[str, dict[str, object]],
    isolate: bool,
) -> None:  # fmt: skip
    address, workers = cluster
    killed = []

    def written() -> int:
        try:
            with Store(tmp_path / "s.sqlite") as store:
                return len(store)
        except rp.ArgumentError:  # not there yet
            return 0

    def kill() -> None:
        wait(lambda: written() >= 15)
        os.kill(workers[0].pid, signal.SIGKILL)
        killed.append(written())

    thread = threading.Thread(target=kill)
    thread.start()
    found = once(tmp_path, backend="dask", address=address, jobs=-1, isolate=isolate)
    thread.join()
    assert killed[0] < 84
    assert found == expected


def test_a_ray_cluster(tmp_path: Path, expected: dict[str, dict[str, object]]) -> None:
    pytest.importorskip("ray")
    assert once(tmp_path, backend="ray", jobs=2, isolate=False) == expected
