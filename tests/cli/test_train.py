"""`robust-plugins train`."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robust_plugins as rp
from robust_plugins.cli import commands
from robust_plugins.losses import L1Penalty, WarmUp, ibp_initialisation
from robust_plugins.training.curve import learning_curve

COMMON = ("--model", "mlp(widths=(16, 16))", "--data", "digits", "--eps", "0.02", "--samples", "50", "--attack",
          "art:fgsm", "--lr", "0.005")  # fmt: skip
ARGUMENTS = (*COMMON, "--epochs", "3", "--batch-size", "16")
SHORT = (*COMMON, "--epochs", "2", "--recipe", "ibp", "--ramp", "0.5", "6")
"""Fewer steps; the ramp is long enough not to be warned about."""


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(commands, ["train", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def trained(out: Path, *arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def refused(out: Path, *arguments: str, said: str) -> None:
    result = run(*arguments, "--out", str(out))
    assert result.exit_code == 2
    assert said in result.stderr
    assert not out.exists()  # so that the corrected command may have it


def weights(out: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(out / "weights.pt", weights_only=True)
    return found


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def columns(header: str) -> list[str]:
    return re.split(r"\s{2,}", header.strip())


def test_what_it_writes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run("--recipe", "ibp", *ARGUMENTS, "--out", str(out))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert columns(lines[0])[-3:] == ["clean", "art:fgsm", "interval:ibp"]
    assert len(set(columns(lines[0]))) == len(columns(lines[0])) == 10
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    assert len({len(line) for line in lines[:4]}) == 1
    # Each epoch's line is said when it is there, without a terminal, too.
    assert result.stderr.splitlines() == lines[:4]
    record = json.loads((out / "record.json").read_text())
    assert record["recipe"] == "ibp"
    curve = (out / "curve.svg").read_text()
    assert curve.count("interval:ibp") == 1
    assert "worst case" in curve
    digits = rp.dataset("digits")
    torch.manual_seed(1)
    model = rp.model("mlp", input_shape=digits.input_shape, classes=10, widths=(16, 16))
    model.load_state_dict(weights(out))
    x, y = digits.x_test[:50], digits.y_test[:50]
    certificate = rp.certifier("interval:ibp")(model, x, y, rp.Linf(eps=0.02, clip=digits.clip))
    assert certificate.certified.float().mean().item() == pytest.approx(record["epochs"][-1]["scores"]["interval:ibp"])
    # Called again, it finds the run complete; another run may not take its place.
    again = run("--recipe", "ibp", *ARGUMENTS, "--out", str(out), "--json")
    assert json.loads(again.stdout) == record
    assert again.stderr == ""
    other = run("--recipe", "madry", *ARGUMENTS, "--out", str(out))
    assert other.exit_code == 2
    assert "another run, which differs in recipe:" in other.stderr


def test_standard_takes_neither_ball_nor_ramp(tmp_path: Path) -> None:
    record = trained(tmp_path, "--recipe", "standard", *ARGUMENTS)
    assert [epoch["gamma"] for epoch in record["epochs"]] == [1, 1, 1]
    curve = (tmp_path / "curve.svg").read_text()
    assert "on clean inputs" in curve
    assert "worst case" not in curve  # there is none to be drawn


def test_the_curve_of_scores_that_came_later() -> None:
    epoch = {"epoch": 1, "loss": 1.0, "clean": None, "worst": None, "scores": {"clean": 0.5}}
    curve = learning_curve([epoch, epoch | {"epoch": 2, "scores": {"art:pgd": 0.2}}])
    assert curve.count("art:pgd") == 1
    assert "on clean inputs" not in curve


def test_it_is_what_the_library_does(tmp_path: Path) -> None:
    record = trained(
        tmp_path / "run", *COMMON, "--recipe", "ibp", "--epochs", "4", "--ramp", "0.5", "3", "--ramp-shape", "linear",
        "--batch-size", "64", "--ibp-init", "--warm-up", "--l1", "0.0001", "--lr-decay", "linear", "--clip-gradient",
        "0.5", "--seed", "3", "--eval-eps", "0.01", "--certifier", "interval:crown",
    )  # fmt: skip
    digits = rp.dataset("digits")
    ball = rp.Linf(eps=0.02, clip=digits.clip)
    loss = rp.recipe("ibp", ball=ball, epochs=4, schedule=rp.Ramp(start=0.5, end=3, shape="linear"))
    loss = replace(loss, regularisers=(WarmUp(), L1Penalty(weight=1e-4)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = rp.model("mlp", input_shape=digits.input_shape, classes=10, widths=(16, 16))
        ibp_initialisation(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
        factors = [1.0, 1.0, 2 / 2.8, 1 / 2.8]  # constant for 1.2 of 4 epochs, then to zero
        rates: list[float] = []
        scores = rp.Scores(x=digits.x_test[:50], y=digits.y_test[:50], ball=rp.Linf(eps=0.01, clip=digits.clip),
                           attack="art:fgsm", certifier="interval:crown", seed=3)  # fmt: skip

        def evaluate(model: nn.Module) -> dict[str, float]:
            rates.append(optimizer.param_groups[0]["lr"] / 0.005)
            return scores(model)

        expected = rp.fit(
            model,
            DataLoader(TensorDataset(digits.x_train, digits.y_train), batch_size=64, shuffle=True),
            loss,
            epochs=4,
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: ([*factors, 0.0])[epoch]),
            evaluate=evaluate,
            clip_gradient=0.5,
            progress=False,
        )
    assert rates == pytest.approx([*factors[1:], 0.0])
    for found, epoch in zip(record["epochs"], expected.to_dict()["epochs"], strict=True):
        assert found["loss"] == pytest.approx(epoch["loss"], rel=1e-5)
        assert found["eps"] == pytest.approx(epoch["eps"])
        assert found["scores"] == pytest.approx(epoch["scores"])
    for name, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, whose folder is only read."""
    out = tmp_path_factory.mktemp("plain") / "run"
    trained(out, *SHORT)
    return out


