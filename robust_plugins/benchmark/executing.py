"""`execute`: one job in whatever worker it was sent to, and in a process of its own that may crash or be killed."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robust_plugins.benchmark.work import POISONED, Answers, Job, answered, failed, known, serve
from robust_plugins.decisions.results import Verdict
from robust_plugins.harness.served import BEGINNING, DiedError, OverdueError, Served


@dataclass(frozen=True)
class OnDisk:
    """A packed subject in a file that every worker can read."""

    path: str

    def read(self) -> bytes:
        """The packed subject."""
        return Path(self.path).read_bytes()


@dataclass(frozen=True)
class InRay:
    """A packed subject in the object store of a Ray cluster."""

    reference: Any

    def read(self) -> bytes:
        """The packed subject."""
        import ray

        return bytes(ray.get(self.reference))


@dataclass(frozen=True)
class Held:
    """A packed subject that the worker was given beforehand, by `hold`."""

    key: str

    def read(self) -> bytes:
        """The packed subject."""
        return _held[self.key]


_held: dict[str, bytes] = {}


def hold(packed: Mapping[str, bytes]) -> None:
    """Gives this process packed subjects by their hashes."""
    _held.update(packed)


def let_go(packed: Mapping[str, bytes]) -> None:
    """Takes them away."""
    for key in packed:
        _held.pop(key, None)


Parcel = bytes | OnDisk | InRay | Held
"""A packed subject, or where it is."""

_own = threading.local()
_all: list[Served] = []
_guard = threading.Lock()
_stops = 0
"""How often all processes were stopped: a job whose own was is not tried again."""


def execute(number: int, job: Job, parcel: Parcel, isolate: bool) -> tuple[int, Answers]:
    """Runs a job, and returns its answers with its number, whatever happens to the process that computes them."""
    with _device_of(job) as placed:
        if not isolate:
            return number, answered(placed, b"" if known(placed) else _content(parcel))
        return number, _without_what_crashes(placed, parcel)


def stop_all() -> None:
    """Kills the processes of all threads of this one; jobs that run there have no answer, and raise DiedError."""
    global _own, _stops
    with _guard:
        _stops += 1
        for process in _all:
            process.stop()
        _all.clear()
    _own = threading.local()


def _without_what_crashes(job: Job, parcel: Parcel) -> Answers:
    """The answers of a job; where it crashes the process, those of its halves, until the samples that do it are alone.

    A component that crashes on many samples is given up after about as many crashes as it takes to find two of them.
    """
    left, before = 2 * math.ceil(math.log2(len(job.samples) or 1)) + 2, _stops

    def answers(places: Sequence[int]) -> Answers:
        nonlocal left
        if not left:
            cause = "not run: the component crashes on other samples of its batch"
            return replace(failed(len(places), Verdict.ERROR, cause), calls=[tuple(places)] * len(places))
        share = len(places) / len(job.samples)
        part = replace(job, samples=tuple(job.samples[i] for i in places), timeout=job.timeout * share)
        start = time.perf_counter()
        try:
            return replace(_isolated(part, parcel), calls=[tuple(places)] * len(places))
        except DiedError as error:
            if before != _stops:
                raise
            left -= 1
            if len(places) == 1 or job.kind == POISONED:  # a training cannot be halved
                found = failed(len(places), Verdict.ERROR, str(error), time.perf_counter() - start)
                return replace(found, calls=[tuple(places)] * len(places))
        half = len(places) // 2
        first, second = answers(places[:half]), answers(places[half:])
        return Answers(first.rows + second.rows, first.artifacts | second.artifacts, first.calls + second.calls)

    return answers(range(len(job.samples)))


def _isolated(job: Job, parcel: Parcel) -> Answers:
    process = _process()
    start = time.perf_counter()
    limit = None if job.timeout == float("inf") else job.timeout
    subject, needed = ("subject", job.subject, job.device), (job.component, job.modules)
    try:
        there = {subject, needed} <= process.noted or process.ask((job, None), BEGINNING)
        start = time.perf_counter()  # the imports are not its own time
        answers = process.ask((job, b"" if there else _content(parcel)), limit)
        if subject not in process.noted:
            process.noted.clear()  # it keeps a few subjects, the last one among them
        if there:
            process.noted |= {subject, needed}
    except OverdueError as error:
        return failed(len(job.samples), Verdict.TIMEOUT, str(error), time.perf_counter() - start)
    assert isinstance(answers, Answers)
    return answers


def _process() -> Served:
    process: Served | None = getattr(_own, "process", None)
    if process is None:
        process = _own.process = Served(serve, quiet=True)
        with _guard:
            _all.append(process)
    return process


def _content(parcel: Parcel) -> bytes:
    return parcel if isinstance(parcel, bytes) else parcel.read()


@contextlib.contextmanager
def _device_of(job: Job) -> Iterator[Job]:
    """The job on a device that no other job of this machine uses meanwhile; the CPU is everybody's."""
    if not job.device.startswith("cuda"):
        yield job
        return
    import torch

    count = torch.cuda.device_count()
    names = [job.device] if ":" in job.device else [f"cuda:{i}" for i in range(count)]
    while True:
        for name in names:
            held = _lock(name)
            if held is not None:
                try:
                    yield replace(job, device=name)
                finally:
                    os.close(held)
                return
        time.sleep(0.05)


def _lock(name: str) -> int | None:
    """A lock on a device, which ends with the process that has it; None where another one has it."""
    import fcntl

    path = Path(tempfile.gettempdir()) / f"robust_plugins-{os.getuid()}-{name.replace(':', '-')}.lock"
    held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held
