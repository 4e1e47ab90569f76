"""`run_instances`: verifies instances in processes of their own, which are killed when their time is over."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from robust_plugins.adapters.onnx.counterexamples import write_counterexample
from robust_plugins.adapters.onnx.instances import Instance, Outcome
from robust_plugins.adapters.onnx.network import read_network
from robust_plugins.adapters.onnx.properties import read_property
from robust_plugins.adapters.onnx.verification import verify
from robust_plugins.errors import RobustPluginsError
from robust_plugins.harness.served import DiedError, OverdueError, Served
from robust_plugins.harness.serving import Pipe

GRACE = 1.0
"""Seconds beyond the timeout after which a process is killed; those that keep their time answer by themselves."""


def answer(
    instance: Instance, folder: Path, counterexample: Path, *, seed: int = 0, proof: Path | None = None
) -> tuple[str, str]:
    """The answer to an instance, whose files are in `folder`, and a message; `sat` writes its counterexample.

    `unsat` adds its proof to a file, where one is named.

    The instance's timeout counts from the call on, reading included. What is refused or fails is the answer `error`.
    """
    end = time.monotonic() + instance.timeout
    try:
        network, question = read_network(folder / instance.onnx), read_property(folder / instance.vnnlib)
        found = verify(network, question, timeout=max(0.0, end - time.monotonic()), seed=seed, proof=proof)
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
        process = Served(target or _serve, (str(folder), str(counterexamples), seed, threads))
        try:
            while not failures:
                outcome = _outcome(process, waiting.get_nowait())
                with lock:
                    told(outcome)
        except queue.Empty:
            pass
        except BaseException as error:  # told failed: the others stop, and the caller is told
            failures.append(error)
        finally:
            process.leave()

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


def _outcome(process: Served, instance: Instance) -> Outcome:
    """The answer of the process, `timeout` where it was killed, `error` where it died."""
    began = time.monotonic()
    try:
        process.start()
        began = time.monotonic()
        found, message = process.ask((instance.onnx, instance.vnnlib, instance.timeout), instance.timeout + GRACE)
    except OverdueError:
        found, message = "timeout", "killed"
    except DiedError as error:
        found, message = "error", str(error)
    return Outcome(instance, found, time.monotonic() - began, message)


def _serve(pipe: Pipe, folder: str, counterexamples: str, seed: int, threads: int) -> None:
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
