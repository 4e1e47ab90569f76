"""`run`: the batches of a study as joblib tasks, and their records into its store as they come."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from robust_plugins.benchmark.configuration import Configuration, Run
from robust_plugins.benchmark.executing import Held, InRay, OnDisk, Parcel, execute, hold, let_go, stop_all
from robust_plugins.benchmark.planning import Batch, plan
from robust_plugins.benchmark.poisoned import poisoned_batches
from robust_plugins.benchmark.records import digest
from robust_plugins.benchmark.store import Store
from robust_plugins.benchmark.subjects import Subject
from robust_plugins.benchmark.work import Answers, Job
from robust_plugins.errors import PluginError

FAILURES = ("timeout", "error")

DEATHS = ("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker", "FutureCancelledError")
"""What loky and Dask raise where a worker died."""


@dataclass
class Outcome:
    """The outcome of a run: how many records it wrote, and what failed."""

    store: Path
    total: int = 0
    """Records of the study."""
    there: int = 0
    """Of these, in the store before the run."""
    shared: int = 0
    """Of these, answered by another record of the study, which asks the same under another name."""
    written: int = 0
    """Of these, by this run."""
    seconds: float = 0.0
    """Of the run."""
    busy: float = 0.0
    """Of the components, summed over all that ran at once."""
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many of the written records have no answer, by component and cause."""
    errors: int = 0
    """Of these, without those for which time ran out."""
    interrupted: bool = False

    def __str__(self) -> str:
        lines = [f"{self.written} records written in {self.seconds:.1f} s, {self.there} were there, of {self.total}"]
        if self.shared:
            lines[0] += f"; {self.shared} ask what another one asks, and have its answer"
        lines += [f"{name}: no answer for {n} samples: {cause}" for (name, cause), n in self.failures.most_common(10)]
        return "\n".join([*lines, f"store: {self.store}"])


def run(
    configuration: Configuration,
    subjects: Sequence[Subject],
    store: Store,
    *,
    folder: Path = Path(),
    retry: bool = False,
    told: Callable[[Batch, Answers], None] = lambda batch, answers: None,
    begun: Callable[[list[Batch], int], None] = lambda batches, total: None,
) -> Outcome:
    """Computes all rows of a study that its store does not have, and writes each batch when it is complete.

    - `folder`: what paths in it are relative to
    - `retry`: records of errors and timeouts are computed again
    - `begun`: is told of the batches that are left, and how many rows the study has
    - `told`: is told of each batch with its answers, when they are written

    KeyboardInterrupt drops the batches that are running, and ends the run with `interrupted`; all others are written.
    """
    start, created = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    there = store.identities(answered=retry)
    named = store.asked()
    found = plan(configuration, subjects, there, created, named)
    left, total, already, before = found.batches, found.total, found.there, set(there)
    for batch in poisoned_batches(configuration, folder, created):
        total += len(batch)
        already += len(before.intersection(batch.identities)) if before.issuperset(batch.identities) else 0
        if not there.issuperset(batch.identities):
            left.append(batch)
        for row in batch.asked:  # the same training, or input, under another name is answered once
            if row.identity in there and row not in named:
                found.aliases.append(row)
            there.add(row.identity)
    outcome = Outcome(store.path, total, already, total - already - sum(map(len, left)))
    begun(left, total)
    store.insert((), _kept(configuration, subjects))
    store.insert_aliases(found.aliases)
    try:
        with _answers(configuration.run, left) as coming:
            for number, answers in coming:
                batch = left[number]
                store.insert_rows(batch.rows(answers), answers.artifacts, replace=retry)
                outcome.written += len(batch)
                outcome.busy += sum(answer.get("seconds") or 0.0 for answer in answers.rows)
                for own, answer in zip(batch.own, answers.rows, strict=True):
                    if answer["verdict"] in FAILURES:
                        outcome.failures[own.get("component", batch.component), answer["error"]] += 1
                        outcome.errors += answer["verdict"] == "error"
                told(batch, answers)
    except KeyboardInterrupt:
        outcome.interrupted = True
    outcome.seconds = time.perf_counter() - start
    return outcome


def _kept(configuration: Configuration, subjects: Sequence[Subject]) -> dict[str, bytes]:
    """The weights and inputs that are to be in the store, by their hashes."""
    found: dict[str, bytes] = {}
    if not {"weights", "inputs"} & set(configuration.keep):
        return found
    from safetensors.torch import save

    for subject in subjects:
        if "weights" in configuration.keep:
            # Copies, since tensors that share memory cannot be written.
            state = {name: t.detach().cpu().clone() for name, t in subject.module.state_dict().items()}
            found[subject.model_hash] = save(state)
        if "inputs" in configuration.keep:
            for name, x in zip(subject.input_hashes, subject.x, strict=True):
                found[name] = save({"x": x.contiguous()})
    return found


@contextmanager
def _answers(run: Run, left: Sequence[Batch]) -> Iterator[Iterator[tuple[int, Answers]]]:
    """The answers of all batches, with their numbers, as they come; leaving the block ends what still runs."""
    if not left:
        yield iter(())
        return
    with ExitStack() as stack:
        parcels, begin = _backend(run, left, stack)
        yield stack.enter_context(closing(_answered(run, left, parcels, begin)))


Call = tuple[int, Job, Parcel, bool]
"""The arguments of `execute`."""
Answered = Generator[tuple[int, Answers], None, None]


