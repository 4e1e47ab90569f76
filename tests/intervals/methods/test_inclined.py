"""Rows of which one end alone is tight hold at both ends, with and without outward rounding."""

from __future__ import annotations

import pytest
import torch
from support.image_networks import KINDS, image_network
from torch import Tensor, nn

from robust_plugins.intervals import Interval, Network, Relaxation, rounding, trace
from robust_plugins.intervals.methods import substitution
from robust_plugins.intervals.methods.crown import crown


def _case(kind: str, dtype: torch.dtype, eps: float) -> tuple[Network, Interval]:
    if kind == "dense":
        torch.manual_seed(0)
        model: nn.Module = nn.Sequential(
            nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9),
            nn.LeakyReLU(), nn.Linear(9, 3),
        )  # fmt: skip
        x = torch.rand(3, 4)
    else:
        model, x = image_network(kind)
    x = x.to(dtype)
    return trace(model.to(dtype).eval(), x), Interval(x - eps, x + eps)


def _points(network: Network, box: Interval) -> list[list[Tensor]]:
    """What the nodes compute at the box's center, at corners, and at points where single entries are extreme."""
    draw, found = torch.Generator().manual_seed(1), []
    for k in range(8):
        t = 2 * torch.rand(box.shape, generator=draw, dtype=box.dtype) - 1
        z = box.center + box.radius * (t.sign() if k % 2 else t if k else 0 * t)
        values = [Interval.point(torch.minimum(torch.maximum(z, box.lower), box.upper))]
        for index in range(1, len(network.nodes)):
            values.append(network.step(index, values))
        found.append([v.lower for v in values])
    return found


def _misses(kind: str, eps: float, dtype: torch.dtype = torch.float64, *, outward: bool = False) -> int:
    """How many values at points lie outside, and how many tight ends are not as tight as both are by `sharpened`."""
    network, box = _case(kind, dtype, eps)
    missed, draw = 0, torch.Generator().manual_seed(2)
    with torch.no_grad():
        points = _points(network, box)
        with rounding.outward(outward):
            values = network.forward(box)
            for index in range(1, len(network.nodes)):
                readers = [i for i, node in enumerate(network.nodes) if index in node.inputs]
                if all(network.rules[i].affine for i in readers):
                    continue
                shown = values[: index + 1]
                relaxation = Relaxation(network, shown)
                positive = torch.rand(shown[-1].shape, generator=draw) < 0.5
                needed = torch.rand(shown[-1].shape, generator=draw) < 0.8
                found, both = relaxation.inclined(index, needed, positive), relaxation.sharpened(index, needed)
                apart = torch.where(positive, both.lower - found.lower, found.upper - both.upper)
                missed += int((apart > 1e-5 * (1 + both.magnitude)).sum())
                missed += sum(int((~found.contains(p[index], tolerance=0 if outward else 1e-9)).sum()) for p in points)
    return missed


@pytest.mark.parametrize("kind", ["dense", *KINDS])
def test_both_ends_hold_and_one_is_tight(kind: str) -> None:
    for eps in (1e-4, 0.2 if kind == "dense" else 0.05):
        assert _misses(kind, eps) == 0
    assert _misses(kind, 1e-5, torch.float32, outward=True) == 0


@pytest.mark.parametrize("kind", ["dense", "residual"])
def test_a_forgotten_gap_is_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gap = substitution._gap
    monkeypatch.setattr(substitution, "_gap", lambda *a: None if (g := gap(*a)) is None else torch.zeros_like(g))
    assert _misses(kind, 0.2 if kind == "dense" else 0.05)


def test_crown_looks_at_one_end_first_where_it_rounds_outward(monkeypatch: pytest.MonkeyPatch) -> None:
    network, box = _case("residual", torch.float32, 1e-3)
    asked: list[int] = []
    inclined = Relaxation.inclined

    def counted(self: Relaxation, node: int, needed: Tensor, positive: Tensor) -> Interval:
        asked.append(int(needed.sum()))
        return inclined(self, node, needed, positive)

    monkeypatch.setattr(Relaxation, "inclined", counted)
    monkeypatch.setattr("robust_plugins.intervals.methods.crown.MOSTLY", 1.0)
    with torch.no_grad(), rounding.outward():
        values = crown(network, box, entries="bent")
        assert sum(asked)
        monkeypatch.setattr("robust_plugins.intervals.methods.crown.MOSTLY", -1.0)
        both = crown(network, box, entries="bent")
    for point in _points(network, box):
        assert all(bool(v.contains(p).all()) for v, p in zip(values, point, strict=True))
    assert bool((values[-1].width <= 1.05 * both[-1].width).all())
