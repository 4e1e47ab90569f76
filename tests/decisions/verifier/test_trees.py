"""`Trees`: their leaves cover the box, more of them never bound worse, and stages of them reach the same answers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from robust_plugins.decisions.verifier import Engine, Halfspaces, verify_property
from robust_plugins.decisions.verifier.clock import Clock
from robust_plugins.decisions.verifier.refinement import GrowingTrees
from robust_plugins.decisions.verifier.root import Root
from robust_plugins.decisions.verifier.search import Search
from robust_plugins.decisions.verifier.trees import Trees, _Leaves
from robust_plugins.decisions.verifier.verify import prepared
from robust_plugins.intervals import Interval


def deep(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    sizes = (3, 8, 8, 6, 2)
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*layers[:-1]).eval()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -1, 1)
    return model


def unfolded(model: nn.Module) -> Root:
    engine, low = Engine(), -torch.ones((1, 3))
    with torch.no_grad():
        form = prepared(model, low).relu
        return Root(form, [Interval(low.double(), -low.double())], engine.ascent, engine.memory, clock=Clock(1e6))


def inputs_of_units(root: Root, points: Tensor) -> Tensor:
    compact, n = root.fast, root.fast.inputs
    state, z = torch.zeros((compact.size, len(points))), torch.zeros((len(compact.offset), len(points)))
    state[:n] = points.t()
    for block in compact.blocks:
        at = slice(block.first - n, block.last - n)
        z[at] = block.matrix @ state[block.start : block.start + block.matrix.shape[1]] + compact.offset[at]
        state[block.first : block.last] = z[at].clamp(min=0)
    return z


def uncovered(root: Root, leaves: int) -> int:
    """How many pairs of a row and an input of the box belong to no leaf of the row's tree."""
    rows, const, _ = root.specified(torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]).double(), torch.zeros(3))
    grown, about = Trees(leaves=leaves).grow(root.fast, rows.float(), const.float() - 30, Clock(1e6))
    z = inputs_of_units(root, torch.rand((500, 3), generator=torch.Generator().manual_seed(0)) * 2 - 1)
    holds = (grown.signs.unsqueeze(2) * z.unsqueeze(1) >= -1e-6).all(0)
    return sum(int((~holds[about == row].any(0)).sum()) for row in range(3))


def test_leaves_cover_the_box() -> None:
    root = unfolded(deep())
    for leaves in (1, 2, 20):
        assert uncovered(root, leaves) == 0


def test_a_leaf_that_is_overwritten_is_seen(monkeypatch) -> None:
    right = _Leaves.replace

    def wrong(self, at, halves, bounds, about, choice):
        right(self, (at + 1) % len(self), halves, bounds, about, choice)

    monkeypatch.setattr(_Leaves, "replace", wrong)
    assert uncovered(unfolded(deep()), 20) > 0


def test_more_leaves_bound_no_worse() -> None:
    root, widths = unfolded(deep()), []
    for leaves in (2, 8, 24):
        finer = Root(
            root.network, root.values, root.ascent, root.memory, clock=Clock(1e6), trees=Trees(leaves=leaves)
        )  # fmt: skip
        widths.append(sum(float((value.upper - value.lower).sum()) for value in finer.values))
    assert widths[0] >= widths[1] >= widths[2]
    assert widths[2] < 0.95 * widths[0]


@pytest.mark.parametrize("most", [0, 16])
def test_stages_end_with_the_same_answers(most, monkeypatch) -> None:
    """With stages fewer domains are searched, and what is reached is found."""
    model = deep(1)
    axis = torch.linspace(-1, 1, 15)
    with torch.no_grad():
        least = (model(torch.cartesian_prod(axis, axis, axis)) @ torch.tensor([1.0, -1.0])).min()
    engine = Engine(attack=lambda *_: None, refinement=GrowingTrees(most=most, search=1e-9), few=0)
    searched, run = [], Search.run

    def counted(self, limit=None):
        if self not in searched:
            searched.append(self)
        return run(self, limit)

    monkeypatch.setattr(Search, "run", counted)
    rows = torch.tensor([[1.0, -1.0]])
    for shift, answer in ((0.4, "unsat"), (-1e-3, "sat")):
        searched.clear()
        unsafe = [Halfspaces(rows, (shift - least).reshape(1))]
        assert verify_property(model, -torch.ones(3), torch.ones(3), unsafe, engine=engine).answer == answer
        assert (len(searched) > 1) == (most > 0)
