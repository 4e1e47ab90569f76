"""Reference trainings on half-moons: never looser than published bounds, and the certified accuracies that we state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp

Budget = rp.PoisoningBudget
RUNS: dict[str, tuple[rp.PoisoningBudget, dict[str, Any]]] = {
    "feat_k50_e0.01": (Budget(points=50, eps=0.01), {}),
    "feat_k200_e0.01": (Budget(points=200, eps=0.01), {}),
    "feat_k200_e0.01_exact": (Budget(points=200, eps=0.01), {}),
    "label_k5": (Budget(labels=5), {}),
    "label_k5_exact": (Budget(labels=5), {}),
    "both_k3_e0.1": (Budget(points=3, eps=0.1, labels=3, paired=True), {}),
    "privacy_k5_g0.05": (Budget.privacy(5), {"clip_gradient": 0.05}),
    "unlearn_k20_g0.2": (Budget.removal(20), {"clip_gradient": 0.2}),
}
CERTIFIED = [
    ("box", Budget(points=50, eps=0.01), 0.89),
    ("box", Budget(points=200, eps=0.01), 0.82),
    ("box", Budget(labels=5), 0.43),
    ("box", Budget(points=5, eps=0.1, labels=5), 0.2),
    ("box", Budget(points=100, eps=0.01, labels=3), 0.45),
    ("zonotope", Budget(points=200, eps=0.01), 0.92),
    ("zonotope", Budget(labels=5), 0.86),
]


@pytest.fixture(scope="module")
def reference(shared: Path) -> dict[str, Tensor]:
    with np.load(shared / "reference" / "poisoning" / "halfmoons.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def train(reference: dict[str, Tensor], budget: rp.PoisoningBudget, **how: Any) -> rp.PoisoningRun:
    model = nn.Sequential(nn.Linear(6, 128), nn.ReLU(), nn.Linear(128, 2)).double()
    with torch.no_grad():
        for index, p in enumerate(model.parameters()):
            p.copy_(reference[f"p{index}"])
    batches = [(reference["Xtr"], reference["Ytr"])]
    return rp.abstract_gradient_training(model, batches, budget, loss="cross_entropy", epochs=4, progress=False,
                                         optimizer=rp.SGD(lr=2.0, decay=0.6, min_lr=0.001), **how)  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:update")
@pytest.mark.parametrize("name", RUNS)
def test_never_looser_than_the_reference(name: str, reference: dict[str, Tensor], shared: Path) -> None:
    known = {c["name"]: c["cfg"] for c in json.loads((shared / "reference/poisoning/halfmoons.json").read_text())}
    assert known[name]["n_epochs"] == 4
    budget, how = RUNS[name]
    run = train(reference, budget, **how)
    for index, (bounds, p) in enumerate(zip(run.parameters.values(), run.nominal.parameters(), strict=True)):
        assert (reference[f"{name}__l{index}"] - bounds.lower).max() <= 1e-14
        assert (bounds.upper - reference[f"{name}__u{index}"]).max() <= 1e-14
        assert (reference[f"{name}__n{index}"] - p).abs().max() <= 1e-12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:update")
@pytest.mark.parametrize(("domain", "budget", "least"), CERTIFIED, ids=repr)
def test_certified_accuracies(
    domain: str, budget: rp.PoisoningBudget, least: float, reference: dict[str, Tensor]
) -> None:
    run = train(reference, budget, domain=domain)
    assert run.certified_accuracy(reference["Xte"], reference["Yte"]) >= least
