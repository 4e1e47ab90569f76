"""Against published-style bounds on the input gradients of three networks: never looser, and sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.intervals import Interval, crown, trace
from robust_plugins.intervals.methods import loss_gradients

NETS = ["mlp64_relu", "mlp64_tanh", "cnn_relu"]


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


def _sampled(model: nn.Module, x: Tensor, eps: float, grad: Tensor | None, y: Tensor) -> Interval:
    """The hull of input gradients at random points and corners of the ball: of logit y, or of the cross-entropy."""
    g = torch.Generator().manual_seed(0)
    hull = None
    for index in range(60):
        t = torch.rand(x.shape, generator=g, dtype=torch.float64)
        z = (x + eps * (2 * (t.round() if index % 2 else t) - 1)).requires_grad_()
        out = model(z)
        loss = (out * grad).sum() if grad is not None else F.cross_entropy(out, y, reduction="sum")
        seen = Interval.point(torch.autograd.grad(loss, z)[0])
        hull = seen if hull is None else hull.hull(seen)
    assert hull is not None
    return hull


@pytest.mark.parametrize("eps", ["0.001", "0.01", "0.05", "0.1"])
@pytest.mark.parametrize("name", NETS)
def test_never_looser_than_the_reference_and_sound(shared: Path, name: str, eps: str) -> None:
    folder = shared / "reference" / "gradients"
    model, stored = _load(folder, name), _read(folder / "bounds.npz")
    x, y = stored[f"{name}/x"], stored[f"{name}/y"]
    box = Interval(x - float(eps), x + float(eps))
    network = trace(model, x)
    onehot = F.one_hot(y, 10).double()
    with torch.no_grad():
        pre = {"ibp+int": network.forward(box), "crown+int": crown(network, box)}
        starts = {
            method: {"logit": Interval.point(onehot), "ce": loss_gradients.cross_entropy(values[-1], y)}
            for method, values in pre.items()
        }
        found = {
            (of, method): network.backward(pre[method], starts[method][of]).input
            for method in pre
            for of in starts[method]
        }
    for of in ("logit", "ce"):
        hull = _sampled(model, x, float(eps), onehot if of == "logit" else None, y)
        for method in pre:
            bound = found[of, method]
            low, up = (stored[f"{name}/{eps}/{of}/{method}/{end}"] for end in "lu")
            assert bool((bound.contains(hull.lower, tolerance=1e-9) & bound.contains(hull.upper, tolerance=1e-9)).all())
            # The reference has the convolutions as dense matrices, which differ by the rounding of float32.
            slack = 1e-6 * (1 + up - low)
            inside = (bound.lower >= low - slack) & (bound.upper <= up + slack)
            assert bool(inside.all()), f"{of} {method}: {float(inside.double().mean()):.3f} inside"
