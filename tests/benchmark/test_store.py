"""Records and their store: identities, transactions, one writer, columns of many records."""

from __future__ import annotations

import math
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest

import robust_plugins as rp
from robust_plugins.benchmark.planning import Batch
from robust_plugins.benchmark.records import COLUMNS, Asked, Record, ball_fields, digest, ranges, samples_of
from robust_plugins.benchmark.store import Store, artifact_hash
from robust_plugins.benchmark.work import Answers, Job

RECORD = Record(
    model="small", data="digits", sample=3, norm="linf", eps=0.1, clip="[0.0,1.0]", component="pgd", method="art:pgd",
    kind="attack", parameters='{"steps":40}', seed=0, verdict="falsified", success=True, margin=-0.5, distance=0.1,
    loss=1.2, label=1, prediction=7, queries=41, seconds=0.01, backend_seconds=0.008, error="", artifact="",
    model_hash="m", input_hash="x", component_hash="c", versions='{"torch":"2"}', device="cpu", threads=1,
    batch_size=64, batch="0-63", machine="here", created="2026-01-01T00:00:00Z",
)  # fmt: skip
SILENT = replace(RECORD, sample=4, input_hash="y", verdict="timeout", success=None, margin=None, queries=None)


def many(count: int) -> list[Record]:
    return [replace(RECORD, sample=i, input_hash=str(i), margin=i / 7) for i in range(count)]


def test_every_field_comes_back(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite", write=True) as store:
        assert store.insert([RECORD, SILENT]) == 2
    with Store(tmp_path / "s.sqlite") as store:
        assert list(store.records()) == [RECORD, SILENT]
        assert store.columns("sample", "success", "margin", where={"verdict": ["timeout", "error"]}) == {
            "sample": [4], "success": [None], "margin": [None],
        }  # fmt: skip
        assert list(store.columns()) == list(COLUMNS)
        assert store.identities() == {RECORD.identity, SILENT.identity}
        assert store.identities(answered=True) == {RECORD.identity}


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite", write=True) as store:
        store.insert([replace(RECORD, margin=-math.inf, loss=math.nan)])
        (found,) = store.records()
    assert found.margin == -math.inf
    assert found.loss is None


def test_rows_of_a_batch_are_those_of_its_records(tmp_path: Path) -> None:
    """The quick way from answers to the store, column by column, and the plain one, record by record, agree."""
    common = {
        "model": "small", "data": "digits", "component": "pgd", "method": "art:pgd", "kind": "attack", "seed": 0,
        "norm": "linf", "eps": 0.1, "model_hash": "m", "component_hash": "c", "batch_size": 64, "batch": "0-2",
    }  # fmt: skip
    own = [{"sample": i, "label": i, "input_hash": str(i)} for i in range(3)]
    answers = [
        {"verdict": "falsified", "success": True, "margin": -math.inf, "loss": math.nan},
        {"verdict": "timeout", "error": "killed", "seconds": None},
        {"verdict": "unknown", "success": False, "margin": 0.5, "seconds": 2.0, "queries": 7},
    ]
    job = Job(subject="", kind="attack", component=b"", ball=None, samples=(0, 1, 2), seed=0)
    records = [Record(**common | one | row) for one, row in zip(own, answers, strict=True)]
    batch = Batch(job, b"", "pgd", common, own, [record.identity for record in records])
    with Store(tmp_path / "s.sqlite", write=True) as store:
        assert store.insert_rows(batch.rows(Answers(answers))) == 3
        assert store.insert_rows(batch.rows(Answers(answers))) == store.insert(records) == 0
        assert list(store.records()) == records
        assert store.identities() == {record.identity for record in records}
    with pytest.raises(ValueError, match="colour"):
        batch.rows(Answers([*answers[:2], {"colour": 1}]))
    with pytest.raises(ValueError, match="to 3 rows"):
        batch.rows(Answers(answers[:2]))


IDENTIFYING = {
    "model_hash", "input_hash", "label", "norm", "eps", "clip", "box", "kind", "component_hash", "versions",
    "seed", "device", "batch_size",
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(Record)])
def test_what_can_change_an_answer_changes_the_identity_and_nothing_else_does(name: str) -> None:
    value = getattr(RECORD, name)
    other = f"{value}!" if isinstance(value, str) else not value if isinstance(value, bool) else value + 1
    assert (replace(RECORD, **{name: other}).identity != RECORD.identity) is (name in IDENTIFYING)


def test_parts_of_a_hash_do_not_run_together() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("ab") == digest(b"ab")


def test_balls_come_back() -> None:
    boxes = [
        rp.Box(eps=0.5, clip=None, radius=0.25),
        rp.Box(eps=1, clip=([0, -math.inf, 0, 0], [9, 1, 1, 1]), radius=[math.inf, 0.1, 1, 1], one_hot=[[2, 3]],
               integers=[0], immutable=[1]),
    ]  # fmt: skip
    for ball in (rp.Linf(eps=0.1, clip=(0, 1)), rp.L2(eps=0.5, clip=None), rp.L1(eps=3, clip=(-1, 1)), *boxes):
        assert replace(RECORD, **ball_fields(ball)).ball() == ball
    assert replace(RECORD, **ball_fields(None)).ball() is None


def test_samples_are_written_as_ranges() -> None:
    assert ranges([3, 5, 6, 7]) == "3,5-7"
    assert samples_of("3,5-7") == [3, 5, 6, 7]
    assert samples_of(ranges([])) == []


