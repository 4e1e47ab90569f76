"""The answers of one component on one batch: the part of a study that runs in the processes that do the work."""

from __future__ import annotations

import contextlib
import importlib
import math
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.benchmark.records import CLEAN
from robust_plugins.benchmark.store import artifact_hash
from robust_plugins.benchmark.undisturbed import undisturbed
from robust_plugins.decisions.results import Verdict
from robust_plugins.errors import UnsupportedModelError
from robust_plugins.harness.arguments import decided
from robust_plugins.harness.call import calling
from robust_plugins.harness.failures import named
from robust_plugins.networks.files import model_from_file
from robust_plugins.registry.information import Kind

POISONED = "poisoned training"
"""The kind of jobs that are a training with all who poison it."""

# `value` is a property, and costs more than the rest of a row does.
FALSIFIED, UNKNOWN = Verdict.FALSIFIED.value, Verdict.UNKNOWN.value

_BACKENDS = {
    Kind.ATTACK: "perturb",
    Kind.CERTIFIER: "decide",
    Kind.EXPLANATION_ATTACK: "search",
    Kind.EXPLANATION_CERTIFIER: "gradient_bounds",
}
"""The methods below the public calls: what they take is the backend's time."""


@dataclass(frozen=True)
class Job:
    """One component on one batch of one subject, in one ball; it can be sent to other processes and machines."""

    subject: str
    """The hash of the packed subject."""
    kind: str
    component: bytes
    """Pickled; empty for clean rows."""
    ball: Ball | None
    samples: tuple[int, ...]
    """Positions in the subject."""
    seed: int
    call: tuple[tuple[str, Any], ...] = ()
    """What is given to the call besides."""
    device: str = "cpu"
    threads: int = 1
    timeout: float = math.inf
    """Seconds for the whole batch, after which the process is killed."""
    keep: bool = False
    """Whether examples and witnesses are returned."""
    modules: tuple[str, ...] = ()
    """Backends, which are imported before the time is taken."""


@dataclass
class Answers:
    """The answers of one batch: a value of each column for each sample, and the examples to be kept, by hash."""

    rows: list[dict[str, Any]]
    artifacts: dict[str, bytes] = field(default_factory=dict)
    calls: list[tuple[int, ...]] = field(default_factory=list)
    """For each row the places in the batch that were called together; empty where all were."""


def failed(count: int, verdict: Verdict, cause: str, seconds: float | None = None) -> Answers:
    """The answers of a batch that has none, and why."""
    share = None if seconds is None else seconds / max(1, count)
    return Answers([{"verdict": verdict.value, "error": cause, "seconds": share} for _ in range(count)])


def known(job: Job) -> bool:
    """Whether this process has the subject of a job; one of a poisoned training is not kept."""
    return (job.subject, job.device) in _subjects


def prepared(job: Job) -> bool:
    """Imports what a job needs, which is not its own time, and says whether this process has its subject."""
    # What cannot be imported is the answer to the job.
    with contextlib.suppress(Exception):
        if job.component:
            _component(job.component).import_backend()
    for module in job.modules:
        with contextlib.suppress(Exception):  # a backend that only its adapter can import
            importlib.import_module(module)
    return known(job)


def answered(job: Job, packed: bytes = b"") -> Answers:
    """Runs the component of a job in this process; whatever it raises is its answer. `packed` where it is not known."""
    start = time.perf_counter()
    try:
        torch.set_num_threads(job.threads)
        if job.kind == POISONED:
            found: Answers = pickle.loads(packed).answers()
            return found
        model, x, y = _subject(job.subject, job.device, packed)
        chosen = torch.tensor(job.samples, device=x.device)
        with undisturbed():
            return _answers(job, model, x[chosen], y[chosen])
    except UnsupportedModelError as error:
        return failed(len(job.samples), Verdict.UNSUPPORTED, str(error), time.perf_counter() - start)
    except (Exception, SystemExit, GeneratorExit) as error:  # one component's failure must not end the study
        return failed(len(job.samples), Verdict.ERROR, named(error), time.perf_counter() - start)


