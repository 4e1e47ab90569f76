"""`Columns`: records as columns of numpy, so that a hundred thousand of them are audited and reported in seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_plugins.benchmark.intact import check_intact, example_of
from robust_plugins.benchmark.store import Store

NUMBERS = (
    "sample", "eps", "seed", "success", "margin", "distance", "loss", "label", "prediction", "queries", "seconds",
    "backend_seconds", "threads", "batch_size", "features", "largest",
    "distance_linf", "distance_l2", "distance_l1",
)  # fmt: skip
"""The columns of numbers, all as float64 with NaN where there is none. `features` and the distances in each norm are
derived where adversarial examples are kept, and so is the largest value of an input."""

TEXTS = (
    "identity", "model", "data", "norm", "clip", "box", "component", "method", "kind", "parameters", "verdict", "error",
    "model_hash", "input_hash", "component_hash", "versions", "device", "batch", "machine", "created", "artifact",
)  # fmt: skip
"""The columns of words, empty where there is none."""


class Columns:
    """Records by column: numbers as float64 with NaN for none, words as objects with "" for none.

    Every column that exists is there; those that the rows do not have hold nothing but NaN or "".
    """

    def __init__(self, columns: Mapping[str, Sequence[Any] | NDArray[Any]], length: int | None = None) -> None:
        """Takes columns of one length; `length` says it where there is none to tell."""
        sizes = {len(column) for column in columns.values()}
        if len(sizes) > 1:
            raise ValueError(f"columns of {sorted(sizes)} rows")
        self._length = sizes.pop() if sizes else (length or 0)
        self._columns: dict[str, NDArray[Any]] = {}
        self._codes: dict[tuple[str, ...], NDArray[np.int64]] = {}
        for name in NUMBERS:
            self._columns[name] = _numbers(columns.get(name), self._length)
        for name in TEXTS:
            self._columns[name] = _texts(columns.get(name), self._length)

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Columns:
        """The columns of records given one by one."""
        listed = list(rows)
        names = [name for name in (*NUMBERS, *TEXTS) if any(name in row for row in listed)]
        return cls({name: [row.get(name) for row in listed] for name in names}, len(listed))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._columns[name]

    def row(self, index: int) -> dict[str, Any]:
        """One record by the names of its columns; None where it has no value."""
        found: dict[str, Any] = {}
        for name in (*NUMBERS, *TEXTS):
            value = self._columns[name][index]
            none = value == "" if name in TEXTS else np.isnan(value)
            found[name] = None if none else value if name in TEXTS else _plain(float(value))
        return found

    def take(self, chosen: NDArray[Any]) -> Columns:
        """The records that a mask or a list of places chooses."""
        return Columns({name: self._columns[name][chosen] for name in (*NUMBERS, *TEXTS)})

    def codes(self, *names: str) -> NDArray[np.int64]:
        """A number for each record that is the same where all of these columns are: NaN equals NaN."""
        if names not in self._codes:
            name, *before = reversed(names)
            part = _coded(self._columns[name])
            if before:
                # Coded again at every step, so that the product of many columns does not overflow.
                both = self.codes(*reversed(before)) * (int(part.max(initial=0)) + 1) + part
                part = np.unique(both, return_inverse=True)[1].astype(np.int64)
            self._codes[names] = part
        return self._codes[names]

    def derive(self, name: str, values: Sequence[str]) -> None:
        """Adds a column of words that the records do not have, to be grouped by."""
        self._columns[name] = _texts(values, self._length)
        self._codes = {names: codes for names, codes in self._codes.items() if name not in names}

    def groups(self, places: NDArray[np.int64], *names: str) -> list[NDArray[np.int64]]:
        """`places` of records, apart by these columns, in the order of first appearance."""
        if not len(places):
            return []
        codes = self.codes(*names)[places]
        order = np.argsort(codes, kind="stable")
        parts = np.split(places[order], np.flatnonzero(np.diff(codes[order])) + 1)
        return sorted(parts, key=lambda part: int(part[0]))


def joined(parts: Sequence[Columns]) -> Columns:
    """The records of several stores as one."""
    return Columns({name: np.concatenate([part[name] for part in parts]) for name in (*NUMBERS, *TEXTS)})


def read_columns(path: str | Path) -> Columns:
    """All records of a store, with the distances of kept examples in every norm where there are several norms.

    Raises ArgumentError for a file that is no store, or holds what no run has written.
    """
    with Store(path) as store:
        columns = store.columns()
        check_intact(store, columns)
        if len(set(columns["norm"]) - {""}) > 1 and any(columns["artifact"]):
            return Columns(columns | _measured(columns, store))
        return Columns(columns)


def _measured(columns: dict[str, list[Any]], store: Store) -> dict[str, list[float]]:
    """Reads from kept examples how many values an input has, its largest one, and the distances in each norm."""
    from safetensors.numpy import load

    names = ("largest", "distance_linf", "distance_l2", "distance_l1")
    found = {name: [math.nan] * len(columns["artifact"]) for name in names}
    sizes: dict[str, float] = {}
    for place, artifact in enumerate(columns["artifact"]):
        if not artifact:
            continue
        kept = load(example_of(store, artifact))
        x = kept["x"].astype(np.float64).ravel()
        moved = np.abs(kept["x_adv"].astype(np.float64).ravel() - x)
        sizes[columns["data"][place]] = float(x.size)
        told = (np.abs(x).max(initial=0.0), moved.max(initial=0.0), np.sqrt((moved * moved).sum()), moved.sum())
        for name, value in zip(names, told, strict=True):
            found[name][place] = float(value)
    return found | {"features": [sizes.get(data, math.nan) for data in columns["data"]]}


def _numbers(column: Sequence[Any] | NDArray[Any] | None, length: int) -> NDArray[np.float64]:
    if column is None:
        return np.full(length, np.nan)
    return np.asarray(column, np.float64)  # None becomes NaN


def _texts(column: Sequence[Any] | NDArray[Any] | None, length: int) -> NDArray[np.object_]:
    found = np.empty(length, object)
    found[:] = "" if column is None else ["" if value is None else str(value) for value in column]
    return found


def _coded(column: NDArray[Any]) -> NDArray[np.int64]:
    if column.dtype != object:
        return np.unique(column, return_inverse=True)[1].astype(np.int64)
    known: dict[str, int] = {}
    return np.fromiter((known.setdefault(value, len(known)) for value in column), np.int64, len(column))


def _plain(value: float) -> float | int:
    return int(value) if value.is_integer() else value
