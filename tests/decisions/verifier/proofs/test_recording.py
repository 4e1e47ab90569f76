"""What is written down: every certificate has a proof that holds, of whatever layers, and a search is as before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.proofs import EARLY, dense, proved, read, rejected
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.decisions.verifier.domains import Domains
from robust_plugins.decisions.verifier.proofs import NO_PROOF, recording
from robust_plugins.decisions.verifier.proofs.normal_form import normal_form
from robust_plugins.decisions.verifier.proofs.trees import Leaves, preorder
from robust_plugins.decisions.verifier.verify import prepared

NAME = "interval:branch-and-bound"
pytestmark = pytest.mark.usefixtures("unchecked")


class Residual(nn.Module):
    """Two paths that meet, and a maximum of both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.last(torch.maximum(x + 0.5 * h, h.abs() - x))


def image(*layers: nn.Module, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3, stride=2, padding=1), *layers, nn.Flatten(), nn.Linear(after, 3))


def chain(bend: nn.Module, second: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), bend, nn.Linear(8, 6), second, nn.Linear(6, 3))


MODELS = {
    "residual": (Residual, (6,)),
    "leaky": (lambda: chain(nn.LeakyReLU(0.2), nn.PReLU()), (6,)),
    "clamped": (lambda: chain(nn.Hardtanh(), nn.ReLU6()), (6,)),
    "pooled": (lambda: image(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), after=12), (1, 8, 8)),
    "averaged": (
        lambda: image(nn.ReLU(), nn.AvgPool2d(2), nn.ConvTranspose2d(3, 2, 2), nn.ReLU(), after=18),
        (1, 8, 8),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_certificate_has_a_proof(name: str, tmp_path: Path) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model, path = make().eval(), tmp_path / "run.proof"
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    y, ball = model(x).argmax(1), rp.Linf(eps=0.1 if len(shape) == 1 else 0.004, clip=(0, 1))
    component = rp.certifier(NAME, timeout=30.0, clock="cpu")
    found = replace(component, proof=str(path))(model, x, y, ball)
    assert found.verdicts == component(model, x, y, ball).verdicts
    certified = [(int(y[i]), ball.box(x[i : i + 1])) for i in range(3) if found.certified[i]]
    net, samples = read(path)
    assert len(samples) == len(certified) > 0
    for sample, (label, box) in zip(samples, certified, strict=True):
        assert rejected(sample, net) == ""
        assert sample.about["property"] == {"label": label}
        assert (torch.tensor(sample.arrays["lower"]) == box.lower.double().flatten()).all()
        assert (torch.tensor(sample.arrays["upper"]) == box.upper.double().flatten()).all()


def test_a_conjunction_is_proved_by_its_combination(tmp_path: Path) -> None:
    """Neither of |x| >= 0.2 - y and |x| <= y - 0.1 is impossible, but both at once are."""
    from robust_plugins.decisions.verifier import Halfspaces, verify_property

    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        model[2].bias.zero_()
    low, up = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 1.0])
    unsafe = [Halfspaces(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([-0.5, 0.6]))]
    answer = verify_property(model, low, up, unsafe, proof=tmp_path / "p").answer
    assert answer == "unsat"
    net, (sample,) = read(tmp_path / "p")
    assert sample.about["property"] == {"conjunctions": [2]}
    assert rejected(sample, net) == ""
    assert (sample.arrays[next(n for n in sample.arrays if n.endswith("weights"))] >= 0).all()


def test_what_no_proof_holds_is_not_certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording.NotedSearch, "tree", lambda self, conjunction: None)
    monkeypatch.setattr(recording.BoxNotes, "arrays", lambda self: None)
    x = torch.rand(1, 4, generator=torch.Generator().manual_seed(0))
    y = dense(0)(x).argmax(1)
    found = rp.certifier(NAME, proof=str(tmp_path / "p"))(dense(0), x, y, rp.Linf(eps=0.01, clip=None))
    assert (found.verdicts, found.messages) == ((rp.Verdict.UNKNOWN,), (NO_PROOF,))
    assert not proved(dense(0), x[0], 0.01, tmp_path / "p")


def test_networks_without_proofs_are_refused(tmp_path: Path) -> None:
    layer, x = nn.Sequential(nn.Upsample(scale_factor=2), nn.Flatten()), torch.zeros(1, 1, 160, 160)
    with pytest.raises(rp.ArgumentError, match=r"'0' \(Upsample\) no proof can hold"):
        normal_form(prepared(layer, x).relu, (1, 160, 160))
    smooth = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    with pytest.raises(rp.ArgumentError, match=r"'1' \(Tanh\) is not piecewise linear.*Leave `proof` out"):
        rp.certifier(NAME, proof=str(tmp_path / "p"))(
            smooth, x.view(-1)[:4].view(1, 4), torch.zeros(1, dtype=torch.long), rp.Linf(eps=0.1, clip=None)
        )
    with pytest.raises(rp.ArgumentError, match="path of a file"):
        rp.certifier(NAME, proof="")


def leaves(splits: list[dict[int, int]], units: int) -> Leaves:
    signs = torch.zeros(units, len(splits))
    for leaf, split in enumerate(splits):
        for unit, sign in split.items():
            signs[unit, leaf] = sign
    numbers = torch.arange(signs.numel(), dtype=torch.float32).view_as(signs)
    return Leaves.of(Domains(signs, torch.rand_like(signs), numbers * signs.abs(), torch.ones(1, len(splits))))


def test_trees_are_rebuilt_from_their_leaves() -> None:
    splits = [{0: 1, 2: -1}, {0: -1}, {0: 1, 2: 1, 1: -1}, {0: 1, 2: 1, 1: 1}, {}]
    given = leaves(splits, 4)
    found = preorder(given, np.array([0, 0, 0, 0, 1]), 2)
    assert found is not None
    assert found["tree"].tolist() == [0, 2, 1, -1, -1, -1, -1, -1]
    assert (found["slopes"] == given.slopes[[3, 2, 0, 1, 4]]).all()
    assert found["multipliers"].tolist() == [3, 13, 8, 2, 12, 7, 0, 10, 1]


@pytest.mark.parametrize(
    "splits",
    [
        [{0: 1}],
        [{0: 1}, {0: 1}],
        [{0: 1}, {0: -1}, {0: -1}],
        [{0: 1, 1: 1}, {0: -1}],
        [{0: 1, 1: 1}, {0: 1, 1: -1}, {0: -1, 2: 1}],
        [{0: 1}, {1: -1}],
        [{}, {}],
    ],
)
def test_leaves_that_do_not_cover_make_no_tree(splits: list[dict[int, int]]) -> None:
    assert preorder(leaves(splits, 3), np.zeros(len(splits), int), 1) is None
    assert preorder(leaves([*splits, {}], 3), np.array([0] * len(splits) + [2]), 3) is None


def test_bounds_refined_by_trees_keep_them(tmp_path: Path) -> None:
    x = torch.rand(4, generator=torch.Generator().manual_seed(3))
    assert proved(dense(3), x, 1.2, tmp_path / "p", EARLY)
    net, (sample,) = read(tmp_path / "p")
    assert [stage["known"] for stage in sample.about["stages"]] == [None, 0, 1]
    assert any((a >= 0).any() for n, a in sample.arrays.items() if n.endswith("tree") and "goal" not in n)
    assert rejected(sample, net) == ""