def serve(pipe: Any) -> None:
    """Answers jobs in a process of its own; a job with None for its subject is prepared."""
    pipe.send("ready")
    while True:
        try:
            job, packed = pipe.recv()
        except EOFError:
            return
        try:
            found = prepared(job) if packed is None else answered(job, packed)
        except KeyboardInterrupt as error:  # of the component itself: what the user presses does not come here
            found = failed(len(job.samples), Verdict.ERROR, named(error))
        pipe.send(found)


_subjects: dict[tuple[str, str], tuple[nn.Module, Tensor, Tensor]] = {}
KEPT = 4
"""Subjects that a process keeps at a time."""


def _subject(name: str, device: str, packed: bytes) -> tuple[nn.Module, Tensor, Tensor]:
    key = (name, device)
    if key not in _subjects:
        while len(_subjects) >= KEPT:
            del _subjects[next(iter(_subjects))]
        _subjects[key] = _unpacked(packed, device)
    return _subjects[key]


def _unpacked(packed: bytes, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    model, x, y = pickle.loads(packed)
    if isinstance(model, tuple):
        suffix, content, shape = model
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"model{suffix}"
            path.write_bytes(content)
            model = model_from_file(path, input_shape=shape)
    return model.to(device), x.to(device), y.to(device)


@lru_cache(16)
def _component(pickled: bytes) -> Any:
    return pickle.loads(pickled)


def _answers(job: Job, model: nn.Module, x: Tensor, y: Tensor) -> Answers:
    if job.kind == CLEAN:
        return _clean(model, x, y)
    prepared(job)
    component, call, kind = _component(job.component), dict(job.call), Kind(job.kind)
    with _timed(component, _BACKENDS[kind]) as backend, _counted(model, kind) as queries:
        if kind in (Kind.ATTACK, Kind.EXPLANATION_ATTACK):
            result = component(model, x, y, job.ball, seed=job.seed, **call)
        else:
            result = component(model, x, y, job.ball, **call)
    found = _READERS[kind](result, x, y, job.ball, job.keep)
    count = len(x)
    for row in found.rows:
        row["seconds"] = result.seconds / count
        row["backend_seconds"] = backend[0] / count if backend else None
        row["queries"] = math.ceil(queries[0] / count) if queries and queries[0] >= 2 * count else None
    return found


def _clean(model: nn.Module, x: Tensor, y: Tensor) -> Answers:
    with torch.no_grad(), calling(model, x) as call:
        _, logits = decided(call.model, call.x)
    margin, prediction = _margin(logits, y), logits.argmax(1)
    undecided = logits.isnan().any(1)
    loss = F.cross_entropy(logits, y, reduction="none")
    rows = []
    for i in range(len(x)):
        wrong = bool(prediction[i] != y[i]) or bool(undecided[i])
        rows.append(
            {
                "verdict": FALSIFIED if wrong else UNKNOWN,
                "success": wrong,
                "margin": margin[i].item(),
                "loss": loss[i].item(),
                "prediction": None if undecided[i] else int(prediction[i]),
                "seconds": call.seconds / len(x),
                "queries": 1,
                "error": "the model's logits are NaN" if undecided[i] else "",
            }
        )
    return Answers(rows)


def _attacked(result: Any, x: Tensor, y: Tensor, ball: Ball, keep: bool) -> Answers:
    margin, prediction = _margin(result.logits, y).tolist(), result.logits.argmax(1).tolist()
    success, distance, loss = result.success.tolist(), result.distance.tolist(), result.loss.tolist()
    found = Answers([])
    for i in range(len(x)):
        # An attack with a target may have missed it and changed the decision all the same.
        wrong = success[i] or (result.target is not None and margin[i] < 0)
        row = {
            "verdict": FALSIFIED if wrong else UNKNOWN,
            "success": success[i],
            "margin": margin[i],
            "distance": distance[i],
            "loss": loss[i],
            "prediction": prediction[i],
        }
        if keep and wrong:
            row["artifact"] = _kept(found, x[i], result.x_adv[i])
        found.rows.append(row)
    return found


def _certified(result: Any, x: Tensor, y: Tensor, ball: Ball, keep: bool) -> Answers:
    prediction, margin = result.logits.argmax(1).tolist(), result.margin.tolist()
    there = result.witness.isfinite().flatten(1).all(1).tolist()
    distance = ball.distance(result.witness, x).tolist() if any(there) else []
    found = Answers([])
    for i, verdict in enumerate(result.verdicts):
        row = {
            "verdict": verdict._value_,
            "margin": margin[i],
            "prediction": prediction[i],
            "error": result.messages[i],
            "distance": distance[i] if there[i] else None,
        }
        if keep and there[i] and distance[i] > 0:
            row["artifact"] = _kept(found, x[i], result.witness[i])
        found.rows.append(row)
    return found


def _explanation_attacked(result: Any, x: Tensor, y: Tensor, ball: Ball, keep: bool) -> Answers:
    change = (result.gradient - result.value).abs().flatten(1).amax(1).tolist()
    success = [None] * len(x) if result.success is None else result.success.tolist()
    distance, deviation = ball.distance(result.x_adv, x).tolist(), result.deviation.tolist()
    found = Answers([])
    for i in range(len(x)):
        row = {
            "verdict": FALSIFIED if success[i] else UNKNOWN,
            "success": success[i],
            "margin": change[i],
            "distance": distance[i],
            "loss": deviation[i],
        }
        if keep and success[i]:
            row["artifact"] = _kept(found, x[i], result.x_adv[i])
        found.rows.append(row)
    return found


def _explanation_certified(result: Any, x: Tensor, y: Tensor, ball: Ball, keep: bool) -> Answers:
    width, deviation = result.width.flatten(1).amax(1).tolist(), result.deviation.tolist()
    rows = [
        {"verdict": verdict._value_, "margin": width[i], "loss": deviation[i], "error": result.messages[i]}
        for i, verdict in enumerate(result.verdicts)
    ]
    return Answers(rows)


_READERS: dict[Kind, Callable[..., Answers]] = {
    Kind.ATTACK: _attacked,
    Kind.CERTIFIER: _certified,
    Kind.EXPLANATION_ATTACK: _explanation_attacked,
    Kind.EXPLANATION_CERTIFIER: _explanation_certified,
}


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    own = logits.gather(1, y.unsqueeze(1)).squeeze(1)
    return own - logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)


