"""The scripts on explanations: small runs of all of them, and at full size the figures that they are there for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.length import length
from support.scripts import script

import robust_plugins as rp
from robust_plugins.harness.pictures import svg

QUICK = "gradient:corner-pgd(corners=20, steps=5, restarts=2, rung=2)"


def test_half_moons_turn_from_complex_to_linear() -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    moons = script("lecture/half_moons.py")
    assert moons.RADII == (0.0, 0.01, 0.05, 0.075, 0.1)
    found = moons.surfaces(radii=(0.0, 0.05, 0.1), samples=100, epochs=120, attack=QUICK)
    assert all(s.attacked <= s.proved + 1e-6 for s in found)
    assert found[0].accuracy > 0.97
    assert all(s.accuracy > 0.85 for s in found)
    assert found[0].linear < 0.5 < 0.7 < found[-1].linear
    assert found[-1].proved < 0.1 * found[0].proved
    text = svg(moons.draw(found, samples=100), "moons")
    assert text.count("<image") == 4, "three networks and the colours' bar"


@pytest.mark.slow
def test_digits_are_certified_after_a_short_training() -> None:
    pytest.importorskip("sklearn")
    rows = script("comparisons/gradient_training.py").digits(2, epochs=25, methods=("plain", "width"), attack=QUICK)
    plain, width = rows["plain"], rows["width"]
    assert plain["top 1 proved"] < 0.05
    assert width["top 1 proved"] > 0.9
    assert width["deviation proved"] < 0.05 * plain["deviation proved"]
    assert width["accuracy"] > 0.93
    for row in rows.values():
        assert row["deviation attacked"] <= row["deviation proved"]
        assert row["top 1 proved"] <= row["top 1 withstands"]


def test_speed_is_a_ratio_to_a_plain_pass() -> None:
    speed = script("comparisons/gradient_bounds.py")
    model, shape = speed.networks()["64-64-64-10 ReLU"]
    rows = speed.compare(model, shape, 8, 2)
    assert rows["plain"]["times a plain pass"] == 1
    assert rows["interval:relaxed"]["width, of ibp's"] < rows["interval:crown"]["width, of ibp's"] < 1
    assert all(row["ms a sample"] >= 0 for row in rows.values())


def test_scores_miss_a_share_of_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    script_of_scores = script("comparisons/explanation_scores.py")
    monkeypatch.setattr(script_of_scores, "COUNTS", (2, 200))
    lipschitz = "LocalLipschitzEstimate, .01"
    monkeypatch.setattr(script_of_scores, "SCORES", {lipschitz: script_of_scores.SCORES[lipschitz]})
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    row = script_of_scores.scores(model, torch.rand(2, 4), torch.tensor([0, 1]), (0.0, 1.0))[lipschitz]
    assert row["2 samples"] <= row["200 samples"] <= row["attack"] <= row["proved"]
    assert 0 < row["missed by 200"] <= row["missed by 2"] < 1
    assert row["missed by 200"] <= row["at most missed by 200"]


def test_widths_that_are_proved_are_not_below_those_that_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = script("comparisons/explanation_widths.py")
    monkeypatch.setattr(widths, "RADII", (0.001, 0.1))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    rows = list(widths.ratios(model, torch.rand(2, 5, dtype=torch.float64), torch.tensor([0, 1]), [0, 2], steps=8))
    assert [row[:2] for row in rows] == [(0.001, 0), (0.001, 2), (0.1, 0), (0.1, 2)]
    ratios = {row[:2]: row[2] for row in rows}
    assert 1 <= ratios[0.001, 2] < 1.2 < ratios[0.001, 0]
    assert 1 <= ratios[0.1, 2] <= ratios[0.1, 0] + 1e-9


@pytest.mark.slow
def test_digits_reach_the_published_figures() -> None:
    """Accuracy .97, proved deviation .05, top 1 proved .98, where plain training proves nothing: means of 3 seeds."""
    pytest.importorskip("sklearn")
    training = script("comparisons/gradient_training.py")
    seeds = [training.digits(seed, epochs=100, methods=("plain", "width"), attack=QUICK) for seed in (1, 2, 3)]

    def mean(method: str, figure: str) -> float:
        return sum(rows[method][figure] for rows in seeds) / len(seeds)

    assert mean("plain", "top 1 proved") < 0.01
    assert mean("width", "accuracy") >= 0.97
    assert mean("width", "deviation proved") <= 0.05
    assert mean("width", "top 1 proved") >= 0.98


@pytest.mark.slow
def test_pneumonia_is_certified_for_inputs_and_weights(shared: Path) -> None:
    """The certified share rises from 0 (with the bounds of the paper) to 1, for at most .03 of accuracy."""
    training = script("comparisons/gradient_training.py")
    rows = training.pneumonia(0, data=training.archive(shared / "data" / "pneumonia"), epochs=10, samples=50)
    plain, width = rows["plain"], rows["width"]
    for what in ("input", "weights"):
        assert plain[f"{what}: proved by ibp"] <= 0.05
        assert plain[f"{what}: proved"] < 0.5
        assert width[f"{what}: proved"] == width[f"{what}: withstands"] == 1
    assert width["accuracy"] >= plain["accuracy"] - 0.03


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp64_relu", "mlp64_tanh"])
def test_no_attack_leaves_a_certificate_of_the_published_networks(shared: Path, name: str) -> None:
    import numpy as np
    from torch import nn

    stored = np.load(shared / "reference" / "gradients" / f"{name}.npz")
    bounds = np.load(shared / "reference" / "gradients" / "bounds.npz")
    layers: list[nn.Module] = []
    for index in range(3):
        weight, bias = (torch.tensor(stored[f"{kind}{index}"]).double() for kind in "Wb")
        layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
        layer.weight.data, layer.bias.data = weight, bias
        layers += [layer, nn.ReLU() if name.endswith("relu") else nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    x, y = torch.tensor(bounds[f"{name}/x"]).double(), torch.tensor(bounds[f"{name}/y"])
    components = ["gradient:corner-pgd", "interval:ibp", "interval:crown", "interval:relaxed"]
    for eps in length((0.01, 0.1), (0.001, 0.01, 0.05, 0.1)):
        for of in ("logit", "margin", "loss"):
            for radius in (0.0, 0.01):
                ball = rp.Linf(eps=eps, clip=None)
                table = rp.compare_explanations(model, x, y, ball, components, of=of, radius=radius, seed=0)
                assert table.crossings == ()
                assert not any(row.error for row in table.rows)
                low, high = table.deviation
                assert (low <= high + 1e-9 * (1 + high)).all()  # some brackets are exact