@pytest.mark.parametrize("option", [
    "--seed 1", "--clip-gradient 0.01", "--batch-size 96", "--lr 0.004", "--lr-decay linear", "--ramp 0 5",
    "--ramp-shape linear", "--ibp-init", "--warm-up", "--l1 0.001", "--eps 0.03",
])  # fmt: skip
@pytest.mark.slow
def test_every_option_changes_the_training(option: str, plain: Path, tmp_path: Path) -> None:
    trained(tmp_path, *SHORT, *option.split(" "))
    assert not same(weights(tmp_path), weights(plain))


@pytest.mark.parametrize(("option", "differs"), [
    ("--attack art:pgd(steps=2)", "attack"), ("--certifier interval:crown", "certifier"), ("--samples 49", "samples"),
    ("--eval-eps 0.01", "evaluated"), ("--seed 1", "seed"), ("--ramp 0.5 5", "ramp"), ("--ibp-init", "ibp_init"),
    ("--ramp-shape linear", "ramp"), ("--warm-up", "warm_up"), ("--l1 1", "l1"), ("--lr-decay linear", "lr_decay"),
])  # fmt: skip
def test_a_run_with_another_option_is_another_run(option: str, differs: str, plain: Path) -> None:
    before = {path.name: path.read_bytes() for path in plain.iterdir() if path.is_file()}
    result = run(*SHORT, *option.split(" "), "--out", str(plain))
    assert result.exit_code == 2
    assert f"differs in {differs}:" in result.stderr
    assert {path.name: path.read_bytes() for path in plain.iterdir() if path.is_file()} == before


def test_an_option_that_is_no_change_is_the_same_run(plain: Path) -> None:
    result = run(*SHORT, "--ramp-shape", "smooth", "--eval-eps", "0.02", "--device", "cpu", "--out", str(plain))
    assert result.exit_code == 0, result.output


def test_the_radius_of_the_evaluation(plain: Path, tmp_path: Path) -> None:
    record = trained(tmp_path, *SHORT, "--eval-eps", "0")
    assert same(weights(tmp_path), weights(plain))
    assert record["epochs"][-1]["eps"] > 0
    scores = record["epochs"][-1]["scores"]
    assert scores["interval:ibp"] == scores["art:fgsm"] == scores["clean"]


def test_the_recipe_s_own_epochs_are_the_ramp_s(tmp_path: Path) -> None:
    own = trained(tmp_path / "own", *COMMON, "--epochs", "2", "--recipe", "ibp(epochs=70)")
    given = trained(tmp_path / "given", *COMMON, "--epochs", "2", "--recipe", "ibp", "--ramp", "0", "20")
    assert same(weights(tmp_path / "own"), weights(tmp_path / "given"))
    assert [e["eps"] for e in own["epochs"]] == pytest.approx([e["eps"] for e in given["epochs"]])
    assert own["epochs"][-1]["eps"] < 0.001


def test_a_ramp_that_is_not_over_is_warned_about(tmp_path: Path) -> None:
    result = run(*SHORT, "--out", str(tmp_path))
    assert "the ramp is not over after 2 epochs" in result.stderr
    assert len(result.stderr.splitlines()) == 4


