"""Stores that were damaged, or edited by hand: each command says so in one sentence, and what is there is not lost."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import robust_plugins as rp
from robust_plugins.benchmark.auditing import audit
from robust_plugins.benchmark.store import Store
from robust_plugins.benchmark.verifying import verify
from robust_plugins.cli import commands

pytest.importorskip("pydantic")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that a run has written, with its examples and weights."""
    folder = tmp_path_factory.mktemp("whole")
    rp.Study(
        models=[{"name": "net", "source": "mlp(widths=(4,))", "train": {"epochs": 1}}],
        data=[{"name": "moons", "samples": 20}],
        balls=[{"norm": norm, "eps": [0.01, 0.5]} for norm in ("linf", "l2")],
        components=[{"use": "interval:ibp"}, {"use": "rp:pgd(steps=3)"}],
        store=str(folder / "s.sqlite"), keep=["examples", "weights"], run={"isolate": False},
    ).run()  # fmt: skip
    return folder / "s.sqlite"


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / "s.sqlite"))


def edit(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        assert connection.execute(statement).rowcount != 0
    connection.close()


def bench(*arguments: object) -> Result:
    result = CliRunner().invoke(commands, ["bench", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


FIRST = "(SELECT rowid FROM records WHERE kind = 'attack' LIMIT 1)"
IMPOSSIBLE = {
    "a radius": ("eps = 0.02", "its identity is not that of its"),
    "a label": ("label = 1 - label", "its identity is not that of its"),
    "another input": ("input_hash = 'x'", "its identity is not that of its"),
    "a word for a verdict": ("verdict = 'maybe'", "its verdict is 'maybe', where certified"),
    "a norm": ("norm = 'l7'", "its norm is 'l7'"),
    "a kind": ("kind = 'thing'", "its kind is 'thing'"),
    "a radius below 0": ("eps = -1", "its eps is -1.0"),
    "a word for a number": ("margin = 'large'", "its margin is 'large', where a number"),
    "parameters that are no JSON": ("parameters = '{oops'", "its parameters is '{oops'"),
    "parameters that are no object": ("parameters = '[]'", "its parameters is '[]'"),
    "a batch": ("batch = 'a-b'", "its batch is 'a-b'"),
    "a range": ("clip = '0'", "its clip is '0'"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_no_run_has_written_is_refused_by_name(case: str, path: Path) -> None:
    change, message = IMPOSSIBLE[case]
    edit(path, f"UPDATE records SET {change} WHERE rowid = {FIRST}")
    for command in (["report"], ["audit"], ["verify", "--sample", 1000]):
        refused = bench(command[0], path, *command[1:])
        assert refused.exit_code == 2
        assert message in refused.output
        assert "rp:pgd(steps=3) on sample 0 of moons, net" in refused.output
    assert not path.with_suffix(".html").exists()
    assert bench("export", path, path.with_suffix(".csv")).exit_code == 0
    assert len(path.with_suffix(".csv").read_text().splitlines()) == 1 + 180


BROKEN = {
    "no column": ("ALTER TABLE records DROP COLUMN loss", "edited: it has no column loss"),
    "a study that is no JSON": ("UPDATE studies SET configuration = '{oops'", "damaged, edited"),
    "no studies": ("DROP TABLE studies", "no such table: studies"),
    "other examples": ("UPDATE artifacts SET content = x'00'", "other content than its name says"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_store_that_lacks_something_is_refused_in_a_sentence(case: str, path: Path) -> None:
    change, message = BROKEN[case]
    edit(path, change)
    refused = bench("report", path)
    assert refused.exit_code == 2
    assert message in refused.output
    verified = bench("verify", path)
    assert verified.exit_code in (1, 2)
    assert len(set(verified.output.splitlines())) <= 21


@pytest.mark.parametrize("damage", ["cut in half", "a page short", "overwritten"])
def test_a_damaged_file_is_refused_in_a_sentence(damage: str, path: Path) -> None:
    content = path.read_bytes()
    cut = {
        "cut in half": content[: len(content) // 2],
        "a page short": content[:-4096],
        "overwritten": content[:8192] + bytes([255]) * (len(content) - 8192),
    }
    path.write_bytes(cut[damage])
    for command in ("report", "audit", "verify"):
        refused = bench(command, path)
        assert refused.exit_code == 2
        assert "malformed" in refused.output
        assert len(refused.output.splitlines()) == 1
    assert path.read_bytes() == cut[damage]


def test_a_verdict_that_was_turned_round_is_found(path: Path) -> None:
    """By `verify` always; by the audit where another record says otherwise."""
    with Store(path) as store:
        assert all(v.agrees for v in verify(store, 1000))
    assert not audit(path).violations
    chosen = "(SELECT rowid FROM records WHERE verdict = 'falsified' AND kind = 'attack' AND eps = 0.5 LIMIT 1)"
    edit(path, f"UPDATE records SET verdict = 'unknown', success = 0 WHERE rowid = {chosen}")
    with Store(path) as store:
        (found,) = [v for v in verify(store, 1000) if not v.agrees]
    assert found.differences[:2] == ("verdict was unknown, is falsified", "success was False, is True")

    chosen = "(SELECT rowid FROM records WHERE verdict != 'certified' AND kind = 'certifier' AND eps = 0.5 LIMIT 1)"
    edit(path, f"UPDATE records SET verdict = 'certified', margin = 9.0 WHERE rowid = {chosen}")
    with Store(path) as store:
        found = [v for v in verify(store, 1000) if not v.agrees]
    assert len(found) == 2
    assert audit(path).violations
