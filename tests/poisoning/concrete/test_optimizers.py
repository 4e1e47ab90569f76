"""Interval optimizers hold what torch's optimizers do, for every choice of gradients in their intervals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import robust_plugins as rp
from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import Interval, rounding
from robust_plugins.poisoning.concrete import optimizers
from robust_plugins.poisoning.concrete.optimizers import Optimizer

OPTIMIZERS = [
    rp.SGD(lr=0.3),
    rp.SGD(lr=0.3, decay=0.6, min_lr=0.15),
    rp.SGD(lr=0.3, milestones=(2, 3), factor=0.5),
    rp.SGD(lr=0.5, weight_decay=0.4),
    rp.SGD(lr=1.5, weight_decay=1.0),
    rp.SGD(lr=0.3, momentum=0.9),
    rp.SGD(lr=0.5, momentum=0.9, weight_decay=1.5),  # underdamped: theta swings
    rp.SGD(lr=0.3, momentum=0.8, nesterov=True, weight_decay=0.1),
    rp.Adam(lr=0.1),
    rp.Adam(lr=0.1, betas=(0.5, 0.6), eps=1e-2, weight_decay=0.3),
    rp.AdamW(lr=0.1, weight_decay=0.2),
]
ENTRIES = 200


def trajectories(optimizer: Optimizer, gradients: list[Interval], kind: str, g: torch.Generator) -> list[torch.Tensor]:
    """Parameters after each step of torch's optimizer, for gradients drawn from their intervals."""
    theta = torch.linspace(-1, 1, ENTRIES, dtype=gradients[0].dtype).requires_grad_()
    torchs = optimizer.torch([theta])
    found = []
    for t, interval in enumerate(gradients):
        share = torch.rand(ENTRIES, generator=g, dtype=theta.dtype)
        if kind == "corner":
            share = share.round()
        elif kind == "alternating":
            share = torch.full_like(share, t % 2)
        elif kind != "uniform":
            share = torch.full_like(share, float(kind))
        theta.grad = torch.where(share == 1, interval.upper, interval.lower + share * interval.width)
        for group in torchs.param_groups:
            group["lr"] = optimizer.learning_rate(t)
        torchs.step()
        found.append(theta.detach().clone())
    return found


def bounds(optimizer: Optimizer, gradients: list[Interval]) -> list[Interval]:
    value = Interval.point(torch.linspace(-1, 1, ENTRIES, dtype=gradients[0].dtype))
    state = optimizer.start(value)
    found = []
    for t, interval in enumerate(gradients):
        value, state = optimizer.update(t, value, interval, state)
        found.append(value)
    return found


def drawn(steps: int, width: float, g: torch.Generator, dtype: torch.dtype = torch.float64) -> list[Interval]:
    found = []
    for _ in range(steps):
        center = torch.randn(ENTRIES, generator=g, dtype=dtype) * torch.logspace(-4, 1, ENTRIES, dtype=dtype)
        radius = width * torch.rand(ENTRIES, generator=g, dtype=dtype) * center.abs()
        found.append(Interval(center - radius, center + radius))
    return found


def excess(optimizer: Optimizer, *, steps: int, width: float, seed: int, dtype: torch.dtype = torch.float64) -> float:
    """By how much torch's trajectories leave the bounds; at most 0 where none does."""
    g = torch.Generator().manual_seed(seed)
    gradients = drawn(steps, width, g, dtype)
    inside = bounds(optimizer, gradients)
    worst = -torch.inf
    for kind in ("uniform", "corner", "alternating", "0", "1"):
        for box, theta in zip(inside, trajectories(optimizer, gradients, kind, g), strict=True):
            worst = max(worst, torch.maximum(box.lower - theta, theta - box.upper).max().item())
    return worst


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@settings(max_examples=12)
@given(width=st.sampled_from([0.0, 0.01, 0.5, 3.0]), seed=st.integers(0, 10**6))
def test_torchs_trajectories_stay_inside(optimizer: Optimizer, width: float, seed: int) -> None:
    assert excess(optimizer, steps=6, width=width, seed=seed) <= 1e-12


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_outward_rounding_they_stay_inside_to_the_last_bit(optimizer: Optimizer, dtype: torch.dtype) -> None:
    with rounding.outward():
        for width in (0.0, 1e-6, 0.3):
            assert excess(optimizer, steps=8, width=width, seed=1, dtype=dtype) <= 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