def _answered(
    run: Run, left: Sequence[Batch], parcels: dict[str, Parcel], begin: Callable[[list[Call]], Answered]
) -> Answered:
    """Runs all batches; those that were lost with a worker run again, in processes that may crash."""
    done: set[int] = set()
    isolate, deaths = run.isolate, 0
    while len(done) < len(left):
        rest = [
            (number, batch.job, parcels[batch.job.subject], isolate)
            for number, batch in enumerate(left)
            if number not in done
        ]
        found = begin(rest)
        try:
            for number, answers in found:
                done.add(number)
                deaths = 0
                yield number, answers
        except Exception as error:
            deaths += 1
            if type(error).__name__ not in DEATHS or deaths > 3:
                raise
            isolate = True
        finally:
            stop_all()  # before the generator is closed, which waits for the threads
            found.close()


def _with_joblib(calls: list[Call], **options: Any) -> Answered:
    import joblib

    with joblib.parallel_config(**options):
        # joblib would gather quick tasks, and a gathered one is lost as a whole where its worker is.
        parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs")
        found: Answered = parallel(joblib.delayed(execute)(*call) for call in calls)
    return found


def _with_threads(calls: list[Call], jobs: int) -> Answered:
    """Runs `jobs` batches at once, each thread with a process of its own; joblib looks every 10 ms who is ready."""
    if jobs == 1:
        for call in calls:
            yield execute(*call)
        return
    ready: SimpleQueue[Future[tuple[int, Answers]]] = SimpleQueue()
    waiting, running = iter(calls), set[Future[tuple[int, Answers]]]()
    with ThreadPoolExecutor(jobs) as pool:

        def begin(count: int) -> None:
            for call in islice(waiting, count):
                future = pool.submit(execute, *call)
                running.add(future)
                future.add_done_callback(ready.put)

        try:
            begin(jobs)
            while running:
                future = ready.get()
                running.remove(future)
                begin(1)  # before these answers are written, so that no thread waits for that
                yield future.result()
        finally:
            while not all(future.done() for future in running):  # a thread may have been between two processes
                stop_all()
                time.sleep(0.01)


def _with_dask(calls: list[Call], client: Any, jobs: int) -> Answered:
    """Runs on all workers, also those that come later; joblib would run here where there is one core so far."""
    from distributed import as_completed

    waiting = iter(calls)

    def submitted(count: int | None) -> list[Any]:
        # Not pure: two batches with the same arguments do not exist, and hashing them takes time.
        return [client.submit(execute, *call, pure=False) for call in islice(waiting, count)]

    running = as_completed(submitted(None if jobs == -1 else jobs), with_results=False)
    try:
        for future in running:
            yield future.result()
            for another in submitted(1):
                running.add(another)
    finally:
        client.cancel(list(running.futures))


def _with_ray(calls: list[Call], jobs: int) -> Answered:
    """Runs `jobs` batches at once; joblib's back end for Ray gives no answer before all are there."""
    import ray

    task, waiting = ray.remote(execute), iter(calls)
    running = [task.remote(*call) for call in islice(waiting, jobs)]
    try:
        while running:
            done, running = ray.wait(running)
            for one in done:
                yield ray.get(one)
                running += [task.remote(*call) for call in islice(waiting, 1)]
    finally:
        for one in running:
            ray.cancel(one, force=True)


def _backend(
    run: Run, left: Sequence[Batch], stack: ExitStack
) -> tuple[dict[str, Parcel], Callable[[list[Call]], Answered]]:
    """Where each subject is for the workers, and what begins the work."""
    packed = {batch.job.subject: batch.packed for batch in left}
    jobs = run.jobs if run.jobs > 0 else os.cpu_count() or 1
    if run.backend == "threading":
        return dict(packed), partial(_with_threads, jobs=jobs)
    if run.backend == "loky":
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for key, content in packed.items():
            (folder / key).write_bytes(content)
        stack.callback(_end_loky)
        return {key: OnDisk(str(folder / key)) for key in packed}, partial(_with_joblib, backend="loky", n_jobs=jobs)
    if run.backend == "dask":
        return {key: Held(key) for key in packed}, partial(_with_dask, client=_dask(run, packed, stack), jobs=run.jobs)
    return _ray(run, packed, stack, jobs), partial(_with_ray, jobs=jobs)


def _end_loky() -> None:
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _dask(run: Run, packed: dict[str, bytes], stack: ExitStack) -> Any:
    try:
        from distributed import Client, WorkerPlugin
    except ImportError as error:
        raise PluginError('backend "dask" needs it; install it: pip install "robust_plugins[dask]"') from error

    class Subjects(WorkerPlugin):  # type: ignore[misc] # of a library without types
        """Gives the subjects to every worker, also to those that come later; data that is scattered dies with one."""

        def setup(self, worker: Any) -> None:
            hold(packed)

        def teardown(self, worker: Any) -> None:
            let_go(packed)

    jobs = None if run.jobs == -1 else run.jobs
    client = Client(run.address) if run.address else Client(n_workers=jobs, threads_per_worker=1)
    stack.enter_context(client)
    name = f"robust_plugins-{digest(*packed)}"
    client.register_plugin(Subjects(), name=name)
    stack.callback(client.unregister_worker_plugin, name)
    return client


def _ray(run: Run, packed: dict[str, bytes], stack: ExitStack, jobs: int) -> dict[str, Parcel]:
    try:
        import ray
    except ImportError as error:
        raise PluginError('backend "ray" needs it; install it: pip install "robust_plugins[ray]"') from error
    if not ray.is_initialized():
        ray.init(address=run.address, log_to_driver=False, num_cpus=None if run.address else jobs)
        stack.callback(ray.shutdown)
    return {key: InRay(ray.put(content)) for key, content in packed.items()}
