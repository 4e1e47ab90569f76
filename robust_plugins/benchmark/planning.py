"""The plan of a study: every row of it, its identity, and the batches of those that a store does not have."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from robust_plugins.balls import BALLS, Ball
from robust_plugins.benchmark.configuration import Component as Entry
from robust_plugins.benchmark.configuration import Configuration, Explanation
from robust_plugins.benchmark.hashing import component_hash, parameters_of
from robust_plugins.benchmark.records import CLEAN, Record, ball_fields, canonical, ranges
from robust_plugins.benchmark.subjects import Subject
from robust_plugins.benchmark.work import Answers, Job
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.component import Component
from robust_plugins.registry.backends import version_of
from robust_plugins.registry.information import Kind
from robust_plugins.registry.naming import parse_component
from robust_plugins.registry.registry import registry

DECISIONS = (Kind.ATTACK, Kind.CERTIFIER)
EXPLANATIONS = (Kind.EXPLANATION_ATTACK, Kind.EXPLANATION_CERTIFIER)

GRACE = 30.0
"""Seconds beyond its time that a component that stops itself has, before its process is killed."""


@dataclass(frozen=True, eq=False)
class Asked:
    """A component as the study asks it."""

    name: str
    method: str
    kind: str
    component: Component | None
    """None for the rows about the model itself."""
    call: Mapping[str, Any]
    timeout: float
    """Seconds for each sample, after which its process is killed."""
    data: Sequence[str] | None = None
    models: Sequence[str] | None = None

    @property
    def parameters(self) -> str:
        """All of them, as canonical JSON."""
        return "{}" if self.component is None else parameters_of(self.component, dict(self.call))


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples that one component is given together, and what their records say but for the answers."""

    job: Job
    packed: bytes
    records: list[Record]

    def answered(self, answers: Answers) -> list[Record]:
        """The records with their answers."""
        return [replace(record, **row) for record, row in zip(self.records, answers.rows, strict=True)]


def asked(configuration: Configuration) -> list[Asked]:
    """Every component of a study, built. Raises UnknownNameError, PluginError and ArgumentError."""
    found = [Asked(CLEAN, CLEAN, CLEAN, None, {}, configuration.timeout)]
    entries = (*configuration.components, *configuration.explanations)
    return found + [_asked(entry, configuration.timeout) for entry in entries]


def _asked(entry: Entry, default: float) -> Asked:
    kinds = EXPLANATIONS if isinstance(entry, Explanation) else DECISIONS
    method, written = parse_component(entry.use)
    kind = registry().kind_of(entry.use, kinds)
    twice = sorted(written.keys() & entry.parameters)
    if twice:
        raise ArgumentError(
            f"{entry.use}.parameters", f"giving {twice[0]} a second value", accepted="each parameter once",
            hint="Write it behind the name or in the table.",
        )  # fmt: skip
    parameters = written | entry.parameters
    timeout = default if entry.timeout is None else entry.timeout
    info = next(info for info in registry().components(kind) if info.name == method)
    stops = "timeout" in info.parameters
    if stops and "timeout" not in parameters and math.isfinite(timeout):
        parameters["timeout"] = timeout
    component = registry().create(kind, method, **parameters)
    limit = timeout
    if stops:
        limit = max(timeout, float(parameters.get("timeout", math.inf)))
    return Asked(
        entry.name or entry.use, method, kind.value, component, _call(entry, kind), limit, entry.data, entry.models
    )


def _call(entry: Entry, kind: Kind) -> dict[str, Any]:
    if not isinstance(entry, Explanation):
        return {}
    found: dict[str, Any] = {"of": entry.of, "radius": entry.radius}
    attack = kind is Kind.EXPLANATION_ATTACK
    wrong, needed = ("delta", "threshold") if attack else ("threshold", "delta")
    if getattr(entry, wrong) is not None:
        raise ArgumentError(
            f"{entry.use}.{wrong}", getattr(entry, wrong), accepted=f"{needed}, since this is an {kind}",
            hint="Leave it out.",
        )  # fmt: skip
    if not attack and entry.delta is None:
        raise ArgumentError(
            f"{entry.use}.delta",
            "missing",
            accepted="the width allowed to each feature",
            hint="For example delta = 0.1.",
        )
    return found | {needed: getattr(entry, needed)}


