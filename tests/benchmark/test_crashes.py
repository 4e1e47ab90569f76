"""A batch that crashes its process is halved until what crashes is alone."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cloudpickle")

import cloudpickle

from robust_plugins.benchmark import executing, work
from robust_plugins.benchmark.planning import Batch
from robust_plugins.benchmark.records import COLUMNS
from robust_plugins.benchmark.work import POISONED, Answers, Job
from robust_plugins.harness.served import BEGINNING, DiedError


def job(count: int, kind: str = "attack") -> Job:
    return Job(subject="", kind=kind, component=b"", ball=None, samples=tuple(range(10, 10 + count)), seed=0, timeout=9)


@pytest.fixture
def crashes(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The calls so far; those with the sample 13 or 16 crash."""
    calls: list[Job] = []

    def isolated(part: Job, parcel: object) -> Answers:
        calls.append(part)
        if {13, 16} & set(part.samples):
            raise DiedError("signal 11")
        return Answers([{"verdict": "unknown", "queries": i} for i in part.samples])

    monkeypatch.setattr(executing, "_isolated", isolated)
    return calls


def test_only_the_samples_that_crash_are_errors(crashes: list[Job]) -> None:
    _, answers = executing.execute(0, job(8), b"", True)
    assert [r.get("queries") for r in answers.rows] == [10, 11, 12, None, 14, 15, None, 17]
    assert [r["error"] for r in answers.rows if r["verdict"] == "error"] == ["signal 11"] * 2
    assert crashes[0].timeout == 9
    assert all(part.timeout == 9 * len(part.samples) / 8 for part in crashes)
    own = [{"sample": i, "label": 0, "input_hash": ""} for i in range(30, 38)]
    fields = {
        "model": "", "data": "", "component": "", "method": "", "kind": "attack", "seed": 0, "model_hash": "",
        "component_hash": "", "batch_size": 8, "batch": "30-37",
    }  # fmt: skip
    batch = Batch(job(8), b"", "", fields, own, [""] * 8)
    place = COLUMNS.index("batch")
    assert [r[place] for r in batch.rows(answers)] == ["30-31", "30-31", "32", "33", "34-35", "34-35", "36", "37"]
    whole = Answers([{"verdict": "unknown"}] * 8)
    assert {r[place] for r in batch.rows(whole)} == {"30-37"}


def test_what_always_crashes_is_given_up(crashes: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    def crashing(part: Job, parcel: object) -> Answers:
        crashes.append(part)
        raise DiedError("signal 11")

    monkeypatch.setattr(executing, "_isolated", crashing)
    _, answers = executing.execute(0, job(100), b"", True)
    assert len(crashes) == 16
    assert {r["verdict"] for r in answers.rows} == {"error"}
    assert {r["error"] for r in answers.rows} == {
        "signal 11", "not run: the component crashes on other samples of its batch"
    }  # fmt: skip
    assert len(answers.rows) == len(answers.calls) == 100


def test_a_training_is_not_halved(crashes: list[Job]) -> None:
    _, answers = executing.execute(0, job(8, POISONED), b"", True)
    assert len(crashes) == 1
    assert [r["error"] for r in answers.rows] == ["signal 11"] * 8


@dataclass(frozen=True)
class Adapted:
    """A component whose backend an adapter imports."""

    def import_backend(self) -> None:
        IMPORTED.append("by the adapter")


IMPORTED: list[str] = []


class Asked:
    """A process that has been asked so much, and within which time."""

    def __init__(self, there: bool) -> None:
        self.there, self.questions, self.noted = there, [], set[Any]()

    def ask(self, question: tuple[Job, bytes | None], timeout: float | None) -> Any:
        self.questions.append((question[1], timeout))
        return self.there if question[1] is None else Answers([])


@pytest.mark.parametrize("there", [True, False])
def test_imports_are_not_the_time_of_a_batch(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Asked(there)
    monkeypatch.setattr(executing, "_process", lambda: process)
    executing._isolated(job(8), b"the subject")
    first = [(None, BEGINNING), (b"" if there else b"the subject", 9)]
    assert process.questions == first
    executing._isolated(job(8), b"the subject")
    again = [(b"", 9)] if there else first  # what it has, and has imported, it is not asked once more
    assert process.questions == first + again


def test_a_process_is_asked_again_about_what_is_new_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Asked(True)
    monkeypatch.setattr(executing, "_process", lambda: process)
    another = [replace(job(8), component=b"another"), replace(job(8), subject="another"), job(8)]
    for each in (job(8), *another):
        process.questions.clear()
        executing._isolated(each, b"the subject")
        assert [content for content, _ in process.questions] == [None, b""]
    process.questions.clear()
    executing._isolated(job(8), b"the subject")
    assert len(process.questions) == 1


def test_a_job_is_prepared_by_imports_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_backend.py").write_text("")
    (tmp_path / "broken_backend.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    IMPORTED.clear()
    made = Job(
        subject="s", kind="attack", component=cloudpickle.dumps(Adapted()), ball=None, samples=(0,), seed=0,
        modules=("broken_backend", "no_backend", "some_backend"),
    )  # fmt: skip
    assert not work.prepared(made)
    assert IMPORTED == ["by the adapter"]
    assert "some_backend" in sys.modules
    monkeypatch.setitem(work._subjects, ("s", "cpu"), (None, None, None))
    assert work.prepared(made)
    sys.modules.pop("some_backend")
