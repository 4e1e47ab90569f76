"""`robust-plugins bench`: from the example to records, exports and records that are derived again."""

from __future__ import annotations

import csv
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import robust_plugins as rp
from robust_plugins.benchmark import running
from robust_plugins.benchmark.store import Store
from robust_plugins.cli import bench_study, commands

pytest.importorskip("pydantic")

SMALL = """
store = "s.sqlite"
keep = ["examples", "inputs", "weights"]
[[models]]
name = "net"
source = "mlp(widths=(8,))"
train = { epochs = 1 }
[[data]]
name = "moons"
samples = 8
[[balls]]
eps = [0.05]
[[components]]
use = "interval:ibp"
[[explanations]]
use = "interval:crown"
delta = 0.5
[run]
isolate = false
batch_size = 5
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.toml").write_text(SMALL)
    return tmp_path


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(commands, ["bench", *map(str, arguments)])


def test_init_writes_an_example_once(folder: Path) -> None:
    result = bench("init", "my study.toml")
    assert result.exit_code == 0
    assert "bench run 'my study.toml'" in result.stdout
    assert bench("check", "my study.toml").exit_code == 0
    again = bench("init", "my study.toml")
    assert again.exit_code == 2
    assert "is there already" in again.stderr


def test_check_run_export_verify(folder: Path) -> None:
    checked = bench("check", "study.toml")
    assert checked.exit_code == 0
    assert checked.stdout.splitlines() == [
        "24 records, 0 of them in the store",
        "interval:ibp: not run yet, at most 8 min by its timeout",
        "interval:crown: not run yet, at most 8 min by its timeout",
        "trained first: net on moons, 1 epochs",
    ]
    assert not (folder / "s.sqlite").exists()
    ran = bench("run", "study.toml")
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.startswith("24 records written")
    assert "records: " in ran.stdout  # of the audit
    assert "training net on 800 samples of moons for 1 epochs" in ran.stderr
    assert bench("run", "study.toml", "--quiet").stdout.startswith("0 records written")
    assert bench("check", "study.toml").stdout.startswith("24 records, ")
    assert bench("export", "s.sqlite", "out/r.csv", "--component", "interval:ibp").stdout == "8 records: out/r.csv\n"
    wrong = bench("export", "s.sqlite", "out/w.csv", "--model", "ney")
    assert (wrong.exit_code, (folder / "out" / "w.csv").exists()) == (2, False)
    assert "unknown model of s.sqlite 'ney'. Did you mean 'net'?" in wrong.stderr
    rows = list(csv.DictReader((folder / "out" / "r.csv").read_text().splitlines()))
    assert [row["sample"] for row in rows] == [str(i) for i in range(8)]
    assert {row["component"] for row in rows} == {"interval:ibp"}
    assert bench("verify", "s.sqlite", "--sample", 30).stdout == (
        "24 records: 24 the same, 0 differ, 0 could not be derived again\n"
    )


def test_parquet(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    bench("run", "study.toml", "--quiet")
    assert bench("export", "s.sqlite", "r.parquet").exit_code == 0
    table = parquet.read_table(folder / "r.parquet").to_pydict()
    with rp.load_study("study.toml").store() as store:
        assert table == store.columns()
    wrong = bench("export", "s.sqlite", "r.xlsx")
    assert wrong.exit_code == 2
    assert ".parquet or .csv" in wrong.stderr


def test_the_store_alone_is_enough_and_a_changed_record_is_found(folder: Path) -> None:
    """Somebody else has neither the folder of the study nor the weights that were trained."""
    bench("run", "study.toml", "--quiet")
    elsewhere = folder / "elsewhere" / "theirs.sqlite"
    elsewhere.parent.mkdir()
    (folder / "s.sqlite").rename(elsewhere)
    assert bench("verify", elsewhere, "--sample", 30).exit_code == 0
    with sqlite3.connect(elsewhere) as connection:
        connection.execute("UPDATE records SET margin = margin + 0.01 WHERE kind = 'certifier' AND sample = 3")
    result = bench("verify", elsewhere, "--sample", 30)
    assert result.exit_code == 3
    assert "interval:ibp on sample 3 of moons, net, linf 0.05: margin was" in result.stdout
    assert "23 the same, 1 differ" in result.stdout


def test_weights_that_are_gone_are_said_to_be(folder: Path) -> None:
    bench("run", "study.toml", "--quiet")
    with Store("s.sqlite") as store:
        records = [replace(record, model_hash="another") for record in store.records()]
    with sqlite3.connect(folder / "s.sqlite") as connection:
        connection.execute("DELETE FROM artifacts")
        connection.execute("DELETE FROM records")
    with Store("s.sqlite", write=True) as store:
        store.insert(records)
    result = bench("verify", "s.sqlite", "--sample", 2)
    assert result.exit_code == 1
    assert "the model 'net' is another one now" in result.stdout


def test_an_interrupted_run_says_how_to_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running, "execute", interrupted)
        result = bench("run", "study.toml")
    assert result.exit_code == 130
    assert "go on with: robust-plugins bench run study.toml" in result.stderr
    with monkeypatch.context() as patch:
        patch.setattr(bench_study, "audit", interrupted)  # its records stay
        result = bench("run", "study.toml")
    assert result.exit_code == 130
    assert "24 records written" in result.stdout
    assert result.stderr.endswith("interrupted; go on with: robust-plugins bench run study.toml\n")
    assert bench("run", "study.toml", "--quiet").stdout.startswith("0 records written")


def test_contradictions_are_told_at_the_end_of_a_run(folder: Path) -> None:
    """A record that was changed by hand: an input that is classified wrongly, and certified."""
    bench("run", "study.toml", "--quiet")
    with sqlite3.connect(folder / "s.sqlite") as connection:
        connection.execute("UPDATE records SET verdict = 'certified', margin = 1.0 WHERE kind = 'certifier'")
        connection.execute("UPDATE records SET success = 1, verdict = 'falsified' WHERE kind = 'clean'")
    result = bench("run", "study.toml", "--quiet")
    assert result.exit_code == 3, result.output
    assert "Violations" in result.stdout


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('use = "interval:ibp"', 'use = "interval:ibq"', r"components.0.: unknown attack or certifier 'interval:ibq'"),
        ('name = "moons"', 'name = "moon"', "data.moon: unknown data set 'moon'"),
        ('source = "mlp(widths=(8,))"', 'source = "gone.onnx"', "models.net on moons: .*gone.onnx"),
        ("train = { epochs = 1 }", 'train = { epochs = 1, recipe = "ibp" }', "train.eps` is missing"),
        ("eps = [0.05]", "eps = [0.05]\nclip = [0.4, 0.5]", "inside the ball's clip range"),
        ("isolate = false", 'device = "cuda:7"', "run.device: .*'cuda:7'"),
        ("samples = 8", "samples = 8\nfirst = 1000", "data.moons.first` is 1000"),
    ],
)
def test_check_names_what_is_missing(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "study.toml").write_text(SMALL.replace(old, new))
    result = bench("check", "study.toml")
    assert result.exit_code == 1, result.output
    assert re.search(message, result.stdout), result.stdout


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("delta = 0.5", "threshold = 0.5", "explanations[0]: `interval:crown.threshold` is 0.5"),
        ("epochs = 1", 'epochs = 1, recipe = "ibpp", eps = 0.1', "models.net: unknown recipe 'ibpp'"),
        ('"mlp(widths=(8,))"', '"gone.onnx"', "models.net: `file` is 'gone.onnx': no file"),
        ('name = "moons"', 'name = "moon"', "data.moon: unknown data set 'moon'"),
    ],
)
def test_a_run_names_the_file_and_the_key(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "study.toml").write_text(SMALL.replace(old, new))
    result = bench("run", "study.toml")
    assert result.exit_code == 2
    assert f"Error: study.toml: {message}" in result.stderr
    assert "training" not in result.stderr


def test_a_file_with_a_mistake_is_wrong_usage(folder: Path) -> None:
    (folder / "study.toml").write_text(SMALL.replace("[[balls]]", "[[ball]]"))
    result = bench("run", "study.toml")
    assert result.exit_code == 2
    assert "study.toml: unknown key 'ball'" in result.stderr
    assert "Did you mean 'balls'?" in result.stderr
