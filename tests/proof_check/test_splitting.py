"""Proofs by halved boxes of inputs: whole ones hold, faults are not believed, and no input leaves a box's bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.length import length
from support.proofs import copied, dense, proved, read, rejected
from torch import nn

import robust_plugins as rp
from robust_plugins.decisions.verifier import Halfspaces, verify_property
from robust_plugins.decisions.verifier.proofs.comparing import evaluated
from robust_plugins.proof_check import network, splitting
from robust_plugins.proof_check.checking import question
from robust_plugins.proof_check.reading import Record
from robust_plugins.proof_check.splitting import Boxes, Proof, Strip

pytestmark = pytest.mark.usefixtures("unchecked")


def meeting(path: Path) -> bool:
    """Proves that two rows, each below zero somewhere, never are so at once; one input is fixed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    low, up = torch.full((5,), -1.0), torch.full((5,), 1.0)
    low[2] = up[2] = 0.3
    x = low + (up - low) * torch.rand(2000, 5)
    z = model(x).detach().double()
    rows = torch.tensor([[1.0, -1.0, 0.1, 0.0], [-1.0, 1.0, 0.0, 0.1]], dtype=torch.float64)
    values = z @ rows.t()
    offsets = -values.mean(0)
    offsets = offsets - (values + offsets).amax(1).min() + 0.05
    third = Halfspaces(torch.tensor([[0.0, 0.0, 1.0, -1.0]]), -(z[:, 2] - z[:, 3]).min().view(1) + 0.2)
    sets = [Halfspaces(rows, offsets), third]
    assert ((values + offsets) < 0).any(0).all()
    return verify_property(model, low, up, sets, timeout=60, proof=path).answer == "unsat"


@pytest.fixture(scope="module")
def proofs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Record, Record]]:
    path, found = tmp_path_factory.mktemp("boxes"), []
    for seed, eps in ((0, 0.3), (3, 1.2), (7, 1e-4)):
        x = torch.rand(4, generator=torch.Generator().manual_seed(seed))
        assert proved(dense(seed), x, eps, path / f"{seed}", None)
        found.append(read(path / f"{seed}"))
    assert meeting(path / "meeting")
    found.append(read(path / "meeting"))
    return [(net, sample) for net, (sample,) in found]


def test_whole_proofs_hold(proofs: list[tuple[Record, Record]]) -> None:
    for net, sample in proofs:
        assert rejected(sample, net) == ""
        assert "stages" not in sample.about
    assert max((sample.arrays["boxes.split"] >= 0).sum() for _, sample in proofs) > 10
    last = proofs[-1][1].arrays
    assert len(last["boxes.cut"]) > 0
    assert len(last["boxes.weighted"]) > 0


def test_certificates_of_few_inputs_have_proofs(tmp_path: Path) -> None:
    model, x = dense(0), torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    ball, y = rp.Linf(eps=0.2, clip=(0, 1)), dense(0)(x).argmax(1)
    component = rp.certifier("interval:branch-and-bound", proof=str(tmp_path / "p"))
    found = component(model, x, y, ball)
    net, samples = read(tmp_path / "p")
    assert found.verdicts == rp.certifier("interval:branch-and-bound")(model, x, y, ball).verdicts
    assert [rejected(sample, net) for sample in samples] == [""] * int(found.certified.sum())
    assert len(samples) > 0
    assert all("boxes.split" in sample.arrays for sample in samples)


Mutation = Callable[[Record, np.random.Generator], bool]
"""Changes the arrays of a record so that it proves nothing any more; False where there is nothing to change."""


def half_dropped(sample: Record, rng: np.random.Generator) -> bool:
    split = sample.arrays["boxes.split"]
    at = np.flatnonzero(split >= 0)
    if len(at):
        split[rng.choice(at)] = -1
    return len(at) > 0


def half_elsewhere(sample: Record, rng: np.random.Generator) -> bool:
    """The halves of a box are those of another, or none."""
    split, child = sample.arrays["boxes.split"], sample.arrays["boxes.child"]
    at = np.flatnonzero(split >= 0)
    if len(at) < 2:
        return False
    one, other = rng.choice(at, 2, replace=False)
    child[one] = rng.choice([child[other], 0, -1, len(child), one])
    return True


def axis_outside(sample: Record, rng: np.random.Generator) -> bool:
    sample.arrays["boxes.split"][rng.integers(len(sample.arrays["boxes.split"]))] = rng.choice([4, 9, 10**6])
    return True


def list_cut_short(sample: Record, rng: np.random.Generator) -> bool:
    for name in ("boxes.split", "boxes.child"):
        sample.arrays[name] = sample.arrays[name][:-1]
    return True


def cut_deeper(sample: Record, rng: np.random.Generator) -> bool:
    if not len(sample.arrays["boxes.cut"]):
        return False
    at = rng.integers(len(sample.arrays["boxes.cut"]))
    low, up = sample.arrays["boxes.low"], sample.arrays["boxes.up"]
    axis = int((up - low)[at].argmax())
    low[at, axis] += 1e-3 * (up - low)[at, axis]
    return True


