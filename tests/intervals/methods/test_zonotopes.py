"""Zonotopes hold what every node computes, and spare `crown` rows without making its bounds looser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.image_networks import image_network
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robust_plugins.intervals import Interval, Network, crown, trace
from robust_plugins.intervals.methods import crown as module
from robust_plugins.intervals.methods import zonotopes
from robust_plugins.intervals.methods.relaxation import CHUNK, MEMORY, Relaxation
from robust_plugins.intervals.methods.zonotopes import Zonotopes

KINDS = ("plain", "residual", "pooled", "grouped", "crossed")


def around(x: Tensor, eps: float) -> Interval:
    return Interval(x - eps, x + eps)


def found(network: Network, values: Sequence[Interval]) -> list[Interval]:
    """The intervals of all nodes by zonotopes alone."""
    forward = Zonotopes(network, values, memory=MEMORY, credit=torch.inf)
    none = torch.zeros(len(values[0]), dtype=torch.int64)
    assert [len(part) for part in forward.parts(len(values) - 1, none)] == [len(none)]
    assert bool(forward.pays(len(values) - 1, none).all())
    return [forward.interval(index) for index in range(len(values))]


def reached(network: Network, box: Interval) -> list[Tensor]:
    """What the nodes are at corners and uniform points, and where ascent on one entry of one node leads.

    For each node (points, batch, *shape).
    """
    draws = 12 * len(network.nodes)
    center, radius = (t.repeat(draws, *[1] * (t.dim() - 1)) for t in (box.center, box.radius))
    start = radius * torch.randn_like(radius).sign()
    z = (
        center
        + torch.where(torch.rand(len(radius), *[1] * (radius.dim() - 1)) < 0.3, torch.rand_like(start), 1) * start
    )
    for _ in range(3):
        z = z.detach().requires_grad_()
        values = [v.lower.flatten(1) for v in network.forward(Interval.point(z))]
        chosen = torch.stack([v[torch.arange(len(v)), torch.randint(v.shape[1], (len(v),))] for v in values], 1)
        node = torch.arange(draws).repeat_interleave(len(box.center)) % len(values)
        (grad,) = torch.autograd.grad((chosen.gather(1, node.unsqueeze(1)) * torch.randn(len(z), 1).sign()).sum(), z)
        z = torch.cat([z[: len(z) // 3], (center + radius * grad.sign())[len(z) // 3 :]])
    with torch.no_grad():
        return [v.lower.unflatten(0, (draws, -1)) for v in network.forward(Interval.point(z.detach()))]


def outside(intervals: Sequence[Interval], points: Sequence[Tensor]) -> float:
    """How far the farthest value lies outside, relative to the largest of its node."""
    return max(
        float((torch.maximum(i.lower - v, v - i.upper) / i.magnitude.max()).max())
        for i, v in zip(intervals, points, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [1e-4, 0.1])
def test_what_every_node_computes_lies_inside(kind: str, eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = image_network(kind)
    network, box = trace(model, x), around(x, eps)
    with torch.no_grad():
        intervals = found(network, network.forward(box))
    points = reached(network, box)
    assert outside(intervals, points) < 1e-12
    strip = zonotopes.strip

    def narrow(activation: Any, z: Interval) -> tuple[Tensor, Tensor, Tensor]:
        slope, low, up = strip(activation, z)
        return slope, low + (up - low) / 4, up - (up - low) / 4

    monkeypatch.setattr(zonotopes, "strip", narrow)
    if eps > 0.01 and kind != "pooled":  # there pooling averages too much for such points to come close
        with torch.no_grad():
            assert outside(found(network, network.forward(box)), points) > 1e-6


def test_a_network_that_is_linear_over_the_box_is_exact_and_larger_boxes_have_larger_bounds() -> None:
    model, x = image_network("residual")
    network = trace(model, x)
    with torch.no_grad():
        widths = []
        for eps in (1e-9, 0.01, 0.02):
            values = network.forward(around(x, eps))
            widths.append(found(network, values)[-1].width)
            if eps < 1e-6:
                exact = Relaxation(network, values).bounds(len(values) - 1)
                torch.testing.assert_close(widths[0], exact.width, rtol=1e-5, atol=0)
    assert bool((widths[1] < widths[2]).all())


def test_rows_that_are_spared_leave_the_bounds_of_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = image_network("residual")
    network, box = trace(model, x), around(x, 0.01)
    rows: list[int] = []
    sharpened = Relaxation.sharpened

    def counted(self: Relaxation, node: int, needed: Tensor | None = None) -> Interval:
        rows.append(0 if needed is None else int(needed.sum()))
        return sharpened(self, node, needed)

    monkeypatch.setattr(Relaxation, "sharpened", counted)
    with torch.no_grad():
        plain, before = crown(network, box, entries="bent"), sum(rows)
        rows.clear()
        monkeypatch.setattr(module, "Zonotopes", lambda *a, **k: Zonotopes(*a, credit=torch.inf, **k))
        spared, after = crown(network, box, entries="bent"), sum(rows)
        # Where the memory is enough for the zonotopes of one sample at a time:
        one = CHUNK + 8 * 4 * (x[0].numel() + 400) * 400
        parts = crown(network, box, entries="bent", memory=one)
    assert after < 0.8 * before
    size = float(plain[-1].magnitude.max())
    points = reached(network, box)
    for other in (spared, parts):
        assert bool((other[-1].lower > plain[-1].lower - 1e-3 * size).all())
        assert bool((other[-1].upper < plain[-1].upper + 1e-3 * size).all())
        assert outside(other, points) < 1e-12
    assert all(torch.allclose(i.lower, j.lower, atol=1e-9 * size) for i, j in zip(spared, parts, strict=True))


def deep() -> nn.Sequential:
    """A network in which interval propagation finds nearly all neurons unstable."""
    torch.manual_seed(0)
    wide = [layer for _ in range(6) for layer in (nn.Linear(80, 80), nn.ReLU())]
    model = nn.Sequential(nn.Linear(6, 80), nn.ReLU(), *wide, nn.Linear(80, 3)).double()
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.weight.data *= 3
    return model


@pytest.mark.parametrize(("eps", "starts"), [(1e-4, True), (3.0, False)])
def test_the_pass_forward_is_made_where_rows_were_spent_in_vain(
    eps: float, starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = deep()
    x = torch.randn(2, 6, dtype=torch.float64)
    made: list[int] = []
    interval = Zonotopes.interval

    def noted(self: Zonotopes, node: int) -> Interval:
        made.append(node)
        return interval(self, node)

    monkeypatch.setattr(Zonotopes, "interval", noted)
    with torch.no_grad():
        values = crown(trace(model, x), around(x, eps), entries="bent")
    assert bool(made) == starts
    assert outside(values, reached(trace(model, x), around(x, eps))) < 1e-12


@pytest.mark.parametrize("forced", [False, True])
def test_a_batch_costs_no_more_than_its_samples(forced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = image_network("residual", torch.float32)
    x = torch.cat([x, torch.rand_like(x)])
    network, box = trace(model, x), around(x, 0.01)

    def work(boxes: Sequence[Interval]) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            for part in boxes:
                crown(network, part, entries="bent")
        return counter.get_total_flops()

    if forced:
        monkeypatch.setattr(module, "Zonotopes", lambda *a, **k: Zonotopes(*a, credit=torch.inf, **k))
    alone, together = work([box[i : i + 1] for i in range(4)]), work([box])
    # On whole images all samples have as many rows as the one with the most, which costs some of these few a third.
    assert 0 < together < 4 / 3 * alone


@pytest.mark.parametrize("kind", ["deep", "residual"])
@pytest.mark.parametrize("memory", [MEMORY, CHUNK + 2**20])
def test_bounds_of_a_sample_do_not_depend_on_its_batch(kind: str, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "deep":
        model, x = deep(), torch.randn(6, 6, dtype=torch.float64)
    else:
        model, x = image_network("residual")
        x = torch.cat([x, torch.rand_like(x), torch.rand_like(x)])[:6]
    network = trace(model, x)
    radius = torch.logspace(-4, 0.5, 6, dtype=x.dtype).view(-1, *[1] * (x.dim() - 1))
    box = Interval(x - radius, x + radius)
    groups: list[int] = []
    parts = Zonotopes.parts

    def noted(self: Zonotopes, node: int, wanted: Tensor) -> list[Tensor]:
        found = parts(self, node, wanted)
        groups.append(len(found))
        return found

    monkeypatch.setattr(Zonotopes, "parts", noted)
    with torch.no_grad():
        together = crown(network, box, entries="bent", memory=memory)
        mixed = max(groups) > 1
        for i in range(6):
            alone = crown(network, box[i : i + 1], entries="bent", memory=memory)
            for one, all_of_them in zip(alone, together, strict=True):
                room = 1e-9 * float(one.magnitude.max())
                assert torch.allclose(one.lower, all_of_them.lower[i : i + 1], rtol=0, atol=room)
                assert torch.allclose(one.upper, all_of_them.upper[i : i + 1], rtol=0, atol=room)
    assert mixed or kind != "deep"
