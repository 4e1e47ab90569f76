"""What strangers do to studies: files that are odd, paths that are taken, and components and models that misbehave."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from support.studies import Moods, answers, study

import robust_plugins as rp
from robust_plugins.cli import commands
from robust_plugins.registry.registry import Registry, using

pytest.importorskip("pydantic")

SMALL = """store = "s.sqlite"
[[models]]
name = "net"
source = "mlp(widths=(4,))"
train = { epochs = 1 }
[[data]]
name = "moons"
samples = 4
[[balls]]
eps = [0.05]
[[components]]
use = "interval:ibp"
[run]
isolate = false
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a file").write_text("words")
    return tmp_path


@pytest.fixture(autouse=True)
def moods() -> Iterator[None]:
    with using(Registry(entry_points=False, block=(), load=())):
        rp.register(Moods(), "test")
        yield


def bench(*arguments: object, text: str | None = None) -> Result:
    if text is not None:
        Path("study.toml").write_text(text, encoding="utf-8")
    return CliRunner().invoke(commands, ["bench", *map(str, arguments)])


def test_a_mark_at_the_beginning_of_a_file_is_passed_over() -> None:
    assert bench("check", "study.toml", text="\ufeff" + SMALL).exit_code == 0


WRONG = {
    "a store that is a folder": (SMALL.replace("s.sqlite", "a folder"), "store"),
    "a store below a file": (SMALL.replace("s.sqlite", "a file/s.sqlite"), "store"),
    "a store without a name": (SMALL.replace("s.sqlite", ""), "'store' is ''"),
    "a store that no file can be called": (SMALL.replace("s.sqlite", "a\\u0000b"), "accepted: the name of a file"),
    "a device that holds no numbers": (SMALL + 'device = "meta"\n', "accepted: 'cpu'"),
    "a device that is none": (SMALL + 'device = "toaster"\n', "accepted: 'cpu'"),
    "a misspelt component": (SMALL.replace("interval:ibp", "interval:ipb"), "Did you mean 'interval:ibp'"),
    "a parameter that is a date": (SMALL.replace('ibp"', 'ibp"\nparameters = {outward = 2020-01-01}'), "2020"),
    "a radius that is there twice": (SMALL.replace("[0.05]", "[0.05, 0.05]"), "0.05 is there twice"),
    "a model for no data": (SMALL.replace("train =", "data = []\ntrain ="), "accepted: at least 1"),
    "tables that are one": (SMALL.replace("[[balls]]", "[balls]"), r"tables, each under a line [[balls]]"),
    "a table that is many": (SMALL.replace("[run]", "[[run]]"), "a table, under a line [run]"),
    "nothing": ("", "'models' is missing; accepted: at least one table, [[models]]"),
    "a budget that is none": (
        SMALL + '[[poisoning]]\nname = "p"\nmodel = "net"\ndata = "moons"\nbudget = "some"\n', "budget"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_said_by_check_and_before_anything_is_trained(case: str, folder: Path) -> None:
    text, message = WRONG[case]
    checked = bench("check", "study.toml", text=text)
    assert checked.exit_code in (1, 2), checked.output
    assert message in checked.output
    ran = bench("run", "study.toml", "--quiet")
    assert ran.exit_code == 2, ran.output
    assert message in ran.output
    assert "training" not in ran.output
    assert not list(folder.rglob("*.pt"))
    assert (folder / "a file").read_text() == "words"


def test_nothing_is_written_over_a_store(folder: Path) -> None:
    assert bench("run", "study.toml", "--quiet", text=SMALL).exit_code == 0
    before = (folder / "s.sqlite").read_bytes()
    (folder / "s.md").write_bytes(before)
    (folder / "s.csv").write_bytes(before)
    for arguments in (("report", "s.sqlite", "--page", "s.sqlite"), ("report", "s.md"), ("export", "s.csv", "s.csv")):
        refused = bench(*arguments)
        assert refused.exit_code == 2
        assert re.search("accepted: a (new file|file other than the store)", refused.output)
    assert bench("report", "s.sqlite", "--page", "s.md").exit_code == 2  # the page and its markdown in one file
    for name in ("s.sqlite", "s.md", "s.csv"):
        assert (folder / name).read_bytes() == before


def test_names_may_be_anything(folder: Path) -> None:
    names = {
        '"net"': '"mod\u00e8le \u00fc/\u2603 <b>\\n[x]"', "s.sqlite": "\u00fc \u2603/s \u00e9.sqlite",
        'ibp"\n': 'ibp"\nname = "<script>|`x`"\n',
    }  # fmt: skip
    text = SMALL
    for old, new in names.items():
        text = text.replace(old, new)
    assert bench("run", "study.toml", text=text).exit_code == 0
    assert bench("run", "study.toml", "--quiet").output.startswith("0 records written")  # its weights are found again
    assert bench("verify", "\u00fc \u2603/s \u00e9.sqlite").exit_code == 0
    assert bench("report", "\u00fc \u2603/s \u00e9.sqlite").exit_code == 0
    page = (folder / "\u00fc \u2603" / "s \u00e9.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;|`x`" in page


def test_the_time_is_measured_where_that_is_asked(folder: Path) -> None:
    text = (
        SMALL.replace("s = 4", "s = 100")
        + '[[components]]\nuse = "interval:crown"\n[[components]]\nuse = "test:moody"\n'
    )
    text = text.replace('moody"', 'moody(seconds=0.02)"').replace("isolate = false", "isolate = false\nbatch_size = 20")
    measured = bench("check", "--measure", "study.toml", text=text)
    assert measured.exit_code == 0, measured.output
    said = {line.partition(": about ")[0]: line.partition(": about ")[2] for line in measured.stdout.splitlines()}
    assert {"interval:ibp", "interval:crown", "test:moody(seconds=0.02)"} < said.keys()
    seconds = float(said["test:moody(seconds=0.02)"].removesuffix(" s"))
    assert 0.1 <= seconds < 1.5  # five batches, each of 0.02 s, whatever the number of samples
    assert "not run yet" not in measured.output
    assert "trained first" not in measured.output
    assert not (folder / "s.sqlite").exists()
    assert "training" not in bench("run", "study.toml").output
    assert "400 records, 400 of them in the store" in bench("check", "study.toml").output


@pytest.mark.parametrize("isolate", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_components_that_print_move_or_leave(isolate: bool, folder: Path) -> None:
    moods = ("prints", "moves", "doubles", "leaves", "settles in", "cannot say", "forks", *["interrupts"] * isolate)
    asked = [{"use": "test:moody", "name": mood, "parameters": {"mood": mood}} for mood in moods]
    path, limit = list(sys.path), sys.getrecursionlimit()
    found = study(
        folder, balls=[{"eps": [0.2]}], components=[*asked, {"use": "interval:ibp"}],
        run={"batch_size": 12, "isolate": isolate},
    )  # fmt: skip
    outcome = found.run()
    assert outcome.written == (len(moods) + 2) * 12
    assert (folder, path, sys.getrecursionlimit()) == (Path.cwd(), sys.path, limit)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.is_anomaly_enabled()
    torch.set_num_threads(1)
    rows = answers(found).values()
    said = {mood: {r["error"] for r in rows if r["component"] == mood} for mood in moods}
    assert said["prints"] == said["settles in"] == said["forks"] == {""}
    assert said["cannot say"] == {"OddError, whose message cannot be read"}
    assert not isolate or said["interrupts"] == {"KeyboardInterrupt: "}
    assert said["leaves"] == {"SystemExit: 0"}
    for mood in ("moves", "doubles"):
        (cause,) = said[mood]
        assert "ComponentError" in cause or "RuntimeError" in cause, cause
    whole = study(folder / "whole", balls=[{"eps": [0.2]}], components=[{"use": "interval:ibp"}],
                  run={"batch_size": 12, "isolate": False})  # fmt: skip
    whole.run()
    undisturbed = answers(whole)
    assert {i: r for i, r in answers(found).items() if r["component"] in ("clean", "interval:ibp")} == undisturbed


def test_two_runs_on_one_store(folder: Path) -> None:
    """The second is refused in a sentence, and the audit of what is there goes on."""
    Path("study.toml").write_text(SMALL)
    first = rp.load_study("study.toml")
    assert bench("run", "study.toml", "--quiet").exit_code == 0
    from robust_plugins.benchmark.store import Store

    with Store(first.store_path, write=True):
        refused = bench("run", "study.toml", "--quiet")
        assert refused.exit_code == 2
        assert "being written by another run" in refused.output
        for command in ("audit", "verify"):
            assert bench(command, "s.sqlite").exit_code == 0
        assert bench("check", "study.toml").exit_code == 0