def test_a_steep_ramp_is_warned_about_in_one_line(tmp_path: Path) -> None:
    result = run(*SHORT, "--ramp", "0", "1", "--out", str(tmp_path))
    assert result.stderr.startswith("Warning: the ramp is over after fewer than ")
    assert len(result.stderr.splitlines()) == 4


@pytest.mark.parametrize(("option", "said"), [
    ("--recipe ipb", "'ibp'"), ("--attack art:gpd", "art:pgd"), ("--recipe sabr(ratio=2)", "ratio"),
    ("--certifier interval:ipb", "interval:ibp"), ("--attack art:pgd(steps=0)", "steps"), ("--model mlq", "'mlp'"),
    ("--data digit", "digits"), ("--clip 0 0.5", "`x` is between 0 and 1"), ("--model torch.nn:Flatten", "weights"),
    ("--model torch.nn:Linear(in_features=3,out_features=10)", "`x` is of samples of shape (1, 8, 8), on which"),
    ("--recipe ibp(schedule=3)", "set by --ramp"), ('--recipe ibp(regularisers=["l1"])', "set by --l1"),
    ("--recipe ibp(ball=3)", "set by --eps"), ("--recipe ibp(gama=1)", "'gamma'"),
    ('--recipe ibp(certifier="x")', "certifier 'x'"), ("--recipe ibp(epochs=9)", "give one of the two"),
    ("--recipe madry", "choose one of ibp, crown-ibp"), ("--recipe sabr --norm l2", "rp.Linf"),
])  # fmt: skip
def test_wrong_usage(option: str, said: str, tmp_path: Path) -> None:
    refused(tmp_path / "run", *SHORT, *option.split(" "), said=said)


@pytest.mark.parametrize("option", [
    "--lr -1", "--lr 0", "--lr nan", "--lr inf", "--clip-gradient 0", "--clip-gradient nan", "--eps -1", "--eps nan",
    "--eval-eps nan", "--l1 -1", "--l1 nan", "--ramp -1 1", "--ramp 3 1", "--ramp nan 1", "--device tpu",
    "--device meta", "--ibp-init --model linear", "--ibp-init --model net.pt", "--ramp 0 1 --recipe standard",
    "--ramp 0 1 --recipe madry", "--warm-up --ramp 0 0",
])  # fmt: skip
def test_wrong_values(option: str, tmp_path: Path) -> None:
    refused(tmp_path / "run", *SHORT, *option.split(" "), said=f"Invalid value for '{option.split(' ')[0]}': ")


@pytest.mark.parametrize(("recipe", "option"), [
    ("standard", "--warm-up"), ("madry", "--warm-up"), ("ibp", "--ramp-shape linear"), ("standard", "--eval-eps 0.1"),
])  # fmt: skip
def test_options_that_would_do_nothing(recipe: str, option: str, tmp_path: Path) -> None:
    said = f"Invalid value for '{option.split(' ')[0]}': "
    refused(tmp_path / "run", *COMMON, "--recipe", recipe, *option.split(" "), said=said)


def test_warm_up_without_a_relu(tmp_path: Path) -> None:
    refused(tmp_path / "run", *SHORT, "--model", "linear", "--warm-up", said="ReLU")


def test_an_exported_program_cannot_be_trained(tmp_path: Path) -> None:
    model = rp.model("mlp", input_shape=(1, 8, 8), classes=10).eval()
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(model, (torch.rand(2, 1, 8, 8),), dynamic_shapes=shapes), tmp_path / "m.pt2")
    refused(tmp_path / "run", *SHORT, "--model", str(tmp_path / "m.pt2"), said="training mode")


def test_data_that_cannot_be_trained_on(tmp_path: Path) -> None:
    x, y = np.zeros((4, 3), dtype=np.float32), np.zeros(4, dtype=np.int64)
    np.savez(tmp_path / "some.npz", x_train=x, y_train=y, x_test=x[:0], y_test=y[:0])
    refused(tmp_path / "run", *SHORT, "--data", str(tmp_path / "some.npz"), said="x_test")


