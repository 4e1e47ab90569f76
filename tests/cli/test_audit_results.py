"""The command `audit-results`: who is wrong among tools, by replayed counterexamples, attacks and proofs."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support.onnx_files import published, sum_of_relus

from robust_plugins.cli import commands

SHORT, BORDER, INSIDE = "((X_0 0.5) (X_1 0.1) (Y_0 9))", "((X_0 1.00005)\n (X_1 0.1)\n)", "((X_0 1.0) (X_1 0.1))"


def run(*arguments: Any) -> Result:
    result = CliRunner().invoke(commands, ["audit-results", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sum of ReLUs over [-1, 1] x {0.1}, whose largest value is 1.1, and what tools say of three properties."""
    monkeypatch.chdir(tmp_path)
    sum_of_relus(tmp_path, {"easy": "(>= Y_0 0)", "close": "(>= Y_0 1.1)", "safe": "(>= Y_0 1.3)"})
    return tmp_path


def tool(folder: Path, name: str, answers: dict[str, str], **counterexamples: str) -> Path:
    """A file of answers in the competition's form, and its counterexamples, gzipped."""
    path = folder / f"{name}.csv"
    path.write_text("".join(f"toys,./x/net.onnx,./x/{p}.vnnlib,.1,{a},2.5\n" for p, a in answers.items()))
    (folder / name).mkdir()
    for question, text in counterexamples.items():
        (folder / name / f"net_{question}.counterexample.gz").write_bytes(gzip.compress(text.encode()))
    return path


def test_tools_that_are_wrong_are_found(folder: Path) -> None:
    right = tool(folder, "right", {"easy": "sat", "close": "sat", "safe": "unsat"}, easy=SHORT, close=INSIDE)
    careless = tool(folder, "careless", {"easy": "unsat", "close": "sat", "safe": "sat"}, close=BORDER, safe=INSIDE)
    old = tool(folder, "old", {"easy": "violated", "close": "run_instance_timeout", "safe": "holds"}, easy="(")
    options = ("--instances", "instances.csv", *(f"--answers={path}" for path in (right, careless, old)))
    result = run(*options, "--json", "--out", "wrong")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert {t: (row["wrong unsat"], row["wrong sat"]) for t, row in found["tools"].items()} == {
        "right": (0, 0), "careless": (1, 1), "old": (0, 0),
    }  # fmt: skip
    easy, safe = found["contradictions"]
    assert [c["wrong"] for c in easy["claims"]] == [None, "unsat, refuted by the counterexample of right", None]
    assert [c["counterexample"] for c in easy["claims"]] == ["exact", None, "unreadable"]
    assert safe["claims"][1]["wrong"].startswith(
        "its counterexample is none: outside of the box by 0, short of unsafe by 0.2"
    )
    assert found["tools"]["careless"]["moved"] == 1  # within the tolerance, and unsafe once it is in the box
    text = run(*options).stdout
    assert "net.onnx easy.vnnlib\n  careless: unsat, refuted by the counterexample of right" in text


def test_reproducers_need_onnxruntime_alone(folder: Path) -> None:
    one = tool(folder, "one", {"close": "sat"}, close=BORDER)
    two = tool(folder, "two", {"close": "unsat"})
    assert run("--instances", "instances.csv", "--answers", one, "--answers", two, "--out", "wrong").exit_code == 3
    made = folder / "wrong" / "net_close"
    assert (made / "claims.csv").read_text().splitlines()[1:] == [
        "one,sat,moved,", 'two,unsat,,"unsat, refuted by the counterexample of one"'
    ]  # fmt: skip
    shown = subprocess.run([sys.executable, made / "replay.py"], capture_output=True, text=True, check=True, cwd="/")
    confirmed, given = shown.stdout.splitlines()
    assert confirmed.startswith("confirmed: unsafe; outside of the box by 0, farthest row ")
    assert given.startswith("one: not unsafe; outside of the box by 5e-05")


def test_every_unsat_is_attacked(folder: Path) -> None:
    liar = tool(folder, "liar", {"easy": "unsat", "safe": "unsat"})
    result = run("--instances", "instances.csv", "--answers", liar, "--attack", 0.1)
    assert result.exit_code == 3
    assert "liar: unsat, refuted by an attack" in result.stdout
    assert "safe" not in result.stdout
    assert run("--instances", "instances.csv", "--answers", liar, "--attack", 0).exit_code == 0


def test_disputes_are_decided_by_a_proof(folder: Path) -> None:
    """A `sat` without a counterexample contradicts an `unsat`; who is wrong is known after a proof."""
    options: list[Any] = ["--instances", "instances.csv", "--attack", 0.1]
    for name, answer in (("one", "sat"), ("two", "unsat")):
        options += ["--answers", tool(folder, name, {"safe": answer})]
    undecided = run(*options)
    assert undecided.exit_code == 3
    assert "  undecided\n  sat: one (missing)\n  unsat: two" in undecided.stdout
    assert "one: sat, refuted by a proof of our own" in run(*options, "--decide", 20).stdout


def test_agreement_is_no_contradiction(folder: Path) -> None:
    one = tool(folder, "one", {"easy": "sat", "safe": "unsat"}, easy=SHORT)
    own = folder / "own.csv"
    rows = [
        "onnx,vnnlib,timeout,answer,seconds,message",
        "net.onnx,easy.vnnlib,30,sat,1,",
        "net.onnx,safe.vnnlib,30,timeout,1,",
    ]
    own.write_text("\n".join(rows))
    result = run("--instances", "instances.csv", "--answers", one, "--answers", own, "--attack", 0.1)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 5  # the table alone


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"), ("a,b\n", "line 1: 'a,b'"), ("onnx,vnnlib,said\n", "its columns are onnx, vnnlib, said"),
        ("c,other.onnx,p.vnnlib,1,sat,1\n", "without an answer to any of the instances"),
        ("c,net.onnx,easy.vnnlib,1,sat,1\nc,net.onnx,easy.vnnlib,1,unsat,1\n", "line 2 answers 'unsat'"),
    ],
)  # fmt: skip
def test_bad_files_of_answers(folder: Path, text: str, message: str) -> None:
    path = folder / "bad.csv"
    path.write_text(text)
    result = run("--instances", "instances.csv", "--answers", path)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_tool_has_one_file(folder: Path) -> None:
    path = tool(folder, "good", {"easy": "sat"})
    result = run("--instances", "instances.csv", "--answers", path, "--answers", path)
    assert result.exit_code == 2
    assert "a second file of the name 'good'" in result.stderr


@pytest.mark.slow
def test_the_published_answers_to_mnist_fc() -> None:
    """Two tools of 2022 are wrong, by counterexamples of others that are replayed exactly; nobody else is."""
    place = published() / "mnist_fc"
    answers = [f"--answers={path}" for path in sorted((place / "published").glob("*.csv"))]
    found = json.loads(run("--instances", place / "instances.csv", *answers, "--attack", 0, "--json").stdout)
    wrong = {t: (row["wrong unsat"], row["wrong sat"]) for t, row in found["tools"].items()}
    assert {t: counts for t, counts in wrong.items() if any(counts)} == {"cgdtest": (5, 1), "verapak": (4, 0)}
