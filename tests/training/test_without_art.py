"""Robust training without ART: recipes, scores and the command fall back on this package's own attacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robust_plugins as rp
from robust_plugins.cli import commands
from robust_plugins.decisions.registered import first_available
from robust_plugins.registry import backends

BALL = rp.Linf(eps=0.1, clip=(0.0, 1.0))


@pytest.fixture
def without_art(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "importable", lambda module: module != "art")


def attack_of(loss: rp.MixedLoss) -> rp.Attack:
    worst = loss.worst if isinstance(loss.worst, str | rp.Attack) else getattr(loss.worst, "attack", None)
    worst = getattr(loss.combiner, "attack", None) if worst is None else worst
    return rp.attack(worst) if isinstance(worst, str) else worst


@pytest.mark.parametrize("name", ["goodfellow", "madry", "fast", "mart", "sabr"])
@pytest.mark.usefixtures("without_art")
def test_recipes_train_without_it(name: str) -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(6, 4), torch.arange(6) % 3
    loss = rp.recipe(name, ball=BALL, epochs=2)
    assert type(attack_of(loss)).__module__.startswith("robust_plugins.decisions.attacks")
    loss(model, x, y).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.usefixtures("without_art")
def test_scores_name_the_attack_that_ran() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(20, 4), torch.arange(20) % 3
    found = rp.Scores(x=x, y=y, ball=BALL)(nn.Linear(4, 3))
    assert set(found) == {"clean", "rp:pgd", "interval:ibp"}
    assert found["rp:pgd"] <= found["clean"]


@pytest.mark.slow
@pytest.mark.usefixtures("without_art")
def test_the_command_trains_without_it(tmp_path: Path) -> None:
    arguments = ["train", "--recipe", "madry", "--model", "linear", "--data", "moons", "--eps", "0.1", "--epochs", "1",
                 "--samples", "50", "--out", str(tmp_path / "run")]  # fmt: skip
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output
    assert "rp:pgd" in result.output


def test_art_comes_first_where_it_is_there() -> None:
    assert first_available("art:pgd(steps=3)", "rp:pgd") == "art:pgd(steps=3)"
    assert first_available("no:such", "rp:pgd") == "rp:pgd"
    assert rp.Scores(x=torch.rand(2, 3), y=torch.zeros(2), ball=BALL).attack == "art:pgd(steps=10)"


@pytest.mark.parametrize("eps", [0.1, [0.05, 0.2] * 8])
def test_both_walk_the_same_way(eps: float | list[float]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)).double(), torch.rand(16, 12).double()
    y, ball = model(x).argmax(1), rp.Linf(eps=eps, clip=(0.0, 1.0))
    for parameters in ({"steps": 7, "relative_step": 0.25, "best": False}, {"steps": 9}):
        ours, theirs = (rp.attack(n, **parameters)(model, x, y, ball, seed=1) for n in ("rp:pgd", "art:pgd"))
        torch.testing.assert_close(ours.x_adv, theirs.x_adv, atol=1e-6, rtol=0)