def balls_of(configuration: Configuration, clip: tuple[float, float] | None) -> list[Ball]:
    """Every ball of a study for a data set with this range."""
    found = []
    for entry in configuration.balls:
        valid = clip if entry.clip is None else (entry.clip[0], entry.clip[1])
        found += [BALLS[entry.norm](eps=eps, clip=valid) for eps in entry.eps]
    return found


def batches(
    configuration: Configuration, subjects: Sequence[Subject], there: Collection[str], created: str
) -> Iterator[Batch]:
    """The batches of all rows whose identities are not `there`, in the order of the study.

    Samples keep the places that they have among batches of `batch_size`, so that a study that was interrupted between
    batches goes on as it would have.
    """
    components = asked(configuration) if configuration.balls else []
    for subject in subjects:
        for component in components:
            for ball, seed in _questions(configuration, subject, component):
                yield from _batches(configuration, subject, component, ball, seed, there, created)


def rows(configuration: Configuration, subjects: Sequence[Subject]) -> int:
    """How many rows a study has, its poisoning apart."""
    components = asked(configuration) if configuration.balls else []
    return sum(len(s.x) * len(_questions(configuration, s, component)) for s in subjects for component in components)


def _questions(configuration: Configuration, subject: Subject, component: Asked) -> list[tuple[Ball | None, int]]:
    """The balls and seeds of one component on one subject."""
    if not _meant(component, subject):
        return []
    balls: list[Ball | None] = [None]
    if component.component is not None:
        balls = [*balls_of(configuration, subject.clip)]
    return [(ball, seed) for ball in balls for seed in (configuration.seeds if _random(component) else [0])]


def _meant(component: Asked, subject: Subject) -> bool:
    return (component.data is None or subject.data in component.data) and (
        component.models is None or subject.model in component.models
    )


def _random(component: Asked) -> bool:
    return component.kind in (Kind.ATTACK.value, Kind.EXPLANATION_ATTACK.value)


def _batches(
    configuration: Configuration, subject: Subject, asked: Asked, ball: Ball | None, seed: int, there: Collection[str],
    created: str,
) -> Iterator[Batch]:  # fmt: skip
    run, parameters = configuration.run, asked.parameters
    common = Record(
        model=subject.model, data=subject.data, sample=0, component=asked.name, method=asked.method, kind=asked.kind,
        parameters=parameters, seed=seed, verdict="", label=0, model_hash=subject.model_hash, input_hash="",
        component_hash=component_hash(asked.method, asked.component, parameters),
        versions=versions(asked.method), device=run.device, threads=run.threads, batch_size=run.batch_size,
        machine=machine(), created=created, **ball_fields(ball),
    )  # fmt: skip
    pickled = _pickled(asked.component)
    labels = subject.y.tolist()
    for start in range(0, len(subject.x), run.batch_size):
        chosen = []
        for i in range(start, min(start + run.batch_size, len(subject.x))):
            record = replace(common, sample=subject.first + i, label=labels[i], input_hash=subject.input_hashes[i])
            if record.identity not in there:
                chosen.append((i, record))
        if not chosen:
            continue
        together = ranges([record.sample for _, record in chosen])
        job = Job(
            subject=subject.key, kind=asked.kind, component=pickled, ball=ball, samples=tuple(i for i, _ in chosen),
            seed=seed, call=tuple(asked.call.items()), device=run.device, threads=run.threads,
            timeout=asked.timeout * len(chosen) + (GRACE if hasattr(asked.component, "timeout") else 0.0),
            keep="examples" in configuration.keep, modules=backends_of(asked.method),
        )  # fmt: skip
        yield Batch(job, subject.packed, [replace(record, batch=together) for _, record in chosen])


def _pickled(component: Component | None) -> bytes:
    if component is None:
        return b""
    import cloudpickle

    return bytes(cloudpickle.dumps(component))


@cache
def versions(method: str) -> str:
    """The versions of the package, of the plugin behind a registered name, of its backends and torch, as JSON."""
    found = {"robust_plugins": version_of("robust_plugins"), "torch": torch.__version__}
    for plugin in registry().plugins():
        if method in plugin.components:
            if plugin.distribution:
                found[plugin.distribution] = plugin.version
            found |= {name: version for name, _, version in (b.partition(" ") for b in plugin.backends)}
    return canonical(found)


@cache
def backends_of(method: str) -> tuple[str, ...]:
    """The modules of the backends of the plugin behind a registered name."""
    return tuple(b.partition(" ")[0] for p in registry().plugins() if method in p.components for b in p.backends)


@cache
def machine() -> str:
    """The name of this machine, its processor and how many cores it has."""
    return f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores"