def weight_below_zero(sample: Record, rng: np.random.Generator) -> bool:
    weights = sample.arrays["boxes.weights"]
    if weights.size:
        weights[rng.integers(len(weights)), 0] = -rng.random() - 1e-3
    return weights.size > 0


def weights_missing(sample: Record, rng: np.random.Generator) -> bool:
    if not len(sample.arrays["boxes.weighted"]):
        return False
    sample.arrays["boxes.weights"] = np.delete(sample.arrays["boxes.weights"], 0, int(rng.integers(2)))
    return True


def no_number(sample: Record, rng: np.random.Generator) -> bool:
    name = rng.choice(["lower", "upper", "offsets"])
    sample.arrays[name][rng.integers(len(sample.arrays[name]))] = rng.choice([np.nan, np.inf, -np.inf])
    return True


def rounding_forgotten(sample: Record, rng: np.random.Generator) -> bool:
    sample.arrays["boxes.gamma"][0] = rng.choice([0.0, 1e-16, -1.0, np.nan])
    return True


def constant_moved(sample: Record, rng: np.random.Generator) -> bool:
    sample.arrays["offsets"][:] = -1e3
    return True


MUTATIONS: list[Mutation] = [
    half_dropped, half_elsewhere, axis_outside, list_cut_short, cut_deeper, weight_below_zero, weights_missing,
    no_number, rounding_forgotten, constant_moved,
]  # fmt: skip


def mutated(proofs: list[tuple[Record, Record]], count: int, seed: int) -> None:
    rng, tried = np.random.default_rng(seed), dict.fromkeys((m.__name__ for m in MUTATIONS), 0)
    for k in range(count):
        change, (net, sample) = MUTATIONS[k % len(MUTATIONS)], proofs[rng.integers(len(proofs))]
        sample = copied(sample)
        if change(sample, rng):
            tried[change.__name__] += 1
            assert rejected(sample, net) != "", change.__name__
    assert min(tried.values()) > 0, tried


def test_no_mutated_proof_is_believed(proofs: list[tuple[Record, Record]]) -> None:
    mutated(proofs, 120, 0)


@pytest.mark.slow
def test_no_mutated_proof_of_a_thousand_is_believed(proofs: list[tuple[Record, Record]]) -> None:
    mutated(proofs, length(300, 1000), 1)


def boxes(proof: Proof, low: np.ndarray, up: np.ndarray) -> Boxes:
    n, wide = len(low), (len(low), proof.ends[-1])
    return Boxes(
        np.arange(n), np.zeros(n, int), low, up, np.full(wide, -np.inf), np.full(wide, np.inf),
        np.full((n, proof.rows.shape[1] * proof.joint), -np.inf),
    )  # fmt: skip


def violation(proofs: list[tuple[Record, Record]], radius: float, seed: int = 0) -> float:
    """How far values of neurons and rows lie outside the bounds of boxes that hold their inputs."""
    rng, worst = np.random.default_rng(seed), -np.inf
    for net, sample in proofs:
        nodes = network(net)
        rows, parts = question(sample, nodes[-1].size)
        proof = Proof(sample, nodes, rows, parts)
        middle = rng.uniform(proof.lower, proof.upper, (4, len(proof.lower)))
        low, up = middle - radius, middle + radius
        a, b, least, most = proof._lines(boxes(proof, low, up), middle, np.full_like(middle, radius))
        for i in range(4):
            ends = np.where(a[i] > 0, low[i], up[i])  # where the lines are lowest
            for x in [*ends, *rng.uniform(low[i], up[i], (20, len(low[i]))), low[i], up[i]]:
                whole = sample.arrays["lower"].copy()
                whole[proof.vary] = x
                values = evaluated(nodes, whole)
                z = np.concatenate([values[node.inputs[0]] for node in nodes if node.bend])
                inside = np.concatenate([least[i] - z, z - most[i]])
                row = np.tile(proof.rows[0] @ values[-1] + proof.offsets[0], 2)
                worst = max(worst, inside.max(), (b[i] + a[i] @ x - row).max())
    return worst


@pytest.mark.parametrize("radius", [0.0, 1e-4, 0.05, 0.7])
def test_no_input_leaves_the_bounds(proofs: list[tuple[Record, Record]], radius: float) -> None:
    assert violation(proofs, radius) <= 0


class Lower(Strip):
    """A strip that is too thin."""

    def __new__(cls, slope: np.ndarray, over: np.ndarray, flat: np.ndarray) -> Lower:
        return super().__new__(cls, slope, 0.7 * over, flat)


class Steeper(Strip):
    """A line below that is not below."""

    def __new__(cls, slope: np.ndarray, over: np.ndarray, flat: np.ndarray) -> Steeper:
        return super().__new__(cls, slope, over, 1.2 * flat)


@pytest.mark.parametrize("fault", [Lower, Steeper])
def test_an_unsound_line_would_be_found(
    proofs: list[tuple[Record, Record]], monkeypatch: pytest.MonkeyPatch, fault: type[Strip]
) -> None:
    monkeypatch.setattr(splitting, "Strip", fault)
    assert max(violation(proofs, radius) for radius in (0.3, 1.0)) > 1e-6
