"""`export`: the records of a store as Parquet or CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robust_plugins.benchmark.store import Store
from robust_plugins.errors import ArgumentError, PluginError

SUFFIXES = (".parquet", ".csv")


def export(store: Store, path: str | Path, *, where: Mapping[str, Any] | None = None) -> int:
    """Writes the records to a file, of the kind that its suffix names, and returns how many.

    In CSV what does not exist is empty, and True and False are so. Raises ArgumentError for another suffix and for a
    file that cannot be written, PluginError where Parquet needs pyarrow.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ArgumentError("path", repr(str(path)), accepted=" or ".join(SUFFIXES), hint="The suffix says the format.")
    if path.resolve() == store.path.resolve():
        raise ArgumentError(
            "path", repr(str(path)), accepted="a file other than the store", hint="It would be written over."
        )
    columns = store.columns(where=where)
    count = len(columns["identity"])
    unfinished = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (_parquet if path.suffix == ".parquet" else _csv)(unfinished, columns)
        os.replace(unfinished, path)
    except OSError as error:
        raise ArgumentError(
            "path", f"{str(path)!r}: {error}", accepted="a file that you may write to", hint="Name another one."
        ) from error
    return count


def _parquet(path: Path, columns: Mapping[str, list[Any]]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise PluginError('Parquet needs pyarrow; install it: pip install "robust_plugins[bench]"') from error
    whole = {"sample", "seed", "label", "prediction", "queries", "threads", "batch_size"}
    numbers = {"eps", "margin", "distance", "loss", "seconds", "backend_seconds"}

    def kind(name: str) -> Any:
        if name in whole:
            return pyarrow.int64()
        return pyarrow.float64() if name in numbers else pyarrow.bool_() if name == "success" else pyarrow.string()

    # Stated, since a column that is empty for all records would have no type.
    schema = pyarrow.schema([(name, kind(name)) for name in columns])
    parquet.write_table(pyarrow.table(dict(columns), schema=schema), path)


def _csv(path: Path, columns: Mapping[str, list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
