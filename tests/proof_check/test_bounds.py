"""The bounds that a check computes, for any duals: no input leaves them, however small the box."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robust_plugins.decisions.verifier.proofs.comparing import evaluated
from robust_plugins.decisions.verifier.proofs.normal_form import normal_form
from robust_plugins.decisions.verifier.proofs.writing import plain_record
from robust_plugins.decisions.verifier.verify import prepared
from robust_plugins.proof_check import checking, network
from robust_plugins.proof_check.checking import Relaxation
from robust_plugins.proof_check.reading import Node, _unpacked

SHAPE = (2, 8, 8)


class Everything(nn.Module):
    """Every kind of step that a proof knows, and two paths that meet."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.1), nn.MaxPool2d(2))
        self.grouped = nn.Sequential(nn.Conv2d(4, 4, 2, groups=2, padding=1), nn.AvgPool2d(3), nn.Hardtanh(-0.3, 0.2))
        self.middle, self.last = nn.Linear(16, 4), nn.Linear(4, 3)
        self.slope = nn.PReLU(4, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first((x - 0.2) / 0.7)
        z = self.middle(h.flatten(1)) + self.grouped(h).flatten(1)
        return self.last(self.slope(z) - z.abs() + torch.maximum(z, 0.1 - z.clamp(max=0.3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    model = Everything()
    for name, t in model.named_buffers():
        if t.is_floating_point():
            t.copy_(torch.rand_like(t) + ("var" in name))
    return model.eval()


@pytest.fixture(scope="module")
def nodes(model: nn.Module) -> list[Node]:
    return network(_unpacked(plain_record(*normal_form(prepared(model, torch.zeros(1, *SHAPE)).relu, SHAPE))))


def test_the_network_of_a_proof_is_the_model(model: nn.Module, nodes: list[Node]) -> None:
    x = torch.randn(5, *SHAPE, dtype=torch.float64)
    twin = Everything().double().eval()
    twin.load_state_dict(model.state_dict())
    for one, wanted in zip(x, twin(x).detach(), strict=True):
        assert np.allclose(evaluated(nodes, one.flatten().numpy())[-1], wanted, rtol=0, atol=1e-12)
    assert {type(m).__name__ for node in nodes for m in node.maps} == {"Convolution", "Dense", "Same", "Sparse"}


def opened(nodes: list[Node], lower: np.ndarray, upper: np.ndarray, more: int = 1) -> Relaxation:
    """Intervals of a box, with units where inputs pass their kinks, and some besides."""
    box, rng = Relaxation(nodes, lower, upper, None), np.random.default_rng(0)
    for k in range(1, len(nodes)):
        units = np.zeros(0, int)
        if nodes[k].bend:
            low, up, kink = box.low[nodes[k].inputs[0]], box.up[nodes[k].inputs[0]], nodes[k].bend[2]
            units = np.union1d(np.flatnonzero((low < kink) & (up > kink)), rng.integers(0, len(low), more))
        box.step(k, units)
    return box


def ends(nodes: list[Node], middle: np.ndarray, radius: float, rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """The first node with a kink, and the corners at which some of its inputs, affine in x, are least and largest."""
    first = next(k for k, node in enumerate(nodes) if node.bend)
    a = np.eye(nodes[first].size)[rng.permutation(nodes[first].size)[:8]]
    for node in reversed(nodes[1:first]):
        a = node.maps[0].back(a)
    return first, middle + radius * np.concatenate([np.sign(a), -np.sign(a)])


def violation(nodes: list[Node], radius: float, rng: np.random.Generator) -> float:
    """How far points of a box are below bounds made of random duals whose signs are those of the points' own units."""
    middle = rng.standard_normal(nodes[0].size)
    box = opened(nodes, middle - radius, middle + radius)
    first, corners = ends(nodes, middle, radius, rng)
    points = np.concatenate([corners, middle + radius * rng.uniform(-1, 1, (8, nodes[0].size))])
    worst, sides = -np.inf, np.concatenate([np.eye(nodes[first].size), -np.eye(nodes[first].size)])
    for x in np.clip(points, middle - radius, middle + radius):
        values = evaluated(nodes, x)
        worst = max(worst, *((box.low[k] - v).max() for k, v in enumerate(values)))
        worst = max(worst, *((v - box.up[k]).max() for k, v in enumerate(values)))
        signs = np.zeros((8, box.units))
        for k, bend in box.bends.items():
            w = values[nodes[k].inputs[0]][bend.units] - nodes[k].bend[2]
            signs[4:, bend.first : bend.first + len(w)] = np.where(w >= 0, 1, -1) * (rng.random((4, len(w))) < 0.3)
        pulls, slopes = rng.exponential(0.2, signs.shape) * np.abs(signs), rng.random(signs.shape)
        for k, rows in (
            (len(nodes) - 1, rng.standard_normal((8, nodes[-1].size))),
            (first, sides),
        ):
            used = [np.resize(t, (len(rows), box.units)) for t in (slopes, signs, pulls)]
            worst = max(worst, (box.lower(k, rows, *used) - rows @ values[k]).max())
    return worst


@pytest.mark.parametrize("radius", [1e-4, 0.05, 0.7])
def test_no_input_leaves_the_bounds(nodes: list[Node], radius: float) -> None:
    assert violation(nodes, radius, np.random.default_rng(0)) <= 0


def test_a_point_has_its_value(nodes: list[Node]) -> None:
    x = np.random.default_rng(1).standard_normal(nodes[0].size)
    box, rows = opened(nodes, x, x, 0), np.eye(3)
    none = np.zeros((3, box.units))
    assert np.allclose(box.lower(len(nodes) - 1, rows, none, none, none), evaluated(nodes, x)[-1], rtol=0, atol=1e-9)


def test_wider_boxes_have_wider_intervals(nodes: list[Node]) -> None:
    x, last = np.random.default_rng(2).standard_normal(nodes[0].size), None
    for radius in (0.0, 0.1, 0.4):
        box = opened(nodes, x - radius, x + radius)
        if last is not None:
            assert all((a <= b).all() for a, b in zip(box.low, last.low, strict=True))
            assert all((a >= b).all() for a, b in zip(box.up, last.up, strict=True))
        last = box


def flattened(self: Relaxation, k: int, *given: object, kept: Callable[..., None] = Relaxation._open) -> None:
    kept(self, k, *given)
    self.bends[k] = self.bends[k]._replace(top=self.bends[k].top * 0.9)


def silent(self: Relaxation, k: int, *given: object, kept: Callable[..., None] = Relaxation._open) -> None:
    kept(self, k, *given)
    bend = self.bends[k]
    self.bends[k] = bend._replace(chord=bend.chord * (bend.least == 1), top=0 * bend.top)


def turned(
    self: Relaxation, k: int, a: np.ndarray, slopes: np.ndarray, signs: np.ndarray, pulls: np.ndarray,
    kept: Callable[..., tuple[np.ndarray, ...]] = Relaxation._bent,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    return kept(self, k, a, slopes, signs, -pulls)


@pytest.mark.parametrize(("name", "fault"), [("_open", flattened), ("_open", silent), ("_bent", turned)])
def test_an_unsound_line_would_be_found(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[..., object]
) -> None:
    monkeypatch.setattr(checking.Relaxation, name, fault)
    assert max(violation(nodes, radius, np.random.default_rng(3)) for radius in (0.05, 0.7)) > 1e-6
