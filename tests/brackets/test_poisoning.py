"""`poisoning_bracket`: achieved and certified, contradictions, and its pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.inclusion import Setting
from torch import Tensor

import robust_plugins as rp
from robust_plugins.brackets.poisoning import compared
from robust_plugins.brackets.poisoning_plots import (
    Curve,
    curve_figure,
    region_figure,
    trajectory_figure,
)
from robust_plugins.intervals import Interval

CLASSES = Setting(budget=rp.PoisoningBudget(points=1, eps=0.1, labels=1), sizes=(30, 20), epochs=1,
                  optimizer=rp.SGD(lr=0.2))  # fmt: skip
NUMBERS = Setting(budget=rp.PoisoningBudget(labels=2, label_radius=0.2), loss="mse", sizes=(12, 8), epochs=2,
                  optimizer=rp.SGD(lr=0.05))  # fmt: skip


def bracket(setting: Setting, **more: Any) -> rp.PoisoningBracket:
    x, y = (torch.cat(parts) for parts in zip(*setting.batches(), strict=True))
    arguments: dict[str, Any] = {"validation": (x, y), "progress": False} | setting.arguments() | more
    return rp.poisoning_bracket(setting.model(), setting.batches(), setting.budget, **arguments)


def test_of_classes() -> None:
    found = bracket(CLASSES)
    assert found.accuracy is not None
    achieved, certified = found.accuracy
    assert 0 < certified <= achieved <= (found.nominal or 0.0)
    assert 0.2 < found.ratio <= 1
    assert found.width[0] == pytest.approx(found.ratio * found.width[1])
    assert not found.crossings
    assert [row.attack for row in found.rows] == ["random", "loss ascent", "gradient alignment", "pushed parameters"]
    assert found.rows[-1].width == max(row.width for row in found.rows)
    widths = torch.cat([p.width.flatten() for p in found.run.parameters.values()])
    assert sorted(widths.topk(8).indices.tolist()) == list(found.pushed)
    text = str(found)
    assert "No attack contradicts the certificate." in text
    assert "pushed parameters" in text
    json.dumps(found.to_dict(), allow_nan=False)
    assert bracket(CLASSES).width == found.width  # the same seed, the same attacks


def test_a_training_without_bounds_shows_no_number() -> None:
    found = bracket(CLASSES)
    unbounded = {name: Interval(torch.full_like(p.lower, -torch.inf), torch.full_like(p.upper, torch.inf))
                 for name, p in found.run.parameters.items()}  # fmt: skip
    text = str(compared(replace(found.run, parameters=unbounded), found.trainings))
    (line,) = [line for line in text.splitlines() if "any (certified)" in line]
    assert line.split() == ["any", "(certified)", "unbounded"]
    assert "nothing is certified" in text
    assert "No attack contradicts" not in text


def test_of_numbers() -> None:
    found = bracket(NUMBERS)
    assert found.measure == "mse"
    assert found.accuracy is None
    assert found.score is not None
    assert (found.nominal or 0.0) <= found.score[0] <= found.score[1]


def test_of_attacks_that_are_named_and_without_validation() -> None:
    found = bracket(CLASSES, attacks=[rp.RandomPoisoning(count=2)], validation=None)
    assert found.score is None
    assert found.rows[0].trainings == 2
    assert len(found.pushed) == sum(p.lower.numel() for p in found.run.parameters.values())
    with pytest.raises(rp.ArgumentError, match="attacks"):
        bracket(CLASSES, attacks=[])


def test_batches_that_can_be_read_once() -> None:
    setting = replace(CLASSES, epochs=2, optimizer=rp.SGD(lr=0.05))
    found = rp.poisoning_bracket(setting.model(), iter(setting.batches()), setting.budget, **setting.arguments(),
                                 progress=False)  # fmt: skip
    assert found.run.history[-1].updates == 4


def test_contradictions_are_told() -> None:
    true = bracket(CLASSES)
    narrow = {n: Interval(p.center - p.radius / 20, p.center + p.radius / 20) for n, p in true.run.parameters.items()}
    x, y = (torch.cat(parts) for parts in zip(*CLASSES.batches(), strict=True))
    wrong = compared(replace(true.run, parameters=narrow), true.trainings, (x, y))
    assert any("from its bounds" in crossing.what for crossing in wrong.crossings)
    assert "CONTRADICTION: pushed parameters reached" in str(wrong)

    class Boasting(rp.PoisoningRun):
        def certified_accuracy(self, x: Tensor, y: Tensor, *, ball: rp.Ball | None = None) -> float:
            return 1.0

    run = true.run
    boasting = Boasting(nominal=run.nominal, parameters=run.parameters, history=run.history, budget=run.budget,
                        loss=run.loss)  # fmt: skip
    wrong = compared(boasting, true.trainings, (x, y))
    assert any("proved at least 1" in str(crossing) for crossing in wrong.crossings)


def test_pictures() -> None:
    found = bracket(CLASSES)
    assert len(found.plot().axes) == 2
    path = torch.randn(3, 2, 4)
    trajectories = trajectory_figure([found.run], path[:, 0], [path], [(0, 1), (2, 3)])
    assert [axes.get_xlabel() for axes in trajectories.axes] == ["0.weight[0, 0]", "0.weight[0, 2]"]
    (rectangle,) = trajectories.axes[0].patches
    weights = found.run.parameters["0.weight"]
    assert rectangle.get_x() == pytest.approx(weights.lower[0, 0].item())  # type: ignore[attr-defined]
    assert rectangle.get_height() == pytest.approx(weights.width[0, 1].item())  # type: ignore[attr-defined]
    points = torch.zeros(2, 2), torch.tensor([0, 1])
    regions = region_figure({"one": found.run}, lambda x: torch.cat([x, x], 1), points, limits=(-1, 1, -1, 1),
                            resolution=8, scores={"one": "0.5"})  # fmt: skip
    assert regions.axes[0].get_title() == "one\n0.5"
    curve = Curve(label="eps", sizes=(1, 2), certified=(0.5, 0.4), achieved=(0.9, 0.8))
    assert len(curve_figure({"n": [curve]}, score="accuracy", nominal=0.9, sizes={"n": "n"}).axes[0].lines) == 3
