import json

import pytest
from click.testing import CliRunner
from support.study_records import record

from robust_plugins.benchmark.columns import Columns
from robust_plugins.benchmark.differences import differences
from robust_plugins.benchmark.store import Store
from robust_plugins.cli import commands


def columns(*rows):
    return Columns.of({name: getattr(r, name) for name in r.__dataclass_fields__} for r in rows)


OLD = [
    record(sample=0, verdict="unknown", margin=-0.1, seconds=1.0),
    record(sample=1, verdict="certified", margin=0.2, seconds=1.0),
    record(sample=2, verdict="certified", margin=0.3, seconds=1.0),
    record(component="gone", sample=0),
]
NEW = [
    record(sample=0, verdict="certified", margin=0.1, seconds=0.5, versions='{"torch":"9"}'),
    record(sample=1, verdict="certified", margin=0.2 + 1e-7, seconds=0.25, versions='{"torch":"9"}'),
    record(sample=2, verdict="timeout", seconds=0.5, versions='{"torch":"9"}', parameters='{"steps":2}'),
    record(component="added", sample=0),
]


def test_what_changed_is_told_question_by_question():
    found = differences(columns(*OLD), columns(*NEW))
    assert len(found.pairs) == 3
    where = ("small", "digits", "bounds", "linf 0.1")
    assert found.verdicts.rows == (
        (*where, "unknown", "certified", "1"), (*where, "certified", "timeout", "1"),
    )  # fmt: skip
    assert found.figures.rows == ((*where, "3", "66.7 %", "66.7 %", "1", "+0.2", "0.50 (0.38-0.50)"),)
    assert [row[:4] for row in found.asked.rows] == [
        ("old", "small", "digits", "gone"),
        ("new", "small", "digits", "added"),
    ]
    made = {row[0]: row[1:] for row in found.made.rows}
    assert made["version of torch"] == ("none", "9")
    assert "component of bounds" in made


def test_equal_stores_differ_in_nothing():
    found = differences(columns(*OLD), columns(*OLD))
    assert (found.made.rows, found.asked.rows, found.verdicts.rows) == ((), (), ())
    assert "No verdict changed." in str(found)


@pytest.mark.parametrize(("margin", "code"), [(0.25, 0), (-0.1, 3)])
def test_contradictions_between_the_two_are_found(tmp_path, margin, code):
    won = margin < 0
    attack = record(
        component="pgd", kind="attack", verdict="falsified" if won else "unknown", success=won, margin=margin, sample=1
    )
    for name, rows in {"old": OLD, "new": [attack]}.items():
        with Store(tmp_path / name, write=True) as store:
            store.insert(rows)
    result = CliRunner().invoke(commands, ["bench", "compare", str(tmp_path / "old"), str(tmp_path / "new"), "--json"])
    assert result.exit_code == code
    assert len(json.loads(result.output)["contradictions"]) == (1 if won else 0)
