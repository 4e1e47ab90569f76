"""`verify_property`: answers against enumeration, for every operator that can be split, and what it refuses."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.decisions.verifier import Halfspaces, verify_property


class Calls(nn.Module):
    """Two linear layers with a function between them."""

    def __init__(self, function, inputs: int = 2, width: int = 8, after: int | None = None) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(inputs, width), function
        self.last = nn.Linear(after or width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


OPERATORS = {
    "relu": (F.relu, 8),
    "leaky relu": (lambda z: F.leaky_relu(z, 0.1), 8),
    "prelu": (nn.PReLU(8), 8),
    "abs": (torch.abs, 8),
    "clamp": (lambda z: z.clamp(-0.3, 0.4), 8),
    "clamp from below": (lambda z: z.clamp(min=-0.2), 8),
    "hardtanh": (nn.Hardtanh(-0.5, 0.3), 8),
    "relu6": (F.relu6, 8),
    "maximum": (lambda z: torch.maximum(z[:, :4], z[:, 4:]), 4),
    "minimum": (lambda z: torch.minimum(z[:, :4], 0.5 * z[:, 4:]), 4),
    "max pool": (lambda z: F.max_pool2d(z.reshape(-1, 2, 2, 2), 2).flatten(1), 2),
    "overlapping padded max pool": (lambda z: F.max_pool1d(z.reshape(-1, 1, 8), 3, 2, 1).flatten(1), 4),
    "residual": (lambda z: F.relu(z) + F.relu(0.5 - z), 8),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name) -> None:
    """Just below what a grid finds the answer is unsat, and above it sat, for each operator that is split."""
    function, after = OPERATORS[name]
    torch.manual_seed(1)
    model = Calls(function, after=after).eval()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -1, 1)
    low, up = torch.tensor([-1.0, -0.5]), torch.tensor([0.7, 1.0])
    steps = torch.linspace(0, 1, 201)
    grid = low + (up - low) * torch.tensor(list(product(steps.tolist(), steps.tolist())))
    with torch.no_grad():
        gap = (model(grid) @ torch.tensor([1.0, -1.0])).min().item()
    for shift, answer in ((0.05, "unsat"), (-1e-3, "sat")):
        weights, offsets = torch.tensor([[1.0, -1.0]]), torch.tensor([shift - gap])
        found = verify_property(model, low, up, [Halfspaces(weights, offsets)], timeout=30)
        assert found.answer == answer, shift
        if found.witness is not None:
            assert bool(((found.witness >= low) & (found.witness <= up)).all())
            assert (weights @ model(found.witness.unsqueeze(0))[0] + offsets).item() <= 0


def test_conjunctions_and_disjunctions() -> None:
    """z = (x, -x) on [-1, 1]: each row alone is reached, both together only at zero, and with an offset nowhere."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    for p, value in zip(
        model.parameters(),
        (torch.tensor([[1.0], [-1.0]]), torch.zeros(2), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.zeros(2)),
        strict=True,
    ):
        p.data.copy_(value)
    low, up = -torch.ones(1), torch.ones(1)
    both = torch.eye(2)
    assert verify_property(model, low, up, [Halfspaces(both, torch.full((2,), 0.01))]).answer == "unsat"
    assert verify_property(model, low, up, [Halfspaces(both, torch.full((2,), -0.01))]).answer == "sat"
    unreached = Halfspaces(both[:1], torch.full((1,), 1.01))
    assert verify_property(model, low, up, [unreached]).answer == "unsat"
    found = verify_property(model, low, up, [unreached, Halfspaces(both[1:], torch.full((1,), 0.99))])
    assert found.answer == "sat"
    assert found.witness is not None
    assert found.witness.item() >= 0.99


def test_constants_of_a_box_that_is_a_point() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.rand(2)
    value = model(x.unsqueeze(0))[0, 0].item()
    for shift, answer in ((1e-3, "unsat"), (-1e-3, "sat")):
        rows = Halfspaces(torch.tensor([[1.0, 0.0]]), torch.tensor([shift - value]))
        assert verify_property(model, x, x, [rows]).answer == answer


class Added(nn.Module):
    """A constant that is no parameter, added to its input."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.value


def test_refusals() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval()
    low, up, rows = torch.zeros(2), torch.ones(2), Halfspaces(torch.eye(2), torch.zeros(2))
    with pytest.raises(rp.ArgumentError, match="lower"):
        verify_property(model, up, low, [rows])
    with pytest.raises(rp.ArgumentError, match="unsafe"):
        verify_property(model, low, up, [])
    with pytest.raises(rp.ArgumentError, match=r"unsafe\[0\]"):
        verify_property(model, low, up, [Halfspaces(torch.eye(3), torch.zeros(3))])
    with pytest.raises(rp.ArgumentError, match="upper"):
        verify_property(model, low, up.double(), [rows])
    for value in (torch.inf, torch.nan):
        broken = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
        broken[2].weight.data[0, 0] = value
        with pytest.raises(rp.ArgumentError, match=r"`model`.*2\.weight"):
            verify_property(broken, low, up, [rows])
        with pytest.raises(rp.ArgumentError, match=r"`model`.*returns at `lower`"):
            verify_property(Added(value), low, up, [rows])
    answer = verify_property(nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()).eval(), low, up, [rows]).answer
    assert answer in ("unsat", "sat")