def test_double_precision_data(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x, y = generator.random((40, 3)), np.arange(40) % 2
    np.savez(tmp_path / "some.npz", x=x, y=y)
    record = trained(tmp_path / "run", *COMMON, "--recipe", "madry", "--data", str(tmp_path / "some.npz"), "--clip",
                     "0", "1", "--epochs", "1")  # fmt: skip
    assert len(record["epochs"]) == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        result = run(*SHORT, "--out", str(out))
        assert result.exit_code == 2
        assert str(tmp_path / "file") in result.stderr
    (tmp_path / "settings.json").write_text("{")
    result = run(*SHORT, "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "cannot be read" in result.stderr
    assert (tmp_path / "settings.json").read_text() == "{"


def test_a_run_that_fails_before_its_first_checkpoint_leaves_the_folder_free(tmp_path: Path) -> None:
    result = run(*SHORT, "--lr", "1e30", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "smaller learning rate" in result.stderr
    trained(tmp_path, *SHORT)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*SHORT, "--lr-decay", "linear", "--epochs", "3")
    whole = trained(tmp_path / "whole", *arguments)
    calls = 0

    class Interrupting(rp.Scores):
        def __call__(self, model: nn.Module) -> dict[str, float]:
            nonlocal calls
            calls += 1
            if calls == 4:  # the trial, two epochs, and then
                raise KeyboardInterrupt
            return super().__call__(model)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("robust_plugins.cli.train"), "Scores", Interrupting)
        assert run(*arguments, "--out", str(tmp_path / "run")).exit_code == 130
    assert not (tmp_path / "run" / "weights.pt").exists()
    other = run(*arguments, "--attack", "art:pgd(steps=2)", "--out", str(tmp_path / "run"))
    assert other.exit_code == 2
    assert "differs in attack:" in other.stderr
    resumed = trained(tmp_path / "run", *arguments)
    for record in (whole, resumed):
        for epoch in record["epochs"]:
            del epoch["seconds"]
    assert resumed == whole
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(tmp_path: Path) -> None:
    record = trained(tmp_path, *SHORT, "--device", "cuda")
    assert record["device"] == "cuda"
    assert all(value.device.type == "cpu" for value in weights(tmp_path).values())


@pytest.mark.parametrize("name", ["weights.pt", "record.json", "curve.svg", "checkpoint"])
def test_a_stranger_s_files_are_never_replaced(name: str, tmp_path: Path) -> None:
    """With settings of another run beside them, and with none."""
    (tmp_path / name).write_text("somebody's")
    result = run(*SHORT, "--out", str(tmp_path))
    assert result.exit_code == 2
    assert f"holds {name} of something else" in result.stderr
    assert (tmp_path / name).read_text() == "somebody's"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_files_that_are_not_written_are_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    trained(tmp_path, *SHORT)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    trained(tmp_path, *SHORT)  # its own run


def test_regularisers_by_name(plain: Path, tmp_path: Path) -> None:
    specs = ["gradient-cert(alpha=0.5)", "l2-gradient", "hessian(alpha=0.01)", "l1(weight=0.001)"]
    options = [word for spec in specs for word in ("--regulariser", spec)]
    record = trained(tmp_path / "run", *SHORT, *options)
    assert record["regularisers"] == specs
    assert not same(weights(tmp_path / "run"), weights(plain))
    for option, said in (("gradient-cart", "'gradient-cert'"), ("hessian(beta=0)", "beta"), ("l1", "weight"),
                         ("hessian(gamma=1)", "'gamma'"), ("gradient-cert(ball=3)", "'ball'")):  # fmt: skip
        refused(tmp_path / "other", *SHORT, "--regulariser", option, said=said)
    refused(tmp_path / "other", *COMMON, "--recipe", "madry", "--regulariser", "warm-up", said="'--regulariser'")


def test_a_certifier_without_an_answer_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Odd(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.inner = nn.Linear(64, 10)\n\n"
        "    def forward(self, x):\n        z = self.inner(x.flatten(1))\n"
        "        return z + 0 * torch.special.bessel_j0(z.detach())\n"
    )
    arguments = ("--recipe", "madry(steps=1)", *ARGUMENTS, "--model", "odd:Odd", "--epochs", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        result = run(*arguments, "--out", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[1].split()[-1] == "unsupported"
    assert lines[2].startswith("interval:ibp: unsupported: ")
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["epochs"][-1]["scores"]["interval:ibp"].startswith("unsupported: ")
    assert "interval:ibp (unsupported)" in (tmp_path / "run" / "curve.svg").read_text()


def test_a_model_of_one_output_is_trained(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x = generator.random((40, 3))
    np.savez(tmp_path / "some.npz", x=x.astype(np.float32), y=(x[:, 0] > 0.5).astype(np.int64))
    subject = ("--model", "torch.nn:Linear(in_features=3,out_features=1)", "--data", str(tmp_path / "some.npz"))
    record = trained(
        tmp_path / "run", *COMMON, *subject, "--recipe", "madry(steps=1)", "--clip", "0", "1", "--epochs", "1"
    )
    assert set(record["epochs"][-1]["scores"]) == {"clean", "art:fgsm", "interval:ibp"}
