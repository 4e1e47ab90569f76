"""Against stored bounds on the input gradients of three networks: never looser than the same method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.length import length
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.testing import adversarial_gradients

METHODS = {
    ("interval:ibp", "logit"): "logit/ibp+int",
    ("interval:ibp", "loss"): "ce/ibp+int",
    ("interval:crown", "logit"): "logit/crown+int",
    ("interval:crown", "loss"): "ce/crown+int",
    ("interval:relaxed", "logit"): "logit/crown+mcc",
    ("interval:relaxed", "loss"): "ce/crown+mcc+simplex",
}
WIDTHS = {"0.001": 1.02, "0.01": 1.2, "0.05": 2.8, "0.1": 3.25}
"""Of joint gates on the tanh network, relative to what a gradient ascent on each component finds."""


def _read(path: Path) -> dict[str, Tensor]:
    with np.load(path) as stored:
        return {k: torch.from_numpy(v) for k, v in stored.items() if v.dtype.kind in "fi"}


def _load(folder: Path, name: str) -> nn.Module:
    if name == "cnn_relu":
        model = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10),
        ).double()  # fmt: skip
        model.load_state_dict(_read(folder / "cnn_relu_conv.npz"))
        return model
    stored = _read(folder / f"{name}.npz")
    layers: list[nn.Module] = []
    for index in range(3):
        weight, bias = stored[f"W{index}"], stored[f"b{index}"]
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, nn.ReLU() if "relu" in name else nn.Tanh()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("eps", ["0.001", "0.01", "0.05", "0.1"])
@pytest.mark.parametrize("name", ["mlp64_relu", "mlp64_tanh", "cnn_relu"])
def test_never_looser_and_sound(shared: Path, name: str, eps: str) -> None:
    folder = shared / "reference" / "gradients"
    model, stored = _load(folder, name), _read(folder / "bounds.npz")
    x, y = stored[f"{name}/x"].flatten(1), stored[f"{name}/y"]
    ball = rp.Linf(eps=float(eps), clip=None)
    for of in ("logit", "loss"):
        explained = rp.Explained.at(model, x, y, of)
        found = torch.cat([v for _, v in adversarial_gradients(model, x, ball, explained, components=2)])
        for certifier in ("interval:ibp", "interval:crown", "interval:relaxed"):
            with torch.no_grad():
                bounds = rp.explanation_certifier(certifier).bounds(model, x, y, ball, of=of)
            assert bounds.contains(found, tolerance=1e-9).all(), f"{certifier}, {of}"
            key = f"{name}/{eps}/{METHODS[certifier, of]}"
            low, up = (stored[f"{key}/{end}"].view_as(x) for end in "lu")
            # The stored bounds of the convolutions differ by the rounding of float32.
            slack = 1e-6 if name == "cnn_relu" else 1e-11
            inside = (bounds.lower >= low - slack * (1 + up - low)) & (bounds.upper <= up + slack * (1 + up - low))
            assert inside.all(), f"{certifier}, {of}: {inside.double().mean():.3f} inside"


@pytest.mark.slow
@pytest.mark.parametrize("eps", list(WIDTHS))
def test_joint_gates_reach_their_widths(shared: Path, eps: str) -> None:
    folder = shared / "reference" / "gradients"
    model, stored = _load(folder, "mlp64_tanh"), _read(folder / "bounds.npz")
    x, y = stored["mlp64_tanh/x"], stored["mlp64_tanh/y"]
    ball = rp.Linf(eps=float(eps), clip=None)
    explained = rp.Explained.at(model, x, y, "logit")
    found = torch.cat([
        v for seed in range(length(1, 3))
        for _, v in adversarial_gradients(model, x, ball, explained, samples=300, steps=60, components=64, seed=seed)
    ])  # fmt: skip
    attacked = (found.amax(0) - found.amin(0)).mean()
    widths = []
    for effort in range(4):
        with torch.no_grad():
            bounds = rp.explanation_certifier(f"interval:relaxed(effort={effort})").bounds(
                model, x, y, ball, of="logit"
            )
        assert bounds.contains(found, tolerance=1e-9).all()
        widths.append(bounds.width.mean())
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] / attacked <= WIDTHS[eps]
