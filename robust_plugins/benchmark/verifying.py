"""`verify`: random records of a store, derived again from what the store says, and compared."""

from __future__ import annotations

import json
import pickle
import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from robust_plugins.benchmark.configuration import Configuration, checked
from robust_plugins.benchmark.hashing import component_hash, model_hash, parameters_of, tensor_hash
from robust_plugins.benchmark.intact import check_intact
from robust_plugins.benchmark.planning import versions_of
from robust_plugins.benchmark.poisoned import trained_again
from robust_plugins.benchmark.records import ANSWERS, CLEAN, POISONING_CERTIFIER, Record, samples_of
from robust_plugins.benchmark.store import Store
from robust_plugins.benchmark.subjects import Subject, read_subjects
from robust_plugins.benchmark.work import Job, answered
from robust_plugins.errors import RobustPluginsError
from robust_plugins.registry.information import Kind
from robust_plugins.registry.registry import registry

TOLERANCE = 1e-4
"""Relative to the larger of 1 and the numbers: how far two derivations of one number may differ by rounding."""


@dataclass(frozen=True)
class Verified:
    """One record, and what came out when it was derived again."""

    record: Record
    differences: tuple[str, ...] = ()
    """In words: the field, the stored value and the new one."""
    obstacle: str = ""
    """Why it could not be derived again; empty where it could."""

    @property
    def agrees(self) -> bool:
        """Whether it was derived again, and is the same up to rounding."""
        return not self.differences and not self.obstacle

    def __str__(self) -> str:
        r = self.record
        where = f"{r.component} on sample {r.sample} of {r.data}, {r.model}, {r.norm or 'no ball'} {r.eps:g}"
        said = self.obstacle or "; ".join(self.differences) or "the same"
        return f"{where}: {said}"


def verify(
    store: Store,
    count: int,
    *,
    seed: int = 0,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Verified]:
    """Derives random records again, those that have an answer, and compares them.

    - `seed`: of the choice
    - `folder`: what the paths of the study are relative to; None for the folder that it ran in, or that of the store

    A record is derived with the batch that it was derived in, since random draws depend on it. Raises ArgumentError
    where one of the records holds what no run has written.
    """
    identities = sorted(store.identities(answered=True))
    chosen = random.Random(seed).sample(identities, min(count, len(identities)))
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    columns = store.columns(where={"identity": chosen}, aliases=False)
    check_intact(store, columns)
    del columns["identity"]
    for values in zip(*columns.values(), strict=True):
        record = Record(**dict(zip(columns, values, strict=True)))
        groups[
            record.model_hash, record.data, record.component_hash, record.norm, record.eps, record.clip, record.box,
            record.seed, record.batch,
        ].append(record)  # fmt: skip
    store.studies()  # raises where they are damaged, once and not about each record
    subjects = Subjects(store, folder, say)
    found = []
    for records in groups.values():
        try:
            rows = _again(records[0], subjects)
        except (RobustPluginsError, OSError, KeyError) as error:
            found += [Verified(record, obstacle=f"{error}") for record in records]
            continue
        found += [_compared(record, rows) for record in records]
    return found


class Subjects:
    """The subjects of the studies of a store, read when they are asked for."""

    def __init__(self, store: Store, folder: Path | None, say: Callable[[str], None]) -> None:
        self._store, self._folder, self._say = store, folder, say
        self._found: dict[tuple[str, str], Subject] = {}
        self._trained: dict[tuple[int, str, int], dict[tuple[str, ...], dict[str, Any]]] = {}

    def __getitem__(self, record: Record) -> Subject:
        key = (record.model_hash, record.data)
        if key not in self._found:
            self._found[key] = self._read(record)
        return self._found[key]

    def _read(self, record: Record) -> Subject:
        obstacle = f"no study of the store has a model {record.model!r} and data {record.data!r}"
        for said in reversed(self._store.studies()):
            folder = self._folder_of(said)
            configuration = _one(said, record)
            if configuration is None:
                continue
            kept = self._kept(record)
            cache = self._store.path.with_suffix(".models")
            try:
                subject = read_subjects(configuration, folder, cache, self._say, train=kept is None)[0]
                if kept is not None:
                    subject.module.load_state_dict(kept)
            except (RobustPluginsError, RuntimeError) as error:
                obstacle = str(error)
                continue
            found = model_hash(subject.module)
            if found == record.model_hash:
                return subject
            obstacle = f"the model {record.model!r} is another one now: its hash is {found}, not {record.model_hash}"
        raise KeyError(obstacle)

    def trained_again(self, record: Record) -> dict[str, dict[str, Any]]:
        """The answers of a record of a poisoned training, by input hash; the training is done again, once for all."""
        name = record.component.partition(": ")[0]
        obstacle = f"no study of the store has the poisoned training {name!r}"
        for number, said in enumerate(self._store.studies()):
            if not any(entry["name"] == name for entry in said["poisoning"]) or _handed_over(said):
                continue
            key = (number, name, record.seed)
            if key not in self._trained:
                self._say(f"training {name} again, poisoned")
                configuration = checked({k: v for k, v in said.items() if k != "folder"}, "the store")
                self._trained[key] = trained_again(configuration, name, record.seed, self._folder_of(said))
            own = (record.model_hash, record.component_hash)
            found = {key[2]: row for key, row in self._trained[key].items() if key[:2] == own}
            if found:
                return found
            obstacle = f"the model, the training data or the settings of {name!r} are others now"
        raise KeyError(obstacle)

    def _folder_of(self, said: Mapping[str, Any]) -> Path:
        folder = self._folder or Path(said["folder"])
        return folder if folder.is_dir() else self._store.path.parent

    def _kept(self, record: Record) -> dict[str, torch.Tensor] | None:
        try:
            content = self._store.artifact(record.model_hash)
        except KeyError:
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return dict(load(content))
        except SafetensorError as error:
            raise KeyError(f"the weights of {record.model!r} in the store are damaged: {error}") from error


