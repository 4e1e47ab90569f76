"""`check`: whether a study can run, what is missing, how many records it has and how long it may take."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from robust_plugins.balls import Ball
from robust_plugins.benchmark.configuration import Configuration
from robust_plugins.benchmark.hashing import component_hash
from robust_plugins.benchmark.measuring import measure
from robust_plugins.benchmark.messages import named
from robust_plugins.benchmark.planning import Contender, asked, balls_of, built, plan
from robust_plugins.benchmark.store import Store
from robust_plugins.benchmark.subjects import Subject, loss_of, read_data, read_model, samples_of, trained_weights
from robust_plugins.errors import ArgumentError, RobustPluginsError
from robust_plugins.harness.arguments import decided
from robust_plugins.harness.call import calling
from robust_plugins.networks.files import load_weights
from robust_plugins.poisoning import poisoning_attack
from robust_plugins.poisoning.budget_text import parse_budget


@dataclass
class Checked:
    """Holds all that is known of a study before it runs."""

    problems: list[str] = field(default_factory=list)
    """What keeps it from running, each with what to do."""
    rows: int = 0
    """Its records, poisoning apart."""
    there: int = 0
    """Of these, in the store already, as far as models that are trained on the fly are there."""
    expected: dict[str, float] = field(default_factory=dict)
    """Seconds of components for the rest, as measured, or from records of the same components in the store."""
    unknown: dict[str, float] = field(default_factory=dict)
    """Components of which neither is there, each with the seconds that its timeout allows at most."""
    trainings: list[str] = field(default_factory=list)
    """Models that are trained first."""

    def __str__(self) -> str:
        if self.problems:
            return "\n".join(f"problem: {text}" for text in self.problems)
        lines = [f"{self.rows} records, {self.there} of them in the store"]
        if len(self.expected) > 1:
            lines.append(f"about {_seconds(sum(self.expected.values()))} of components, of which")
        lines += [f"{name}: about {_seconds(seconds)}" for name, seconds in self.expected.items()]
        lines += [
            f"{name}: not run yet, {'no timeout' if math.isinf(most) else f'at most {_seconds(most)} by its timeout'}"
            for name, most in self.unknown.items()
        ]
        return "\n".join([*lines, *(f"trained first: {name}" for name in self.trainings)])


def check(configuration: Configuration, folder: Path, cache: Path, store: Path, *, measured: bool = False) -> Checked:
    """Reads and builds everything that a study names, and says what is missing.

    No component runs but with `measured`: then each does on a few samples, which says how long all of it takes. Models
    that are trained on the fly must have been.
    """
    found = Checked()

    def tried(what: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (RobustPluginsError, ImportError) as error:
            found.problems.append(f"{what}: {error}")
        except Exception as error:  # of the user's model, data or plugin
            found.problems.append(f"{what}: {type(error).__name__}: {error}")
        return None

    for module, wanted in (("distributed", "dask"), ("ray", "ray")):
        if configuration.run.backend == wanted and find_spec(module) is None:
            found.problems.append(
                f'run.backend: {wanted} is missing; install it: pip install "robust_plugins[{wanted}]"'
            )
    if configuration.keep and find_spec("safetensors") is None:
        found.problems.append('keep: safetensors is missing; install it: pip install "robust_plugins[safetensors]"')
    tried("run.device", lambda: check_device(configuration.run.device))
    tried("store", lambda: _check_store(store))
    components = _built(configuration, found)
    subjects = []
    for entry in configuration.data:
        data = tried(f"data.{entry.name}", partial(read_data, entry, folder))
        for model in configuration.models if data is not None else ():
            if model.data is not None and entry.name not in model.data:
                continue
            what, pending = f"models.{model.name} on {entry.name}", ""
            module = tried(what, partial(read_model, model, data, folder))
            if model.train is not None:
                tried(f"models.{model.name}.train", partial(loss_of, model.train, data.clip))
                weights = None if module is None else trained_weights(model, module, data, model.train, cache)
                if weights is not None and weights.exists():
                    tried(f"models.{model.name}.train", partial(load_weights, module, weights))
                elif weights is not None:
                    pending = weights.stem.rpartition("-")[2]
                    found.trainings.append(f"{model.name} on {entry.name}, {model.train.epochs} epochs")
            if module is None:
                continue
            drawn = tried(f"data.{entry.name}", partial(samples_of, entry, data, module))
            if drawn is None:
                continue
            x, y = drawn
            subject = Subject(model.name, entry.name, module, x, y, entry.first, data.clip, model.source, None, pending)
            tried(what, partial(_fits, subject, configuration))
            subjects.append(subject)
    for poisoning in configuration.poisoning:
        what = f"poisoning.{poisoning.name}"
        tried(what, partial(parse_budget, poisoning.budget, "budget"))
        for attack in poisoning.attacks:
            tried(what, partial(poisoning_attack, attack))
    if not found.problems:
        _count(configuration, components, subjects, store, found, measured)
    return found


def refuse_impossible(configuration: Configuration) -> None:
    """Raises what keeps a study from running and is known before models are read or trained, the first of it."""
    asked(configuration)
    for model in configuration.models:
        if model.train is not None:
            with named(f"models.{model.name}"):
                loss_of(model.train, None)
    for poisoning in configuration.poisoning:
        parse_budget(poisoning.budget, f"poisoning.{poisoning.name}.budget")
        for attack in poisoning.attacks:
            with named(f"poisoning.{poisoning.name}.attacks"):
                poisoning_attack(attack)
    if configuration.run.address is None:
        check_device(configuration.run.device)


def _built(configuration: Configuration, found: Checked) -> list[Contender]:
    """The components that can be built; one problem for each that cannot."""
    contenders = []
    for table in ("components", "explanations"):
        for place, entry in enumerate(getattr(configuration, table)):
            try:
                with named(f"{table}[{place}]"):
                    contenders.append(built(entry, configuration.timeout))
            except RobustPluginsError as error:
                found.problems.append(f"{error}")
    return contenders


def _fits(subject: Subject, configuration: Configuration) -> None:
    """Runs the model on one sample, without any component, and holds it against its labels and balls."""
    balls: list[Ball | None] = [*balls_of(configuration, subject.data, subject.clip)]
    for ball in balls or [None]:
        with torch.no_grad(), calling(subject.module, subject.x, ball) as call:
            _, logits = decided(call.model, call.x[:1])
    classes = logits.shape[1]
    if int(subject.y.max()) >= classes:
        raise ArgumentError(
            "source", f"a model of {classes} classes, where labels go up to {int(subject.y.max())}",
            accepted="a model for the classes of the data set", hint="Name another, or restrict it with data = [...].",
        )  # fmt: skip


def _count(
    configuration: Configuration, components: list[Contender], subjects: list[Subject], store: Path, found: Checked,
    measured: bool,
) -> None:  # fmt: skip
    there: set[str] = set()
    known: dict[str, float] = {}
    if store.is_file():
        with Store(store) as kept:
            there = kept.identities()
            columns = kept.columns("component_hash", "seconds")
        sums: dict[str, list[float]] = {}
        for name, seconds in zip(columns["component_hash"], columns["seconds"], strict=True):
            if seconds is not None:
                sums.setdefault(name, []).append(seconds)
        known = {name: sum(all_) / len(all_) for name, all_ in sums.items()}
    limits = {a.name: a.timeout for a in components}
    hashes = {a.name: component_hash(a.method, a.component, a.parameters) for a in components}
    planned = plan(configuration, subjects, there, "")
    found.rows, found.there = planned.total, planned.there
    costs = measure(configuration, subjects) if measured and planned.left else {}
    for batch in planned.batches:
        name = batch.component
        if name not in hashes:
            continue
        cost = costs.get((name, batch.common["model"], batch.common["data"]))
        if cost is not None:
            found.expected[name] = found.expected.get(name, 0.0) + cost.of(batch)
        elif hashes[name] in known:
            found.expected[name] = found.expected.get(name, 0.0) + known[hashes[name]] * len(batch)
        else:
            found.unknown[name] = found.unknown.get(name, 0.0) + limits[name] * len(batch)


def _seconds(value: float) -> str:
    """A time in the unit that it is read in."""
    if value < 90:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


def _check_store(path: Path) -> None:
    """Raises ArgumentError where there is something else, or nothing can be."""
    if path.is_file():
        with Store(path):
            return
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if path.exists() or not above.is_dir() or not os.access(above, os.W_OK):
        raise ArgumentError(
            "store", repr(str(path)), accepted="a file in a folder that you may write to", hint="Name another one."
        )


def check_device(device: str) -> None:
    """Raises ArgumentError for a device that torch does not have here, or that holds no numbers."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        cause = str(error).splitlines()[0]
        raise ArgumentError(
            "device", f"{device!r}: {cause}", accepted="'cpu', or 'cuda' where torch has one", hint="Set run.device."
        ) from error
