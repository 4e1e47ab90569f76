"""`robust-plugins train`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import robust_plugins as rp
from robust_plugins.cli import commands

ARGUMENTS = ("--model", "mlp(widths=(32,))", "--data", "digits", "--eps", "0.02", "--epochs", "3", "--samples", "50",
             "--attack", "art:fgsm", "--lr", "0.005")  # fmt: skip


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(commands, ["train", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_what_it_writes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run("--recipe", "ibp", *ARGUMENTS, "--out", str(out))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[-3:] == ["clean", "art:fgsm", "interval:ibp"]
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    record = json.loads((out / "record.json").read_text())
    assert record["recipe"] == "ibp"
    assert (out / "curve.svg").read_text().count("interval:ibp") == 1
    digits = rp.dataset("digits")
    torch.manual_seed(1)
    model = rp.model("mlp", input_shape=digits.input_shape, classes=10, widths=(32,))
    model.load_state_dict(torch.load(out / "weights.pt", weights_only=True))
    x, y = digits.x_test[:50], digits.y_test[:50]
    certificate = rp.certifier("interval:ibp")(model, x, y, rp.Linf(eps=0.02, clip=digits.clip))
    assert certificate.certified.float().mean().item() == pytest.approx(record["epochs"][-1]["scores"]["interval:ibp"])
    # Called again, it finds the run complete; another run may not take its place.
    again = run("--recipe", "ibp", *ARGUMENTS, "--out", str(out), "--json")
    assert json.loads(again.stdout) == record
    other = run("--recipe", "madry", *ARGUMENTS, "--out", str(out))
    assert other.exit_code == 2
    assert "another run" in other.stderr


def test_standard_takes_neither_ball_nor_ramp(tmp_path: Path) -> None:
    result = run("--recipe", "standard", *ARGUMENTS, "--out", str(tmp_path), "--json")
    assert result.exit_code == 0, result.output
    assert [epoch["gamma"] for epoch in json.loads(result.stdout)["epochs"]] == [1, 1, 1]


@pytest.mark.parametrize(("option", "value", "said"), [
    ("--recipe", "ipb", "'ibp'"), ("--attack", "art:gpd", "art:pgd"), ("--recipe", "sabr(ratio=2)", "ratio"),
])  # fmt: skip
def test_wrong_usage(option: str, value: str, said: str, tmp_path: Path) -> None:
    result = run("--recipe", "ibp", *ARGUMENTS, option, value, "--out", str(tmp_path / "run"))
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "run").exists()
