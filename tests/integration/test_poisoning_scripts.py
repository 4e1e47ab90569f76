"""The scripts on poisoned training, on less data than they are meant for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.scripts import script

import robust_plugins as rp


def test_half_moons() -> None:
    pytest.importorskip("sklearn")
    moons = script("lecture/poisoning_half_moons.py")
    case = moons.drawn(0)
    few = replace(case, train=tuple(t[:200] for t in case.train), test=tuple(t[:100] for t in case.test))
    _, certified, achieved = moons.bracket(few, rp.PoisoningBudget(points=1, eps=0.01), "box", True)
    assert 0.5 < certified <= achieved
    boxes, clean, poisoned = moons.trajectories(few, rp.PoisoningBudget(points=1, eps=0.01), "box", [0, 1152])
    low = torch.cat([p.lower.flatten() for p in boxes[-1].parameters.values()])
    up = torch.cat([p.upper.flatten() for p in boxes[-1].parameters.values()])
    assert clean.shape == (moons.STEPS + 1, 1154)
    for paths in (clean.unsqueeze(1), *poisoned):
        assert bool(((paths[-1] >= low - 1e-12) & (paths[-1] <= up + 1e-12)).all())
    assert [moons.name(i) for i in (0, 7, 768, 896, 1024, 1153)] == [
        "W1[0, 0]", "W1[1, 1]", "b1[0]", "W2[0, 0]", "W2[1, 0]", "b2[1]",
    ]  # fmt: skip


def test_regression() -> None:
    pytest.importorskip("sklearn")
    regression = script("lecture/poisoning_regression.py")
    task = replace(regression.diabetes(), epochs=3)
    certified, achieved, nominal = regression.measured(task, 5, 0.1, domain="box", seed=0, attacks=True)
    assert nominal <= achieved <= certified < 2 * nominal
    tuned = replace(task, pretraining=200)
    certified, _, after = regression.measured(tuned, 5, 0.1, domain="box", seed=0, attacks=False)
    assert after < certified < tuned.error(tuned.model(0)) / 1.2, "fine-tuning on a few poisoned labels is worth it"


def test_the_picture_of_the_regression_promises_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    regression, parts = script("lecture/poisoning_regression.py"), script("lecture/parts.py")
    few = replace(regression.diabetes(), numbers=(0, 5), radii=(0.1,))
    monkeypatch.setattr(regression, "diabetes", lambda: few)
    for attacks in ("0", "1"):
        arguments = ["--out", str(tmp_path), "--epochs", "1", "--attacks", attacks]
        found = parts.run("regression", regression.make, regression.OPTIONS, arguments, describe="")
        assert ("dashed" in found.pictures[0].caption) == (attacks == "1")
        assert all(row[3] for row in found.tables[0].rows) == (attacks == "1")
    tiny = {option.name: option.quick for option in regression.OPTIONS}
    assert tiny["attacks"] is None, "attacked at the smallest size, too"


def test_household(shared: Path) -> None:
    regression = script("lecture/poisoning_regression.py")
    task = regression.household(shared / "data/household/household_power_consumption.csv", 0)
    assert [len(x) for x, _ in task.batches] == [6000] * 6
    assert task.batches[0][0].shape[1] == 7
    few = replace(task, batches=[(x[:200], y[:200]) for x, y in task.batches[:2]])
    certified, _, nominal = regression.measured(few, 2, 0.1, domain="box", seed=0, attacks=False)
    assert nominal < certified < 2 * nominal


def test_pneumonia(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pneumonia = script("comparisons/poisoning_pneumonia.py")
    monkeypatch.setattr(pneumonia, "pretrained", lambda x, y, seed: pneumonia.network())
    torch.manual_seed(0)
    model, batches, test = pneumonia.prepared(shared / "data/pneumonia/pneumoniamnist_reconstructed.npz", 0)
    assert [len(x) for x, _ in batches] == [pneumonia.BATCH] * 2
    measured = pneumonia.Measured(model, [(x[:30], y[:30]) for x, y in batches[:1]], tuple(t[:20] for t in test),
                                  attacks=True)  # fmt: skip
    certified, achieved = measured(*pneumonia.moved(1, 0.001))
    assert certified <= achieved
    assert measured.lines[-1].startswith("| n = 1, eps = 0.001 |")


def test_backdoors() -> None:
    backdoors = script("lecture/backdoors.py")
    points = backdoors.measured(counts=(0, 40), samples=500)
    obeyed = {(p.trigger, p.poisoned): p.obeyed for p in points}
    assert obeyed["static", 40] > 0.5 > 0.1 > obeyed["static", 0]
    assert obeyed["dynamic", 40] > obeyed["dynamic", 0] + 0.1
    assert "| static | 40 |" in backdoors.table(points).markdown
    assert len(backdoors.draw_triggers(3, 2).axes) == 15
    assert len(backdoors.draw_success(points).axes[0].lines) == 4
