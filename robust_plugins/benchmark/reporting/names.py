"""`named_apart`: two things that studies gave one name, at different times, are shown under two."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_plugins.benchmark.columns import Columns
from robust_plugins.benchmark.records import POISONING_CERTIFIER
from robust_plugins.registry.information import Kind

DIGITS = 6
"""Of a hash that tells two things of one name apart."""


def named_apart(columns: Columns) -> Columns:
    """The same records; a model, a component or a data set that has changed since has a name of its own.

    Behind the name of a model or a component stand the first digits of its hash, as `net #1a2b3c`, where records of one
    data set are of several; a data set whose samples have changed is `moons`, and then `moons, changed`. What is known
    of one is no bound for the other. Trainings that are poisoned have hashes of their own, and keep their names.
    """
    plain = ~np.isin(columns["kind"], [POISONING_CERTIFIER, Kind.POISONING_ATTACK.value])
    found = columns.take(np.arange(len(columns)))
    found.derive("data", _later(columns, plain))
    for name, keys in (("model", ("model", "data")), ("component", ("component",))):
        hashes = columns[f"{name}_hash"]
        several = _several(zip(zip(*(found[key][plain] for key in keys), strict=True), hashes[plain], strict=True))
        said = zip(zip(*(found[key] for key in keys), strict=True), found[name], hashes, plain, strict=True)
        found.derive(name, [f"{n} #{h[:DIGITS]}" if p and k in several else n for k, n, h, p in said])
    return found


def trainings_apart(trainings: Sequence[Mapping[str, Any]], columns: Columns) -> tuple[dict[str, Any], ...]:
    """Trainings under the names that their models have in these records."""
    names = dict(zip(columns["model_hash"], columns["model"], strict=True))
    return tuple({**training, "model": names.get(training["model_hash"], training["model"])} for training in trainings)


def _several(pairs: Iterable[tuple[Any, str]]) -> set[Any]:
    """The names that have more than one hash."""
    first: dict[Any, str] = {}
    return {name for name, found in pairs if first.setdefault(name, found) != found}


def _later(columns: Columns, plain: NDArray[np.bool_]) -> list[str]:
    """The names of data sets; a sample that is another one than it was is of a set that has changed."""
    known: dict[tuple[Any, ...], list[str]] = {}
    names = []
    said = zip(*(columns[n] for n in ("model_hash", "data", "sample", "input_hash")), plain, strict=True)
    for model, data, sample, found, asked in said:
        if not asked:
            names.append(data)
            continue
        hashes = known.setdefault((model, data, sample), [])
        if found not in hashes:
            hashes.append(found)
        place = hashes.index(found)
        names.append(data + (", changed" if place == 1 else f", changed {place} times") * (place > 0))
    return names
