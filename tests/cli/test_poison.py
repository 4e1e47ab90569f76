"""`robust-plugins poison`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import robust_plugins as rp
from robust_plugins.cli import commands
from robust_plugins.cli.poison import parse_budget

ARGUMENTS = ("--data", "moons(samples=120)", "--model", "mlp(widths=(4,))", "--epochs", "2", "--lr", "0.5",
             "--batch-size", "50", "--double")  # fmt: skip


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(commands, ["poison", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_what_it_writes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    budgets = ("--budget", "points=1,eps=0.01", "--budget", "labels=1")
    result = run(*ARGUMENTS, *budgets, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert result.stdout.count("any (certified)") == 2
    assert result.stdout.count("No attack contradicts the certificate.") == 2
    record = json.loads((out / "record.json").read_text())
    for number, bracket in enumerate(record["brackets"]):
        achieved, certified = bracket["score"]["empirical"], bracket["score"]["certified"]
        assert certified <= achieved <= bracket["nominal"]
        assert 0 < bracket["ratio"] < 1
        assert [epoch["updates"] for epoch in bracket["epochs"]] == [2, 4]
        assert "poisoned trainings" in (out / f"bracket-{number}.svg").read_text()
    assert [b["budget"]["points"] for b in record["brackets"]] == [1, 0]
    # Called again, it finds the runs complete; another run may not take their place.
    again = json.loads(run(*ARGUMENTS, *budgets, "--out", str(out), "--json").stdout)
    assert [b["score"] for b in again["brackets"]] == [b["score"] for b in record["brackets"]]
    assert [b["epochs"] for b in again["brackets"]] == [b["epochs"] for b in record["brackets"]]
    other = run(*ARGUMENTS, "--budget", "labels=2", "--out", str(out))
    assert other.exit_code == 2
    assert "another run" in other.stderr


def test_a_contradiction_is_told_by_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from robust_plugins.poisoning.box import mean_gradient

    true = mean_gradient.extremes
    monkeypatch.setattr(mean_gradient, "extremes", lambda g, k, **more: true(g, 0, **more))
    result = run(*ARGUMENTS, "--budget", "points=5,eps=0.1", "--out", str(tmp_path))
    assert result.exit_code == 3
    assert "CONTRADICTION: pushed parameters reached" in result.stdout


def test_fine_tuning_of_one_layer(tmp_path: Path) -> None:
    moons = rp.dataset("moons", samples=120)
    model = rp.model("mlp", input_shape=moons.input_shape, classes=2, widths=(4,))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    last = list(model.state_dict())[-1]
    result = run(*ARGUMENTS, "--weights", str(tmp_path / "weights.pt"), "--trained", last, "--clip-gradient", "0.1",
                 "--budget", "substitution(k=2)", "--out", str(tmp_path / "run"), "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    (bracket,) = json.loads(result.stdout)["brackets"]
    assert bracket["epochs"][-1]["widest"] == last
    assert bracket["pushed"] == [0, 1]


@pytest.mark.parametrize(("arguments", "said"), [
    (("--budget", "substitution(k=2)"), "give --clip-gradient or --clip-norm"),
    (("--budget", "points=1"), "eps"), (("--budget", "pionts=1"), "points"), (("--budget", "substitution"), "k=5"),
    (("--budget", "substitution(k=1)"), "clip"), (("--budget", "labels=1", "--trained", "nothing"), "parameter"),
    (("--budget", "labels=1", "--clip-gradient", "1", "--clip-norm", "1"), "two ways"),
    (("--budget", "labels=1", "--momentum", "0.5", "--optimizer", "adam"), "SGD's"),
    (("--budget", "labels=1", "--lr", "-1"), "lr"), (("--budget", "labels=1", "--data", "mnits"), "mnist"),
    (("--budget", "labels=1", "--attacks", "poison:randm"), "poison:random"),
])  # fmt: skip
def test_wrong_usage(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    result = run(*ARGUMENTS, *arguments, "--out", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "run" / "record.json").exists()


def test_budgets_as_text() -> None:
    assert parse_budget("points=10,eps=0.01,norm='l2',labels=2,paired=True") == rp.PoisoningBudget(
        points=10, eps=0.01, norm="l2", labels=2, paired=True
    )
    assert parse_budget("privacy(k=3)") == rp.PoisoningBudget.privacy(3)
