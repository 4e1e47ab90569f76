"""`run_instances`: verifies instances in processes of their own, which are killed when their time is over."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from robust_plugins.adapters.onnx.counterexamples import write_counterexample
from robust_plugins.adapters.onnx.instances import Instance, Outcome
from robust_plugins.adapters.onnx.network import read_network
from robust_plugins.adapters.onnx.properties import read_property
from robust_plugins.adapters.onnx.verification import verify
from robust_plugins.errors import RobustPluginsError

GRACE = 1.0
"""Seconds beyond the timeout after which a process is killed; those that keep their time answer by themselves."""
BEGINNING = 300.0
"""Seconds that a process has for its imports."""


def answer(instance: Instance, folder: Path, counterexample: Path, *, seed: int = 0) -> tuple[str, str]:
    """The answer to an instance, whose files are in `folder`, and a message; `sat` writes its counterexample.

    The instance's timeout counts from the call on, reading included. What is refused or fails is the answer `error`.
    """
    end = time.monotonic() + instance.timeout
    try:
        network, question = read_network(folder / instance.onnx), read_property(folder / instance.vnnlib)
        found = verify(network, question, timeout=max(0.0, end - time.monotonic()), seed=seed)
        if found.witness is not None:
            counterexample.parent.mkdir(parents=True, exist_ok=True)
            write_counterexample(counterexample, found.witness.x, found.witness.replay.outputs)
    except RobustPluginsError as error:
        return "error", str(error)
    except Exception as error:  # a bug, or no memory: the other instances go on
        return "error", f"{type(error).__name__}: {error}"
    return found.answer, found.message


def run_instances(
    instances: Sequence[Instance],
    folder: Path,
    counterexamples: Path,
    told: Callable[[Outcome], None],
    *,
    jobs: int = 1,
    seed: int = 0,
    target: Callable[..., None] | None = None,
) -> None:
    """Verifies instances, and calls `told` with each outcome, one at a time.

    - `folder`: what the instances' paths are relative to
    - `counterexamples`: a folder for those that are found
    - `jobs`: processes at once; each has its share of the cores
    - `target`: what a process runs instead, for tests
    """
    waiting: queue.SimpleQueue[Instance] = queue.SimpleQueue()
    for instance in instances:
        waiting.put(instance)
    failures: list[BaseException] = []
    lock = threading.Lock()
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def work() -> None:
        worker = _Worker(target or _serve, (str(folder), str(counterexamples), seed, threads))
        try:
            while not failures:
                outcome = worker.run(waiting.get_nowait())
                with lock:
                    told(outcome)
        except queue.Empty:
            pass
        except BaseException as error:  # told failed: the others stop, and the caller is told
            failures.append(error)
        finally:
            worker.leave()

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(jobs, len(instances)))]
    for thread in workers:
        thread.start()
    try:
        for thread in workers:
            while thread.is_alive():
                thread.join(0.2)  # so that an interrupt is seen
    except BaseException as error:
        failures.append(error)
        raise
    if failures:
        raise failures[0]


class _Worker:
    """A process that answers instances one after the other, begun again when it was killed."""

    def __init__(self, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._target, self._arguments = target, arguments
        self._process: Any = None
        self._pipe: Any = None

    def run(self, instance: Instance) -> Outcome:
        """The answer of the process, `timeout` where it was killed, `error` where it died."""
        began = time.monotonic()
        try:
            if self._process is None:
                self._start()
            began = time.monotonic()
            self._pipe.send((instance.onnx, instance.vnnlib, instance.timeout))
            if not self._pipe.poll(instance.timeout + GRACE):
                self.stop()
                return Outcome(instance, "timeout", time.monotonic() - began, "killed")
            found, message = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            self.stop()
            return Outcome(instance, "error", time.monotonic() - began, f"its process ended with exit code {code}")
        return Outcome(instance, found, time.monotonic() - began, message)

    def _start(self) -> None:
        # Forked processes would share locks with threads of this one.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=self._target, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(BEGINNING):
            raise EOFError
        self._pipe.recv()

    def leave(self) -> None:
        """Lets the process end by itself, which it does when nobody asks any more; kills it where it does not."""
        if self._process is not None:
            self._pipe.close()
            self._process.join(2)
        self.stop()

    def stop(self) -> None:
        """Kills the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Connection, folder: str, counterexamples: str, seed: int, threads: int) -> None:
    """Answers instances until the other end is closed."""
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), threads))
    pipe.send("ready")
    while True:
        try:
            instance = Instance(*pipe.recv())
        except EOFError:
            return
        path = Path(counterexamples) / f"{instance.name}.counterexample"
        pipe.send(answer(instance, Path(folder), path, seed=seed))