def test_a_record_that_is_there_stays_unless_replaced(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite", write=True) as store:
        store.insert([RECORD])
        later = replace(RECORD, seconds=9.0, machine="there")
        assert store.insert([later, SILENT]) == 1
        assert list(store.records()) == [RECORD, SILENT]
        assert store.insert([later], replace=True) == 0
        assert set(store.records()) == {later, SILENT}


def test_a_batch_is_written_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite", write=True) as store:
        broken = replace(SILENT)
        object.__setattr__(broken, "verdict", None)
        with pytest.raises(sqlite3.Error):
            store.insert([RECORD, broken])
        assert len(store) == 0


def test_artifacts_and_studies(tmp_path: Path) -> None:
    name = artifact_hash(b"tensor")
    with Store(tmp_path / "s.sqlite", write=True) as store:
        store.insert([replace(RECORD, artifact=name)], {name: b"tensor"})
        assert store.remember({"b": 1, "a": 2}, "now") == store.remember({"a": 2, "b": 1}, "later")
        store.remember({"a": 3}, "later")
    with Store(tmp_path / "s.sqlite") as store:
        assert store.artifact(name) == b"tensor"
        assert store.studies() == [{"a": 2, "b": 1}, {"a": 3}]
        with pytest.raises(KeyError):
            store.artifact("other")


def test_one_writer_and_any_readers(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with Store(path, write=True) as store, Store(path) as reader:
        with pytest.raises(rp.ArgumentError, match="written by another run"):
            Store(path, write=True)
        store.insert([RECORD])
        assert len(reader) == 1
        with pytest.raises(sqlite3.OperationalError):
            reader.insert([SILENT])
    with Store(path, write=True) as store:  # the lock is gone with its writer
        assert len(store) == 1


@pytest.mark.parametrize(
    ("content", "match"), [(None, "no file"), (b"words that are no database", "no store"), (b"", "no store of studies")]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes | None, match: str) -> None:
    if content is not None:
        (tmp_path / "s.sqlite").write_bytes(content * 100)
    with pytest.raises(rp.ArgumentError, match=match):
        Store(tmp_path / "s.sqlite")


@pytest.mark.parametrize("write", [False, True])
def test_a_store_of_the_first_format_is_read_and_written(tmp_path: Path, write: bool) -> None:
    path = tmp_path / "s.sqlite"
    other = Asked(RECORD.identity, "twin", "digits", 3, "pgd")
    with Store(path, write=True) as store:
        store.insert([RECORD])
        store.insert_aliases([other])
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE records DROP COLUMN box")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    with Store(path, write=write) as store:
        assert list(store.records()) == [RECORD, replace(RECORD, model="twin")]
        assert store.columns("box", "sample", where={"box": ""})["sample"] == [3, 3]
        if write:
            boxed = replace(SILENT, norm="box", box='{"radius":1.0}')
            assert store.insert([boxed]) == 1
            assert list(store.records(where={"norm": "box"})) == [boxed]
    with Store(path) as store:
        assert len(store) == 1 + write
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(rp.ArgumentError, match="a store of format 9, where this version reads 1 to 2"):
        Store(path)


def test_somebody_elses_database_is_not_written_into(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "s.sqlite")
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(rp.ArgumentError, match="no store of studies"):
        Store(tmp_path / "s.sqlite", write=True)


def test_a_full_disk_is_said_and_what_was_written_stays(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite", write=True) as store:
        store.insert(many(3))
        (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(rp.ArgumentError, match=r"disk is full.*Make room"):
            store.insert(many(5000), {artifact_hash(b"x" * 10**5): b"x" * 10**5})
        store._connection.execute("PRAGMA max_page_count = 100000")
        assert len(store) == 3
        assert store.insert(many(50)) == 47


def test_unknown_columns_are_refused_by_name(tmp_path: Path) -> None:
    with (
        Store(tmp_path / "s.sqlite", write=True) as store,
        pytest.raises(rp.ArgumentError, match=r"marginn.*accepted: identity"),
    ):
        store.columns("marginn")


def test_a_frame_has_the_columns(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    with Store(tmp_path / "s.sqlite", write=True) as store:
        store.insert(many(3))
        found = store.frame("sample", "margin")
    assert list(found["sample"]) == [0, 1, 2]
    assert list(found.columns) == ["sample", "margin"]


def test_a_frame_needs_pandas_or_polars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, name, None)
    with (
        Store(tmp_path / "s.sqlite", write=True) as store,
        pytest.raises(rp.PluginError, match="pip install pandas"),
    ):
        store.frame()


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_batches(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    code = (
        "import pickle, sys\n"
        "from dataclasses import replace\n"
        "from robust_plugins.benchmark.store import Store\n"
        "record = pickle.loads(sys.stdin.buffer.read())\n"
        f"store = Store({str(path)!r}, write=True)\n"
        "for batch in range(10**6):\n"
        "    store.insert([replace(record, sample=7 * batch + i, input_hash=f'{batch} {i}') for i in range(7)])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(RECORD))
    process.stdin.close()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with Store(path) as store:
                if len(store) > 70:
                    break
        except rp.ArgumentError:
            time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with Store(path, write=True) as store:
        assert len(store) > 70
        assert len(store) % 7 == 0


@pytest.mark.slow
def test_a_hundred_thousand_records_are_read_in_seconds(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite", write=True) as store:
        store.insert(many(100_000))
        start = time.process_time()
        assert len(store.columns()["sample"]) == 100_000
        assert time.process_time() - start < 10
        start = time.process_time()
        assert len(store.columns("sample", "margin", "success")["margin"]) == 100_000
        assert time.process_time() - start < 3
