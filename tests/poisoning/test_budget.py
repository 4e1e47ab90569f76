"""Budgets: what they allow, how they are projected onto, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import robust_plugins as rp
from robust_plugins.errors import ArgumentError


@given(norm=st.sampled_from(["linf", "l2", "l1"]), seed=st.integers(0, 10**6))
def test_projections_lie_in_the_set_and_keep_what_is_inside(norm: str, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x, far = torch.rand((2, 5, 3, 2), generator=g, dtype=torch.float64)
    eps = torch.tensor([[0.1, 0.2], [0.0, 0.5], [0.3, 0.1]])
    budget = rp.PoisoningBudget(points=1, eps=eps, norm=norm, columns=(0, 3, 4), clip=(0, 1))
    z = budget.project(10 * far - 5, x)
    step = ((z - x) / budget.radius(x)).nan_to_num(0.0).flatten(1)
    size = {"linf": step.abs().amax(1), "l2": step.norm(dim=1), "l1": step.abs().sum(1)}[norm]
    assert bool((size <= 1 + 1e-9).all())
    assert bool(((z >= 0) & (z <= 1)).all())
    assert bool((z - x).flatten(1)[:, [1, 2, 5]].eq(0).all())
    assert bool(budget.box(x).contains(z).all())
    assert torch.allclose(budget.project(z, x), z, atol=1e-12)


def test_boxes_keep_samples_outside_the_valid_range() -> None:
    box = rp.PoisoningBudget(points=1, eps=0.1, clip=(0, 1)).box(torch.tensor([[-0.5, 0.95]]))
    assert torch.allclose(box.lower, torch.tensor([[-0.5, 0.85]]))
    assert torch.allclose(box.upper, torch.tensor([[0.0, 1.0]]))


def test_budgets_are_plain_data() -> None:
    tensors = rp.PoisoningBudget(points=2, eps=torch.tensor([0.1, 0.2], dtype=torch.float64))
    assert tensors == rp.PoisoningBudget(points=2, eps=[0.1, 0.2])
    assert hash(tensors) == hash(rp.PoisoningBudget(points=2, eps=(0.1, 0.2)))
    assert tensors.largest == 0.2
    assert rp.PoisoningBudget(points=1, eps=torch.tensor(0.25)) == rp.PoisoningBudget(points=1, eps=0.25)
    assert rp.PoisoningBudget(points=0, eps=0.1).nothing
    assert rp.PoisoningBudget().nothing
    assert rp.PoisoningBudget.privacy(3) == rp.PoisoningBudget.substitution(k=3)
    assert rp.PoisoningBudget.substitution(2).unbounded
    assert not rp.PoisoningBudget.removal(2).unbounded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": -1, "eps": 0.1}, "`points` is -1; accepted: an integer >= 0"),
        ({"points": 1.5, "eps": 0.1}, "`points` is 1.5"),
        ({"points": 1}, "`eps` is 0.0; accepted: above 0"),
        ({"points": 1, "eps": -0.1}, "`eps` is -0.1"),
        ({"points": 1, "eps": float("nan")}, "`eps` is nan"),
        ({"points": 1, "eps": 0.1, "norm": "l3"}, "`norm` is 'l3'; accepted: 'linf', 'l2' or 'l1'"),
        ({"points": 1, "eps": 0.1, "columns": (-1,)}, "`columns`"),
        ({"points": 1, "eps": 0.1, "clip": (1, 0)}, "`clip`"),
        ({"labels": 1, "label_radius": -1.0}, "`label_radius` is -1.0"),
        ({"labels": 1, "label_radius": 0.0}, "`label_radius` is 0.0; accepted: above 0"),
        ({"labels": 1, "label_radius": 0.1, "target": 1}, "`target`"),
        ({"k": 1}, "`k` is 1"),
        ({"change": "substitution", "k": 1, "labels": 1}, "`k` is 1"),
        ({"change": "theft", "k": 1}, "`change` is 'theft'"),
    ],
)
def test_wrong_budgets_are_named(arguments: dict[str, object], message: str, unchecked: None) -> None:
    with pytest.raises(ArgumentError, match=message):
        rp.PoisoningBudget(**arguments)


def test_sizes_are_checked_against_the_data() -> None:
    with pytest.raises(ArgumentError, match=r"`eps` is 2 values for 3 features"):
        rp.PoisoningBudget(points=1, eps=[0.1, 0.1]).radius(torch.zeros(1, 3))
    with pytest.raises(ArgumentError, match=r"`columns` is 3; accepted: below 3"):
        rp.PoisoningBudget(points=1, eps=0.1, columns=(0, 3)).radius(torch.zeros(1, 3))
    with pytest.raises(ArgumentError, match="`k` is 0"):
        rp.PoisoningBudget.removal(0)
