"""Several balls at once, of every kind of comparison: each as alone, and contradictions between them are found."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import robust_plugins as rp

RADII = (0.05, 0.1)
BALLS = [rp.Linf(eps=eps, clip=None) for eps in RADII]
COMPONENTS = ["rp:margin-pgd(steps=5)", "interval:ibp"]


def _network() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, torch.rand(6, 4)


def _errors(ball: Any) -> Any:
    model, x = _network()
    return rp.compare(model, x, None, ball, COMPONENTS, task="regression", seed=0)


def _labels(ball: Any) -> Any:
    model, x = _network()
    return rp.compare(model, x, (model(x) > 0).long(), ball, COMPONENTS, task="labels", seed=0)


def _explanations(ball: Any) -> Any:
    model, x = _network()
    components = iter(["gradient:corner-pgd(steps=5, restarts=1)", "interval:ibp"])  # an iterator is read once
    return rp.compare_explanations(model, x, model(x).argmax(1), ball, components, k=2, seed=0)


EACH = pytest.mark.parametrize("compared", [_errors, _labels, _explanations])


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k != "seconds"}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


@EACH
def test_each_ball_is_as_alone_and_all_are_handled_as_one_result(compared: Callable[[Any], Any], tmp_path) -> None:
    found = compared(BALLS)
    assert isinstance(found, rp.BallsComparison)
    assert found.balls == tuple(BALLS)
    assert len(found) == 2
    for one, ball in zip(found, BALLS, strict=True):
        assert _without_times(one.to_dict()) == _without_times(compared(ball).to_dict())
    assert found.crossings == ()
    text = str(found)
    assert text.endswith(("No attack contradicts a certificate.", "No attack contradicts a bound."))
    assert all(f"Linf {eps}" in text for eps in RADII)
    assert "Linf 0.05" in found._repr_html_()
    assert "Linf 0.05, Linf 0.1" in repr(found)
    assert len(found.to_frame()) == sum(len(one.to_frame()) for one in found)
    assert set(found.to_frame()["eps"]) == set(RADII)
    json.dumps(found.to_dict())
    again = rp.BallsComparison.load(found.save(tmp_path / "kept.npz"))
    assert str(again) == text
    axes = found.plot().axes[0]
    assert axes.get_xlabel().startswith("eps (Linf")
    assert axes.get_ylabel() == found[0].measure


def test_errors_between_balls_contradict() -> None:
    narrow, wide = _errors(BALLS)
    proof = wide.rows[1]
    reached = narrow.rows[0].errors
    planted = dataclasses.replace(proof, errors=reached - 1e-3)  # less than was reached inside
    found = rp.BallsComparison((narrow, dataclasses.replace(wide, rows=(wide.rows[0], planted), crossings=())))
    assert {c.sample for c in found.between} == set(range(6))
    assert "CONTRADICTION between balls" in str(found)
    within = dataclasses.replace(proof, errors=reached - wide.slack / 2)
    assert not rp.BallsComparison((narrow, dataclasses.replace(wide, rows=(wide.rows[0], within)))).between


def test_labels_between_balls_contradict() -> None:
    narrow, wide = _labels([rp.Linf(eps=eps, clip=None) for eps in (0.5, 1.0)])
    broken = narrow.labels[0].rows[0].result.success & narrow.labels[0].correct
    assert broken.any()
    row = wide.labels[0].rows[1]
    planted = dataclasses.replace(row, result=dataclasses.replace(row.result, certified=row.result.certified | broken))
    label = dataclasses.replace(wide.labels[0], rows=(wide.labels[0].rows[0], planted))
    found = rp.BallsComparison((narrow, dataclasses.replace(wide, labels=(label, *wide.labels[1:]))))
    assert {c.what for c in found.between} == {"the decision about label 0"}
    assert not rp.BallsComparison((narrow, wide)).between


def test_explanations_between_balls_contradict() -> None:
    narrow, wide = _explanations(BALLS)
    row = wide.rows[1]
    proof = row.results[0]
    value = proof.value
    claimed = dataclasses.replace(proof, gradient=rp.Interval(value - 1e-4, value + 1e-4))
    planted = dataclasses.replace(wide, rows=(wide.rows[0], dataclasses.replace(row, results=(claimed,))))
    moved = (narrow.rows[0].results[0].gradient - value).abs().flatten(1).amax(1) > 1e-3
    assert moved.any()
    found = rp.BallsComparison((narrow, planted))
    at = {c.sample for c in found.between if c.what == "a component of the explanation"}
    assert set(moved.nonzero().flatten().tolist()) <= at
    assert not rp.BallsComparison((narrow, wide)).between
    apart = dataclasses.replace(planted, x=planted.x + 1)  # a ball somewhere else holds none of these inputs
    assert not rp.BallsComparison((narrow, apart)).between


@pytest.mark.usefixtures("unchecked")
def test_pages_refuse_what_they_cannot_show(tmp_path) -> None:
    for write, given in ((rp.write_report, _errors(BALLS[0])), (rp.write_explanation_report, _labels(BALLS))):
        with pytest.raises(rp.ArgumentError, match="`comparisons` is"):
            write(tmp_path / "page.html", given, title="mine")
    assert not list(tmp_path.iterdir())
    page = rp.write_explanation_report(tmp_path / "page.html", _explanations(BALLS), title="mine")
    assert page.read_text().count("Linf 0.05") >= 1