def test_points_stay_points_to_rounding_and_wider_gradients_give_wider_bounds(optimizer: Optimizer) -> None:
    g = torch.Generator().manual_seed(0)
    gradients = drawn(5, 0.2, g)
    points = bounds(optimizer, [Interval.point(i.center) for i in gradients])
    assert max(p.width.max().item() for p in points) <= 1e-12
    wide = bounds(optimizer, [Interval(i.lower - 0.01, i.upper + 0.01) for i in gradients])
    for narrow, wider in zip(bounds(optimizer, gradients), wide, strict=True):
        # On pieces that lie elsewhere a quotient is bounded a little differently.
        slack = 2e-2 * wider.width if isinstance(optimizer, rp.Adam) else 1e-12
        assert bool((wider.lower <= narrow.lower + slack).all() and (wider.upper >= narrow.upper - slack).all())


def test_weight_decay_contracts_the_interval() -> None:
    optimizer = rp.SGD(lr=0.5, weight_decay=0.4)
    value = Interval(torch.tensor([-1.0]), torch.tensor([3.0]))
    after, _ = optimizer.update(0, value, Interval.point(torch.zeros(1)), {})
    assert after.width.item() == pytest.approx(0.8 * 4)


def test_adams_first_step_is_nearly_exact() -> None:
    """It is `g / (|g| + eps)`, of which the bounds are the ends' values where g keeps its sign."""
    optimizer = rp.Adam(lr=1.0)
    gradient = Interval(torch.tensor([0.5, -2.0, -1.0]).double(), torch.tensor([4.0, -1.0, 1.0]).double())
    zero = Interval.point(torch.zeros(3).double())
    after, _ = optimizer.update(0, zero, gradient, optimizer.start(zero))
    assert torch.allclose(after.upper, torch.tensor([-0.8, 1.0, 1.0]).double(), atol=0.2)
    assert torch.allclose(after.lower, torch.tensor([-1.0, 0.8, -1.0]).double(), atol=0.2)


@pytest.mark.parametrize(
    ("fault", "optimizer"),
    [("theta's part a point", OPTIMIZERS[6]), ("point buffer", OPTIMIZERS[5]), ("eps of the wrong end", OPTIMIZERS[9])],
)
def test_planted_faults_are_found(fault: str, optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert excess(optimizer, steps=6, width=0.5, seed=0) <= 1e-12
    if fault == "eps of the wrong end":
        square = optimizers._square
        monkeypatch.setattr(optimizers, "_square", lambda x: Interval.point(square(x).lower))
    else:
        update = rp.SGD.update

        def unsound(self, t, value, gradient, state):  # the momentum of the centers alone, or without theta's part
            after, new = update(self, t, value, gradient, state)
            buffer = new["momentum_buffer"]
            if fault == "point buffer":
                return after, {"momentum_buffer": Interval.point(buffer.center)}
            radius = self.weight_decay * value.radius
            return after, {"momentum_buffer": Interval(buffer.lower + radius, buffer.upper - radius)}

        monkeypatch.setattr(rp.SGD, "update", unsound)
    assert excess(optimizer, steps=6, width=0.5, seed=0) > 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rp.SGD(lr=0.0), "`lr` is 0.0"),
        (lambda: rp.SGD(lr=0.1, nesterov=True), "`nesterov` is True; accepted: False without momentum"),
        (lambda: rp.SGD(lr=0.1, momentum=-1), "`momentum` is -1"),
        (lambda: rp.SGD(lr=0.1, milestones=(3, 1)), "`milestones`"),
        (lambda: rp.Adam(lr=0.1, betas=(1.0, 0.9)), "`betas`"),
        (lambda: rp.Adam(lr=0.1, eps=0), "`eps` is 0"),
        (lambda: rp.AdamW(lr=0.1, weight_decay=-0.1), "`weight_decay`"),
    ],
)
def test_wrong_parameters_are_named(make, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


def test_schedule() -> None:
    optimizer = rp.SGD(lr=2.0, decay=0.6, min_lr=0.5, milestones=(3, 5))
    assert [optimizer.learning_rate(t) for t in (0, 1, 2)] == [2.0, 2.0 / 1.6, 2.0 / 2.2]
    assert optimizer.learning_rate(3) == pytest.approx(0.1 * 2.0 / 2.8)
    assert optimizer.learning_rate(5) == pytest.approx(0.01 * 0.5)
