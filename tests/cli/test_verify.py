"""The command `verify`: one instance, and a folder of them."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.onnx_files import published, sum_of_relus
from support.workers import moody

from robust_plugins.adapters.onnx import read_network, running
from robust_plugins.adapters.onnx.counterexamples import read_counterexample, replay
from robust_plugins.adapters.onnx.instances import Instance, Outcome, Results, read_instances
from robust_plugins.adapters.onnx.properties import read_property
from robust_plugins.cli import commands
from robust_plugins.cli import verify as command
from robust_plugins.errors import ArgumentError
from robust_plugins.proof_check import records


def run(*arguments: Any) -> Result:
    result = CliRunner().invoke(commands, ["verify", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network that computes the sum of ReLUs, and three properties, one of which cannot be read."""
    monkeypatch.chdir(tmp_path)
    sum_of_relus(tmp_path, {"safe": "(>= Y_0 1.2)", "unsafe": "(>= Y_0 1.05)", "bad": "(xor (>= Y_0 1))"})
    return tmp_path


def test_a_property_that_holds(folder: Path) -> None:
    result = run("--onnx", "net.onnx", "--vnnlib", "safe.vnnlib")
    assert (result.stdout, result.exit_code) == ("unsat\n", 0)
    assert not list(folder.glob("*.counterexample"))


def test_a_proof_is_held_against_network_and_property(folder: Path) -> None:
    assert run("--onnx", "net.onnx", "--vnnlib", "safe.vnnlib", "--proof", "run.proof").stdout == "unsat\n"
    arguments = ["check-proof", "run.proof", "--model", "net.onnx", "--vnnlib"]
    found = CliRunner().invoke(commands, [*arguments, "safe.vnnlib"])
    assert (found.exit_code, found.stdout.splitlines()[-1]) == (0, "safe.vnnlib: proved, all of it")
    other = CliRunner().invoke(commands, [*arguments, "unsafe.vnnlib"])
    assert other.exit_code == 1
    assert "Error: run.proof: no proof here is about box 1 of the property's 1" in other.stderr
    text = Path("safe.vnnlib").read_text()
    Path("wider.vnnlib").write_text(text.replace("(<= X_0 ", "(<= X_0 1", 1))
    wider = CliRunner().invoke(commands, [*arguments, "wider.vnnlib", "--json"])
    assert (wider.exit_code, json.loads(wider.stdout)["property_proved"]) == (1, False)
    refused = run("--instances", "instances.csv", "--results", "r.csv", "--proof", "run.proof")
    assert (refused.exit_code, "none of --onnx" in refused.stderr) == (2, True)


@pytest.mark.parametrize("network", ["1_1", "1_2"])
def test_published_properties_are_proved_by_boxes_of_inputs(network: str, tmp_path: Path) -> None:
    """A conjunction over five inputs, which takes some hundred boxes; of another network the proof says nothing."""
    folder = published() / "acasxu"
    onnx, other = (folder / "onnx" / f"ACASXU_run2a_{name}_batch_2000.onnx" for name in (network, "4_4"))
    instance, proof = ("--vnnlib", folder / "vnnlib" / "prop_3.vnnlib"), tmp_path / "run.proof"
    assert run("--onnx", onnx, *instance, "--proof", proof).stdout == "unsat\n"
    sample = list(records(proof))[1]
    assert (sample.arrays["boxes.split"] >= 0).sum() > 50
    arguments = ["check-proof", str(proof), *map(str, instance), "--model"]
    found = CliRunner().invoke(commands, [*arguments, str(onnx)])
    assert (found.exit_code, found.stdout.splitlines()[-1].endswith("proved, all of it")) == (0, True)
    assert CliRunner().invoke(commands, [*arguments, str(other)]).exit_code != 0


def test_a_property_that_does_not_hold_writes_its_counterexample(folder: Path) -> None:
    result = run("--onnx", folder / "net.onnx", "--vnnlib", folder / "unsafe.vnnlib", "--timeout", 30)
    assert (result.stdout, result.exit_code) == ("sat\n", 0)
    x = read_counterexample(folder / "net_unsafe.counterexample", 2)
    assert replay(read_network("net.onnx").session, read_property("unsafe.vnnlib"), x).unsafe
    path = folder / "other.txt"
    found = json.loads(
        run("--onnx", "net.onnx", "--vnnlib", "unsafe.vnnlib", "--counterexample", path, "--json").stdout
    )
    assert found["answer"] == "sat"
    assert found["counterexample"] == str(path)
    assert path.read_text().startswith("((X_0 ")


