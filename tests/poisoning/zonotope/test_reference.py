"""The published half-moons runs: certified accuracy of the zonotope domain, with the same start and batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp


def half_moons(shared: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    folder = shared / "reference" / "poisoning"
    if not (folder / "halfmoons.npz").is_file():
        pytest.skip(f"reference runs are absent: {folder}")
    data = {name: torch.from_numpy(value) for name, value in np.load(folder / "halfmoons.npz").items()}
    model = nn.Sequential(nn.Linear(6, 128), nn.ReLU(), nn.Linear(128, 2)).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(data[f"p{i}"])
    return model, data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "certified"),
    [
        (rp.PoisoningBudget(points=200, eps=0.01), 0.92),
        (rp.PoisoningBudget(labels=5), 0.88),
        (rp.PoisoningBudget(points=10, eps=0.2), 0.86),
    ],
    ids=["n=200", "m=5", "n=10, eps=.2"],
)
def test_half_moons(shared: Path, budget: rp.PoisoningBudget, certified: float) -> None:
    model, data = half_moons(shared)
    run = rp.abstract_gradient_training(model, [(data["Xtr"], data["Ytr"])], budget, loss="cross_entropy",
                                        optimizer=rp.SGD(lr=2.0, decay=0.6), epochs=4, domain="zonotope",
                                        progress=False)  # fmt: skip
    assert run.certified_accuracy(data["Xte"], data["Yte"]) >= certified


@pytest.mark.slow
def test_half_moons_for_sixteen_updates(shared: Path) -> None:
    """Boxes decide nothing from update 10 on."""
    model, data = half_moons(shared)
    run = rp.abstract_gradient_training(model, [(data["Xtr"], data["Ytr"])], rp.PoisoningBudget(labels=1),
                                        loss="cross_entropy", optimizer=rp.SGD(lr=2.0, decay=0.6), epochs=16,
                                        domain="zonotope", progress=False)  # fmt: skip
    assert run.certified_accuracy(data["Xte"], data["Yte"]) >= 0.95
