"""The plan of a study: every row of it, its identity, and the batches of those that a store does not have."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import repeat
from typing import Any

import torch

from robust_plugins.balls import Ball
from robust_plugins.benchmark.configuration import Component as Entry
from robust_plugins.benchmark.configuration import Configuration, Explanation
from robust_plugins.benchmark.hashing import component_hash, parameters_of
from robust_plugins.benchmark.messages import named
from robust_plugins.benchmark.records import (
    CLEAN,
    COLUMNS,
    DEFAULTS,
    NUMBERS,
    Asked,
    ball_fields,
    canonical,
    identities,
    number,
    ranges,
)
from robust_plugins.benchmark.sources import unreleased
from robust_plugins.benchmark.subjects import Subject
from robust_plugins.benchmark.work import Answers, Job
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.component import Component
from robust_plugins.registry.backends import version_of
from robust_plugins.registry.information import Kind, PluginInfo
from robust_plugins.registry.naming import parameters_of as of_factory
from robust_plugins.registry.naming import parse_component
from robust_plugins.registry.registry import registry

DECISIONS = (Kind.ATTACK, Kind.CERTIFIER)
EXPLANATIONS = (Kind.EXPLANATION_ATTACK, Kind.EXPLANATION_CERTIFIER)

GRACE = 30.0
"""Seconds beyond its time that a component that stops itself has, before its process is killed."""


@dataclass(frozen=True, eq=False)
class Contender:
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
    component: str
    """What the study calls it."""
    common: dict[str, Any]
    """The fields of `Record` that all rows share."""
    own: Sequence[dict[str, Any]]
    """For each row the fields that are its own."""
    identities: Sequence[str]
    """Of each row."""

    def __len__(self) -> int:
        return len(self.own)

    @property
    def asked(self) -> list[Asked]:
        """Its rows under the names that the study gives them."""
        rows = [{"component": self.component} | self.common | own for own in self.own]
        return [
            Asked(identity, *(row[name] for name in Asked._fields[1:]))
            for identity, row in zip(self.identities, rows, strict=True)
        ]

    def rows(self, answers: Answers) -> list[tuple[Any, ...]]:
        """The rows of a store with their answers, by `COLUMNS`: column by column, which is quicker than records."""
        said = set().union(*answers.rows)
        if len(self) != len(answers.rows) or not said.issubset(COLUMNS):
            raise ValueError(f"{len(answers.rows)} answers about {', '.join(sorted(said))}, to {len(self)} rows")
        several = len(set(answers.calls)) > 1
        columns: list[Iterable[Any]] = []
        for name in COLUMNS:
            if name == "identity":
                columns.append(self.identities)
            elif name == "batch" and several:
                columns.append([ranges([self.own[place]["sample"] for place in call]) for call in answers.calls])
            elif name in said:
                missing = self.common.get(name, DEFAULTS.get(name))
                values = [row.get(name, missing) for row in answers.rows]
                columns.append(map(number, values) if name in NUMBERS else values)
            elif name in self.own[0]:
                columns.append([own[name] for own in self.own])
            else:
                columns.append(repeat(self.common[name] if name in self.common else DEFAULTS[name], len(self)))
        return list(zip(*columns, strict=True))


@dataclass
class Plan:
    """All rows of a study: the batches that are left to compute, and what is there, or computed once for two."""

    batches: list[Batch]
    total: int = 0
    """All rows."""
    there: int = 0
    """Those that need not be computed, since they are there."""
    left: int = 0
    """Those of the batches."""
    aliases: list[Asked] = field(default_factory=list)
    """Rows that another row of the same identity answers."""


def asked(configuration: Configuration) -> list[Contender]:
    """Every component of a study, built. Raises UnknownNameError, PluginError and ArgumentError."""
    found = [Contender(CLEAN, CLEAN, CLEAN, None, {}, configuration.timeout)]
    for table in ("components", "explanations"):
        for place, entry in enumerate(getattr(configuration, table)):
            with named(f"{table}[{place}]"):
                found.append(built(entry, configuration.timeout))
    return found


def built(entry: Entry, default: float) -> Contender:
    """The component of one entry, with the study's timeout where it has none; raises as `asked` does."""
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
    stops = "timeout" in of_factory(registry().factory_of(kind, method))
    if stops and "timeout" not in parameters and math.isfinite(timeout):
        parameters["timeout"] = timeout
    component = registry().create(kind, method, **parameters)
    limit = timeout
    if stops:
        limit = max(timeout, float(parameters.get("timeout", math.inf)))
    return Contender(
        entry.name or entry.use, method, kind.value, component, _call(entry, kind), limit, entry.data, entry.models
    )


def _call(entry: Entry, kind: Kind) -> dict[str, Any]:
    if entry.target is not None and kind is not Kind.ATTACK:
        raise ArgumentError(
            f"{entry.use}.target", repr(entry.target), accepted="none, but of attacks on decisions",
            hint="Leave it out.",
        )  # fmt: skip
    if not isinstance(entry, Explanation):
        return {} if entry.target is None else {"target": entry.target}
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


def balls_of(configuration: Configuration, data: str, clip: tuple[float, float] | None) -> list[Ball]:
    """Every ball of a study for the data set of this name, with this range."""
    mine = [entry for entry in configuration.balls if entry.data is None or data in entry.data]
    return [entry.ball(eps, clip) for entry in mine for eps in entry.eps]


