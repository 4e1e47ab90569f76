"""The scripts on robust training: small runs of both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.scripts import script

import robust_plugins as rp


@pytest.fixture
def few() -> rp.Dataset:
    pytest.importorskip("sklearn")
    data = rp.dataset("digits")
    return replace(data, x_test=data.x_test[:200], y_test=data.y_test[:200])


@pytest.mark.slow
def test_every_recipe_has_its_row_and_the_best_are_named(
    few: rp.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = script("comparisons/robust_training.py")
    ran = {run.split(" ")[2].split("(")[0] for run in training.RUNS if run[0] != "_"}
    assert ran == {info.name for info in rp.recipes() if info.plugin == "losses"}
    ball = rp.Linf(eps=0.1, clip=few.clip)
    for spec, gamma in (("ibp", 0.75), ("mtl-ibp", 0.0), ("mtl-ibp ramped", 0.5)):
        loss = training.recipe(spec, ball, 10)
        loss.epoch = 1.5  # half way up
        model = training.network("mlp(widths=(8,))", few)
        assert loss(model, few.x_test[:9], few.y_test[:9]).terms.gamma == pytest.approx(gamma)
    monkeypatch.setattr(rp, "dataset", lambda name, **_: few)
    name = "mlp(widths=(32,))"
    monkeypatch.setattr(training, "BATCH", 16)
    monkeypatch.setattr(training, "RUNS", [f"{name} 0.05 standard", f"{name} 0.05 ibp", "_lecture"])
    store, page = tmp_path / "rows.json", tmp_path / "rows.md"
    arguments = ["--data", "nowhere", "--epochs", "8", "--store", str(store), "--table", str(page)]
    training.main(arguments, standalone_mode=False)
    rows = json.loads(store.read_text())["rows"]
    standard, robust = (rows[f"{name} 0.05 {recipe}"] for recipe in ("standard", "ibp"))
    assert standard["clean"] > 0.85
    assert robust["interval:ibp"] > standard["interval:ibp"] + 0.2
    assert abs(robust["interval:ibp"] - robust["lirpa:ibp"]) < 0.01
    assert [*rows["_lecture"]] == [str(epoch) for epoch in range(1, 9)]
    text = page.read_text()
    assert "Not run yet" not in text
    assert f"- best certified: ibp, {100 * robust['interval:ibp']:.2f} %" in text

    def never(*_: object) -> None:
        raise AssertionError("a finished run was repeated")

    monkeypatch.setattr(training, "trained", never)
    training.main(arguments, standalone_mode=False)


def test_costs_are_ratios_to_standard_training(few: rp.Dataset) -> None:
    speed = script("comparisons/training_speed.py")
    sizes = {"batch": 16, "batches": 2, "repeats": 3}
    subjects = ("ibp", speed.IBP, speed.PGD, "crown-ibp")
    rows = {s: {"cnn": speed.costs("cnn", s, few, **sizes)} for s in subjects}
    assert all(value > 1 for row in rows.values() for value in row["cnn"].values())
    text = speed.table(rows, 16, 2)
    assert text.count("\n| ") == 1 + len(rows)
    ran = {s.split("(")[0] for s in speed.RECIPES}
    assert ran == {info.name for info in rp.recipes() if info.plugin == "losses"} - {"standard"}


def test_what_is_written_by_hand_is_the_recipe(few: rp.Dataset) -> None:
    speed = script("comparisons/training_speed.py")
    ball, x, y = rp.Linf(eps=speed.EPS, clip=few.clip), few.x_train[:8], few.y_train[:8]
    for name in ("mlp(widths=(16, 8))", "cnn"):
        model = speed.network(name, few)
        torch.testing.assert_close(speed.recipe("ibp", ball)(model, x, y), speed.ibp_by_hand(model, x, y))


@pytest.mark.filterwarnings("ignore")  # what ART announces
def test_trainers_of_art_are_timed(few: rp.Dataset) -> None:
    pytest.importorskip("art")
    speed = script("comparisons/training_speed.py")
    for subject in speed.ART:
        assert speed.costs("mlp(widths=(16,))", subject, few, batch=16, batches=1, repeats=3)["epoch"] > 1