@pytest.mark.parametrize(
    ("onnx", "vnnlib", "message"),
    [
        ("net.onnx", "bad.vnnlib", "line 2: `xor`"),
        ("safe.vnnlib", "safe.vnnlib", "no ONNX model"),
        ("n", "b", "no file"),
    ],
)
def test_errors_are_an_answer_of_their_own(folder: Path, onnx: str, vnnlib: str, message: str) -> None:
    result = run("--onnx", onnx, "--vnnlib", vnnlib)
    assert (result.stdout, result.exit_code) == ("error\n", 1)
    assert message in result.stderr


def test_an_instance_that_does_not_keep_its_time_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, codes = threading.Event(), []

    def leave(code: int) -> None:
        codes.append(code)
        left.set()

    def slow(*_: Any, **__: Any) -> tuple[str, str]:
        left.wait(20)
        return "unsat", ""

    monkeypatch.setattr(command, "GRACE", 0.0)
    monkeypatch.setattr(command, "answer", slow)
    monkeypatch.setattr(os, "_exit", leave)
    assert run("--onnx", "net.onnx", "--vnnlib", "safe.vnnlib", "--timeout", 0.01).stdout.startswith("timeout\n")
    assert codes == [0]


def test_a_folder_is_run_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own; again, nothing is left to run."""
    result = run("--instances", "instances.csv", "--results", "out/results.csv")
    assert result.exit_code == 1  # of the property that cannot be read
    lines = (folder / "out" / "results.csv").read_text().splitlines()
    assert lines[0] == "onnx,vnnlib,timeout,answer,seconds,message"
    assert [line.split(",")[3] for line in lines[1:]] == ["unsat", "sat", "error"]
    assert read_counterexample(folder / "out" / "results" / "net_unsafe.counterexample", 2)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("run again")

    monkeypatch.setattr(command, "run_instances", never)
    again = run("--instances", "instances.csv", "--results", "out/results.csv", "--json")
    counts = json.loads(again.stdout)["counts"]
    assert counts == {"unsat": 1, "sat": 1, "unknown": 0, "timeout": 0, "error": 1}
    assert "3 of 3 are in out/results.csv already" in again.stderr


def test_processes_are_killed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "GRACE", 0.2)
    instances = [Instance(name, "p", 0.3) for name in ("fine", "hangs", "dies", "fine", "hangs")]
    found: list[Outcome] = []
    began = time.monotonic()
    running.run_instances(instances, Path(), Path(), found.append, jobs=2, target=moody)
    assert sorted(o.answer for o in found) == ["error", "timeout", "timeout", "unsat", "unsat"]
    assert {o.message for o in found} == {"", "killed", "its process ended with exit code 3"}
    assert time.monotonic() - began < 60


def test_what_receives_the_outcomes_may_fail() -> None:
    def full(outcome: Outcome) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        running.run_instances([Instance("fine", "p", 5.0)] * 3, Path(), Path(), full, target=moody)


def test_a_line_that_was_cut_off_is_run_again(tmp_path: Path) -> None:
    one, two = Instance("a,b.onnx", "p.vnnlib", 1.5), Instance("b.onnx", "p.vnnlib", 2.0)
    path = tmp_path / "results.csv"
    for instance in (one, two):
        Results(path).add(Outcome(instance, "unsat", 0.25, 'it said "no"'))
    path.write_bytes(path.read_bytes()[:-3])
    kept = Results(path)
    assert kept.outcomes == {one: Outcome(one, "unsat", 0.25, 'it said "no"')}
    kept.add(Outcome(two, "sat", 1.0))
    assert list(Results(path).outcomes) == [one, two]


def test_bad_files_of_instances_and_results(tmp_path: Path) -> None:
    path = tmp_path / "instances.csv"
    for text, message in (
        ("", "empty"), ("a,b\n", "line 1: 'a,b'"), ("a,b,3\na,b,soon\n", "line 2"), ("a,b,0\n", "above zero"),
        ("a,b,1,2\n", "line 1"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ArgumentError, match=message):
            read_instances(path)
    path.write_text("a,b,1\n")
    with pytest.raises(ArgumentError, match="holds something else"):
        Results(path)
    assert path.read_text() == "a,b,1\n"
    with pytest.raises(ArgumentError, match="cannot be read"):
        read_instances(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--onnx", "n.onnx"], "give --onnx and --vnnlib"),
        (["--onnx", "n", "--vnnlib", "p", "--jobs", "2"], "--results and --jobs go with --instances"),
        (["--instances", "i.csv"], "with --instances give --results"),
        (["--instances", "i.csv", "--results", "r", "--onnx", "n"], "none of --onnx"),
        (["--onnx", "n", "--vnnlib", "p", "--timeout", "0"], "timeout"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