def plan(
    configuration: Configuration,
    subjects: Sequence[Subject],
    there: Collection[str],
    created: str,
    named: Collection[Asked] = (),
) -> Plan:
    """The batches of all rows whose identities are not `there`, in the order of the study.

    Samples keep the places that they have among batches of `batch_size`, so that a study that was interrupted between
    batches goes on as it would have. `named` are the rows that can be found under the study's names already.
    """
    found, planned = Plan([]), set(there)
    known, contenders = set(named), asked(configuration) if configuration.balls else []
    for subject in subjects:
        for contender in contenders:
            for ball, seed in _questions(configuration, subject, contender):
                for batch, rows in _batches(configuration, subject, contender, ball, seed, planned, created):
                    found.total += len(rows)
                    for row in rows:
                        found.there += row.identity in there
                        if row.identity not in planned:
                            planned.add(row.identity)
                        elif row not in known:
                            found.aliases.append(row)
                    if batch is not None:
                        found.left += len(batch)
                        found.batches.append(batch)
    return found


def _questions(configuration: Configuration, subject: Subject, component: Contender) -> list[tuple[Ball | None, int]]:
    """The balls and seeds of one component on one subject."""
    if not _meant(component, subject):
        return []
    balls: list[Ball | None] = [None]
    if component.component is not None:
        balls = [*balls_of(configuration, subject.data, subject.clip)]
    return [(ball, seed) for ball in balls for seed in (configuration.seeds if _random(component) else [0])]


def _meant(component: Contender, subject: Subject) -> bool:
    return (component.data is None or subject.data in component.data) and (
        component.models is None or subject.model in component.models
    )


def _random(component: Contender) -> bool:
    return component.kind in (Kind.ATTACK.value, Kind.EXPLANATION_ATTACK.value)


def _batches(
    configuration: Configuration, subject: Subject, contender: Contender, ball: Ball | None, seed: int,
    there: Collection[str], created: str,
) -> Iterator[tuple[Batch | None, list[Asked]]]:  # fmt: skip
    """Each batch, None where nothing of it is left to compute, and all its rows."""
    run, parameters = configuration.run, contender.parameters
    common = {
        "model": subject.model, "data": subject.data, "component": contender.name, "method": contender.method,
        "kind": contender.kind, "parameters": parameters, "seed": seed, "model_hash": subject.model_hash,
        "component_hash": component_hash(contender.method, contender.component, parameters),
        "versions": versions_of(contender.method, contender.component), "device": run.device, "threads": run.threads,
        "batch_size": run.batch_size, "machine": machine(), "created": created,
        **ball_fields(ball, tuple(subject.x.shape[1:])),
    }  # fmt: skip
    pickled = _pickled(contender.component)
    labels, hashes = subject.y.tolist(), subject.input_hashes
    names = identities(common, hashes, labels)
    for start in range(0, len(names), run.batch_size):
        places = range(start, min(start + run.batch_size, len(names)))
        rows = [Asked(names[i], subject.model, subject.data, subject.first + i, contender.name) for i in places]
        # The same input with the same label is asked once, where it comes first.
        firsts = {names[i]: i for i in reversed(places) if names[i] not in there}
        chosen = sorted(firsts.values())
        if not chosen:
            yield None, rows
            continue
        job = Job(
            subject=subject.key, kind=contender.kind, component=pickled, ball=ball, samples=tuple(chosen), seed=seed,
            call=tuple(contender.call.items()), device=run.device, threads=run.threads,
            timeout=contender.timeout * len(chosen) + (GRACE if hasattr(contender.component, "timeout") else 0.0),
            keep="examples" in configuration.keep, modules=backends_of(contender.method),
        )  # fmt: skip
        together = ranges([subject.first + i for i in chosen])
        own = [{"sample": subject.first + i, "label": labels[i], "input_hash": hashes[i]} for i in chosen]
        yield (
            Batch(job, subject.packed, contender.name, common | {"batch": together}, own, [names[i] for i in chosen]),
            rows,
        )


def _pickled(component: Component | None) -> bytes:
    if component is None:
        return b""
    import cloudpickle

    return bytes(cloudpickle.dumps(component))


@cache
def versions(method: str, *modules: str) -> str:
    """The versions of the package, of the plugin behind a registered name, of its backends and torch, as JSON.

    `modules` are those of the component's class. What is no release has a hash of its source code besides.
    """
    found = {"robust_plugins": version_of("robust_plugins"), "torch": torch.__version__}
    for plugin in _plugins_of(method):
        if plugin.distribution:
            found[plugin.distribution] = plugin.version
        found |= {name: version for name, _, version in (b.partition(" ") for b in plugin.backends)}
    for module in dict.fromkeys(("robust_plugins", *backends_of(method), *modules)):
        package, source = unreleased(module)
        if source:
            found[f"source of {package}"] = source
    return canonical(found)


def versions_of(method: str, component: Component | None) -> str:
    """`versions` of a component and of the classes that its own is derived from."""
    if component is None:
        return versions(method)
    return versions(method, *(kind.__module__ for kind in type(component).__mro__ if kind is not object))


@cache
def backends_of(method: str) -> tuple[str, ...]:
    """The modules of the backends of the plugin behind a registered name."""
    return tuple(b.partition(" ")[0] for plugin in _plugins_of(method) for b in plugin.backends)


@cache
def _plugins_of(method: str) -> tuple[PluginInfo, ...]:
    return tuple(registry().plugins(offering=method))


@cache
def machine() -> str:
    """The name of this machine, its processor and how many cores it has."""
    return f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores"
