"""`Store`: the records of studies in one SQLite file, keyed by identity, with one writer at a time."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from robust_plugins.benchmark.records import COLUMNS, Asked, Record, digest
from robust_plugins.errors import ArgumentError, PluginError

FORMAT = 2
"""Raised when the columns change; a store of another format is refused, not misread."""

ADDED = {"box": 2}
"""Columns that came with a later format, which are empty in the records of stores of an earlier one."""

_SQL = {"str": "TEXT NOT NULL", "int": "INTEGER NOT NULL", "float": "REAL NOT NULL", "int | None": "INTEGER",
        "float | None": "REAL", "bool | None": "INTEGER"}  # fmt: skip
_FIELDS = tuple(field.name for field in fields(Record))
_values = attrgetter(*_FIELDS)
_BOOLEANS = tuple(field.name for field in fields(Record) if field.type == "bool | None")
_TABLES = f"""
CREATE TABLE IF NOT EXISTS records (
    identity TEXT NOT NULL UNIQUE, {", ".join(f"{field.name} {_SQL[str(field.type)]}" for field in fields(Record))}
);
CREATE TABLE IF NOT EXISTS artifacts (hash TEXT NOT NULL UNIQUE, content BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS aliases (
    identity TEXT NOT NULL, model TEXT NOT NULL, data TEXT NOT NULL, sample INTEGER NOT NULL, component TEXT NOT NULL,
    UNIQUE (identity, model, data, sample, component)
);
CREATE TABLE IF NOT EXISTS trainings (
    model_hash TEXT NOT NULL, model TEXT NOT NULL, data TEXT NOT NULL, record TEXT NOT NULL,
    UNIQUE (model_hash, model, data)
);
CREATE TABLE IF NOT EXISTS studies (hash TEXT NOT NULL UNIQUE, configuration TEXT NOT NULL, created TEXT NOT NULL);
"""


class Store:
    """The records in one SQLite file: rows of `Record`, the studies that made them, and examples that were kept.

    Opened to read, as by default, it waits for nobody and sees what was written last. `Store(path, write=True)` makes
    the file where there is none, and is the only writer: a second one, of any process of the machine, is refused.
    Use it in a `with` block, which closes it. What is inserted at once is written as a whole or not at all, also where
    the process is killed.

    Raises ArgumentError for a file that is missing, no store, of another format or being written already.
    """

    def __init__(self, path: str | Path, *, write: bool = False) -> None:
        self.path = Path(path)
        self._format = FORMAT
        self._lock = _locked(self.path) if write else None
        try:
            self._connection = self._opened(write)
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; what was inserted is in it."""
        self._connection.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it is written, or nothing; raises ArgumentError where the file cannot be written any more."""
        try:
            with self._connection:
                yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise _damaged(self.path, error) from error
            if code not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                raise
            raise ArgumentError(
                "store", f"{str(self.path)!r}, which cannot be written any more ({error})",
                accepted="a file with room to grow", hint="Make room; what was written stays, and a run goes on there.",
            ) from error  # fmt: skip

    def _read(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of a question; raises ArgumentError where the file is damaged, or its tables are not there."""
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            raise _damaged(self.path, error) from error

    def __len__(self) -> int:
        ((count,),) = self._read("SELECT count(*) FROM records")
        return int(count)

    def insert(
        self,
        records: Iterable[Record],
        artifacts: Mapping[str, bytes] | None = None,
        *,
        identities: Sequence[str] | None = None,
        replace: bool = False,
    ) -> int:
        """Writes records and artifacts in one transaction, and returns how many records were new.

        - `artifacts`: contents by `artifact_hash`
        - `identities`: of the records, where they are known already
        - `replace`: a record that is there already gives way to the new one; else it stays
        """
        listed = list(records)
        names = [record.identity for record in listed] if identities is None else identities
        values = [(name, *_values(record)) for name, record in zip(names, listed, strict=True)]
        return self.insert_rows(values, artifacts, replace=replace)

    def insert_rows(
        self,
        rows: Sequence[Sequence[Any]],
        artifacts: Mapping[str, bytes] | None = None,
        *,
        replace: bool = False,
    ) -> int:
        """Writes rows, each with a value for every one of `COLUMNS`, as `insert` writes records."""
        # Not OR IGNORE, which passes over rows that lack something, too.
        verb, otherwise = ("INSERT OR REPLACE", "") if replace else ("INSERT", " ON CONFLICT (identity) DO NOTHING")
        into = f"INTO records ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
        with self._transaction():
            there = self._count([row[0] for row in rows]) if replace else 0
            before = self._connection.total_changes
            self._connection.executemany(f"{verb} {into}{otherwise}", rows)
            new = self._connection.total_changes - before - there
            kept = list((artifacts or {}).items())
            self._connection.executemany("INSERT OR IGNORE INTO artifacts VALUES (?, ?)", kept)
        return new

    def _count(self, identities: Sequence[str]) -> int:
        """How many of these there are."""
        return sum(len(self._read("SELECT 1 FROM records WHERE identity = ?", (name,))) for name in set(identities))

    def insert_aliases(self, rows: Iterable[Asked]) -> None:
        """Writes that these rows are answered by the records of their identities, which may yet come."""
        with self._transaction():
            self._connection.executemany("INSERT OR IGNORE INTO aliases VALUES (?, ?, ?, ?, ?)", rows)

    def asked(self) -> set[Asked]:
        """All rows under the names of the studies that asked for them."""
        found = self._read(f"SELECT {', '.join(Asked._fields)} FROM records")
        found += self._read("SELECT * FROM aliases") if self._has("aliases") else []
        return {Asked(*row) for row in found}

    def identities(self, *, answered: bool = False) -> set[str]:
        """The identities of all records; with `answered` of those alone that are neither `error` nor `timeout`."""
        condition = " WHERE verdict NOT IN ('error', 'timeout')" if answered else ""
        return {identity for (identity,) in self._read(f"SELECT identity FROM records{condition}")}

    def columns(
        self, *names: str, where: Mapping[str, Any] | None = None, aliases: bool = True
    ) -> dict[str, list[Any]]:
        """The records by columns, in the order in which they were written; all columns where none is named.

        With `aliases`, a record that answers two rows of a study, such as those of a model that has two names, is
        there twice, under both names. `where` keeps records whose column has that value, or one of several in a list.
        A hundred thousand records take a second or two, three columns of them a tenth.
        """
        names = names or COLUMNS
        for name in (*names, *(where or ())):
            if name not in COLUMNS:
                raise ArgumentError("column", repr(name), accepted=", ".join(COLUMNS), hint="Name one of them.")
        condition, values = _condition(where or {})
        rows = self._read(f"SELECT {', '.join(names)} FROM {self._rows(aliases)}{condition} ORDER BY place", values)
        found = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {n: [] for n in names}
        for name in _BOOLEANS:
            if name in found:
                found[name] = [None if value is None else bool(value) for value in found[name]]
        return found

    def _rows(self, aliases: bool) -> str:
        """The records are read from this: with their places, and behind them once more under their other names."""
        lacking = "".join(f"'' AS {name}, " for name, since in ADDED.items() if since > self._format)
        records = f"(SELECT *, {lacking}rowid AS place FROM records)"
        if not aliases or not self._has("aliases"):
            return records
        own = ", ".join(f"{'a' if name in Asked._fields else 'r'}.{name}" for name in COLUMNS)
        both = " AND ".join(f"a.{name} = r.{name}" for name in Asked._fields)
        return (
            f"(SELECT {', '.join(COLUMNS)}, place FROM {records} UNION ALL "
            f"SELECT {own}, {2**40} + a.rowid FROM aliases a JOIN {records} r USING (identity) WHERE NOT ({both}))"
        )

    def records(self, *, where: Mapping[str, Any] | None = None, aliases: bool = True) -> Iterator[Record]:
        """The records one by one, in the order in which they were written; `where` and `aliases` as for `columns`."""
        found = self.columns(*_FIELDS, where=where, aliases=aliases)
        for values in zip(*found.values(), strict=True):
            yield Record(**dict(zip(_FIELDS, values, strict=True)))

    def frame(self, *names: str, where: Mapping[str, Any] | None = None) -> Any:
        """`columns` as a data frame of pandas, or of polars where pandas is not installed.

        Raises PluginError where neither is.
        """
        return frame(self.columns(*names, where=where))

    def artifact(self, hash: str) -> bytes:
        """The safetensors file that was kept under a hash; raises KeyError where none was.

        - `artifact` of a record: `x` and `x_adv`, an adversarial example or witness
        - `input_hash`: `x`, the input
        - `model_hash`: the state dict
        """
        rows = self._read("SELECT content FROM artifacts WHERE hash = ?", (hash,))
        if not rows:
            raise KeyError(hash)
        return bytes(rows[0][0])

    def remember(self, configuration: Mapping[str, Any], created: str) -> str:
        """Keeps the configuration of a study that writes into this store, once, and returns its hash."""
        text = json.dumps(configuration, sort_keys=True)
        with self._transaction():
            values = (digest(text), text, created)
            self._connection.execute("INSERT OR IGNORE INTO studies VALUES (?, ?, ?)", values)
        return digest(text)

    def studies(self) -> list[dict[str, Any]]:
        """The configurations of all studies that wrote into this store, oldest first."""
        found = self._read("SELECT configuration FROM studies ORDER BY rowid")
        return [self._json(text) for (text,) in found]

    def remember_training(self, model: str, data: str, model_hash: str, record: Mapping[str, Any]) -> None:
        """Keeps how the model of this hash was trained, a `TrainingRecord` as a dictionary, under the study's names."""
        with self._transaction():
            values = (model_hash, model, data, json.dumps(record))
            self._connection.execute("INSERT OR IGNORE INTO trainings VALUES (?, ?, ?, ?)", values)

    def trainings(self) -> list[dict[str, Any]]:
        """The trainings that studies did on the fly, oldest first: `model`, `data`, `model_hash` and `epochs`."""
        if not self._has("trainings"):
            return []
        names = ("model", "data", "model_hash", "record")
        found = self._read(f"SELECT {', '.join(names)} FROM trainings ORDER BY rowid")
        rows = [dict(zip(names, row, strict=True)) for row in found]
        return [row | self._json(row.pop("record")) for row in rows]

    def _json(self, text: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _damaged(self.path, error) from error
        return found

    def _has(self, table: str) -> bool:
        """Whether this file has a table, which one of an older version that is only read may lack."""
        return bool(self._read("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)))

    def _opened(self, write: bool) -> sqlite3.Connection:
        if not write and not self.path.is_file():
            raise refused(self.path, "no file", "Run a study first: robust-plugins bench run study.toml.")
        try:
            if not write:
                return self._for_reading()
            connection = sqlite3.connect(self.path, timeout=60, check_same_thread=False)
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables:
                self._check_format(connection)
                self._bring_up_to_date(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            # A power cut may lose the last batches, which are computed again; it damages nothing.
            connection.execute("PRAGMA synchronous = NORMAL")
            # Identities are in no order, so that each batch changes many pages: they are gathered for longer.
            connection.execute("PRAGMA wal_autocheckpoint = 4000")
            with connection:
                for statement in _TABLES.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {FORMAT}")
        except sqlite3.DatabaseError as error:
            raise refused(self.path, f"no store ({error})", "Name another file.") from error
        return connection

    def _for_reading(self) -> sqlite3.Connection:
        uri = self.path.resolve().as_uri()
        connection = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=60, check_same_thread=False)
        try:
            self._check_format(connection)
        except sqlite3.OperationalError:  # in a folder that cannot be written to, where SQLite has no place for its log
            connection.close()
            connection = sqlite3.connect(f"{uri}?immutable=1", uri=True, check_same_thread=False)
            self._check_format(connection)
        return connection

    def _bring_up_to_date(self, connection: sqlite3.Connection) -> None:
        """Adds the columns that a store of an earlier format lacks; its records stay what they are."""
        with connection:
            for name, since in ADDED.items():
                if since > self._format:
                    connection.execute(f"ALTER TABLE records ADD COLUMN {name} TEXT NOT NULL DEFAULT ''")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        self._format = FORMAT

    def _check_format(self, connection: sqlite3.Connection) -> None:
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        self._format = found
        if not 1 <= found <= FORMAT:
            read = f"a store of format {found}, where this version reads 1 to {FORMAT}"
            what = read if found else "no store of studies"
            raise refused(self.path, what, "Name another file, or use the version that wrote it.")
        there = {name for _, name, *_ in connection.execute("PRAGMA table_info(records)")}
        lacking = [name for name in COLUMNS if name not in there and ADDED.get(name, 0) <= found]
        if lacking:
            raise refused(self.path, f"edited: it has no column {lacking[0]}", "Take a copy that nobody edited.")


def artifact_hash(content: bytes) -> str:
    """The name that an artifact is kept under."""
    return digest(content)


def frame(columns: Mapping[str, Sequence[Any]]) -> Any:
    """A data frame of pandas, or of polars where pandas is not installed; raises PluginError where neither is."""
    try:
        import pandas
    except ImportError:
        try:
            import polars
        except ImportError:
            raise PluginError(
                "a data frame needs pandas or polars; install one: pip install pandas. `columns` needs neither."
            ) from None
        return polars.DataFrame(columns, infer_schema_length=None)
    return pandas.DataFrame(columns)


def _condition(where: Mapping[str, Any]) -> tuple[str, list[Any]]:
    parts, values = [], []
    for name, value in where.items():
        several = list(value) if isinstance(value, Collection) and not isinstance(value, str | bytes) else [value]
        parts.append(f"{name} IN ({', '.join('?' * len(several))})")
        values += several
    return (f" WHERE {' AND '.join(parts)}" if parts else ""), values


def _locked(path: Path) -> int | None:
    """A lock on a file beside the store, which ends with the process however it ends; None where there are none."""
    try:
        import fcntl
    except ImportError:  # on Windows SQLite's own locks still keep the file whole
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise refused(path, f"not to be written ({error})", "Name a file in a folder that you may write to.") from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        raise refused(
            path, "being written by another run", "Wait for it, or write to another store and compare the two."
        ) from None
    return held


def _damaged(path: Path, error: Exception) -> ArgumentError:
    hint = "Take a copy that is whole; `sqlite3 FILE .recover` may save what is left."
    return refused(path, f"damaged, edited, or copied while it was written ({error})", hint)


def refused(path: Path, found: str, hint: str) -> ArgumentError:
    """The error about a file that is no store, or none that can be used."""
    return ArgumentError("store", f"{str(path)!r}: {found}", accepted="a store of `bench run`", hint=hint)