def _kept(found: Answers, x: Tensor, x_adv: Tensor) -> str:
    """Keeps an example with the input that it was made from, and returns its hash."""
    from safetensors.torch import save

    content = save({"x": x.detach().cpu().contiguous(), "x_adv": x_adv.detach().cpu().contiguous()})
    name = artifact_hash(content)
    found.artifacts[name] = content
    return name


@contextmanager
def _timed(component: Any, method: str) -> Iterator[list[float]]:
    """The seconds that a method of this very component takes, in a list of one; empty where it has none."""
    original = getattr(component, method, None)
    if original is None or not hasattr(component, "__dict__"):
        yield []
        return
    seconds = [0.0]

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            seconds[0] += time.perf_counter() - start

    vars(component)[method] = timed  # of the instance alone, which is this process's own
    try:
        yield seconds
    finally:
        del vars(component)[method]


@contextmanager
def _counted(model: nn.Module, kind: Kind) -> Iterator[list[int]]:
    """How many inputs the model is run on, in a list of one. Of attacks: a hook would cost certifiers their caches."""
    if kind is not Kind.ATTACK or isinstance(model, torch.jit.ScriptModule):
        yield []
        return
    queries = [0]

    def count(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim():
            queries[0] += len(inputs[0])

    hook = model.register_forward_pre_hook(count)
    try:
        yield queries
    finally:
        hook.remove()