def _one(said: dict[str, Any], record: Record) -> Configuration | None:
    """The study with the one model and the one data set of a record; None where it has them not, or not by name."""
    models = [m for m in said["models"] if m["name"] == record.model]
    data = [d for d in said["data"] if d["name"] == record.data]
    if not models or not data or _handed_over({"models": models, "data": data}):
        return None
    kept = {key: value for key, value in said.items() if key != "folder"}
    kept |= {"models": [models[0] | {"data": None}], "data": data, "explanations": [], "poisoning": []}
    kept |= {"components": [{"use": "interval:ibp"}], "balls": [{"eps": [0.0]}]}
    return checked(kept, "the store")


def _handed_over(said: Mapping[str, Any]) -> bool:
    """Whether a model or a data set was handed over from Python, and so cannot be read again."""
    return any(str(entry["source"]).startswith("<") for entry in (*said["models"], *said["data"]))


def _again(record: Record, subjects: Subjects) -> dict[str, dict[str, Any]]:
    """The answers of the batch of a record, by input hash."""
    if record.kind in (Kind.POISONING_ATTACK.value, POISONING_CERTIFIER):
        return subjects.trained_again(record)
    subject = subjects[record]
    places = [sample - subject.first for sample in samples_of(record.batch)]
    if not all(0 <= place < len(subject.x) for place in places):
        raise KeyError(f"the data set has no samples {record.batch} any more")
    component, call = component_of(record)
    here = versions_of(record.method, pickle.loads(component) if component else None)
    if record.versions != here:
        subjects._say(f"{record.method}: the record is of {record.versions}, here are {here}")
    job = Job(
        subject=subject.key, kind=record.kind, component=component, ball=record.ball(), samples=tuple(places),
        seed=record.seed, call=tuple(call.items()), device=record.device, threads=record.threads,
    )  # fmt: skip
    rows = answered(job, subject.packed).rows
    return {tensor_hash(subject.x[place]): row for place, row in zip(places, rows, strict=True)}


def component_of(record: Record) -> tuple[bytes, dict[str, Any]]:
    """The component of a record, pickled, and what its call was given besides. Raises KeyError for another one now."""
    if record.kind == CLEAN:
        return b"", {}
    import cloudpickle

    parameters = json.loads(record.parameters)
    call = parameters.pop("call", {})
    component = registry().create(Kind(record.kind), record.method, **_typed(parameters))
    if component_hash(record.method, component, parameters_of(component, call)) != record.component_hash:
        raise KeyError(f"{record.method} is another component now, or takes what JSON cannot say: {record.parameters}")
    return bytes(cloudpickle.dumps(component)), call


def _typed(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters as components take them: sequences in JSON are lists, in components tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in parameters.items()}


def _compared(record: Record, rows: dict[str, dict[str, Any]]) -> Verified:
    row = rows.get(record.input_hash)
    if row is None:
        return Verified(record, obstacle="the input is another one now")
    defaults = {"success": None, "margin": None, "distance": None, "loss": None, "prediction": None, "error": ""}
    again = defaults | row
    differing = [
        f"{name} was {getattr(record, name)}, is {again[name]}"
        for name in ANSWERS
        if not _same(getattr(record, name), again[name])
    ]
    return Verified(record, tuple(differing))


def _same(old: Any, new: Any) -> bool:
    if isinstance(old, float) or isinstance(new, float):
        if old is None or new is None:
            return bool(old is new or (new is not None and new != new))
        return bool(old == new or abs(old - new) <= TOLERANCE * max(1.0, abs(old), abs(new)))
    return bool(old == new)
