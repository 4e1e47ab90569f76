"""Budgets: what they allow, how they are projected onto, and what is refused."""

from __future__ import annotations

from dataclasses import fields
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import robust_plugins as rp
from robust_plugins.errors import ArgumentError
from robust_plugins.poisoning.concrete.batches import inside


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
    assert rp.PoisoningBudget().nothing
    assert rp.PoisoningBudget.privacy(3) == rp.PoisoningBudget.substitution(k=3)
    assert rp.PoisoningBudget.substitution(2).unbounded
    assert not rp.PoisoningBudget.removal(2).unbounded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": -1, "eps": 0.1}, "`points` is -1; accepted: an integer >= 0"),
        ({"points": 1.5, "eps": 0.1}, "`points` is 1.5"),
        ({"points": 1}, "`points` is 1, but eps, how far they may move, is 0.0; accepted: eps above 0"),
        ({"points": 1, "eps": -0.1}, "`eps` is -0.1"),
        ({"points": 1, "eps": float("nan")}, "`eps` is nan"),
        ({"points": 1, "eps": 0.1, "norm": "l3"}, "`norm` is 'l3'; accepted: 'linf', 'l2' or 'l1'"),
        ({"points": 1, "eps": 0.1, "columns": (-1,)}, "`columns`"),
        ({"points": 1, "eps": 0.1, "clip": (1, 0)}, "`clip`"),
        ({"labels": 1, "label_radius": -1.0}, "`label_radius` is -1.0"),
        ({"labels": 1, "label_radius": 0.0}, "`labels` is 1, but label_radius, how far they may move, is 0.0"),
        ({"labels": 1, "label_radius": 0.1, "target": 1}, "`target`"),
        ({"k": 1}, "`k` is 1"),
        ({"change": "substitution"}, "`k` is 0; accepted: an integer of at least 1"),
        ({"change": "substitution", "k": 1, "labels": 1}, "`labels` is 1; accepted: no such field for a substitution"),
        ({"points": True, "eps": 0.1}, "`points` is True"),
        ({"labels": np.float64(1.0)}, "`labels` is np.float64"),
        ({"points": 1, "eps": True}, "`eps` is True"),
        ({"points": 1, "eps": "0.1"}, "`eps` is '0.1'"),
        ({"points": 1, "eps": 0.1, "clip": (0.0, float("nan"))}, "`clip`"),
        ({"points": 1, "eps": 0.1, "clip": 1.0}, "`clip`"),
        ({"points": 1, "eps": 0.1, "columns": (0.0, 1.0)}, "`columns`"),
        ({"points": 1, "eps": 0.1, "columns": (True, 1)}, "`columns`"),
        ({"points": 1, "eps": 0.1, "columns": (False, False)}, "`columns`"),
        ({"points": 1, "eps": 0.1, "columns": "01"}, "`columns`"),
        ({"points": 1, "eps": 0.1, "columns": ()}, "`columns`"),
        ({"points": 1, "eps": 0.1, "columns": torch.tensor([0.0, 1.0])}, "`columns`"),
        ({"labels": 1, "target": 1.0}, "`target` is 1.0"),
        ({"labels": 1, "target": True}, "`target` is True"),
        ({"eps": 0.1}, "`eps` is 0.1; accepted: only with points above 0"),
        ({"labels": 1, "eps": 0.5, "columns": (0,), "paired": True}, "`eps` is 0.5; accepted: only with points"),
        ({"points": 1, "eps": 0.1, "target": 2}, "`target` is 2; accepted: only with labels above 0"),
        ({"points": 1, "eps": 0.1, "paired": True}, "`paired` is True; accepted: only with points and labels"),
        ({"points": 1, "eps": 0.1, "labels": 1, "paired": 1}, "`paired` is 1; accepted: False or True"),
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
    with pytest.raises(ArgumentError, match=r"`columns` is a mask of 2 values; accepted: one of 3"):
        rp.PoisoningBudget(points=1, eps=0.1, columns=[False, True]).radius(torch.zeros(1, 3))
    with pytest.raises(ArgumentError, match="some feature whose eps is above 0"):
        rp.PoisoningBudget(points=1, eps=(0.0, 0.1), columns=(0,)).radius(torch.zeros(1, 2))
    with pytest.raises(ArgumentError, match="`k` is 0"):
        rp.PoisoningBudget.removal(0)


@pytest.mark.parametrize("mask", [
    [False, True], (False, True), torch.tensor([False, True]), np.array([False, True]), [np.False_, np.True_],
], ids=repr)  # fmt: skip
def test_masks_are_masks(mask: Any, unchecked: None) -> None:
    """Read as the indices 0 and 1, a mask would let the fixed feature move."""
    budget = rp.PoisoningBudget(points=1, eps=0.1, columns=mask)
    assert budget.radius(torch.zeros(1, 2)).tolist() == [[0.0, pytest.approx(0.1)]]
    by_index = rp.PoisoningBudget(points=1, eps=0.1, columns=[1])
    assert torch.equal(budget.radius(torch.zeros(1, 2)), by_index.radius(torch.zeros(1, 2)))
    assert budget != rp.PoisoningBudget(points=1, eps=0.1, columns=(0, 1))
    assert budget == rp.PoisoningBudget(points=1, eps=0.1, columns=[False, True])
    assert repr(budget) == repr(rp.PoisoningBudget(points=1, eps=0.1, columns=(False, True)))
    image = rp.PoisoningBudget(points=1, eps=0.1, columns=torch.tensor([[True, False], [False, False]]))
    assert image.radius(torch.zeros(1, 2, 2)).flatten().tolist() == [pytest.approx(0.1), 0.0, 0.0, 0.0]


def test_numbers_of_numpy_are_numbers(unchecked: None) -> None:
    given = rp.PoisoningBudget(points=np.int64(2), eps=np.float32(0.5), columns=np.array([1, 0]), labels=np.uint8(1),
                               target=np.int32(1))  # fmt: skip
    assert given == rp.PoisoningBudget(points=2, eps=0.5, columns=(0, 1), labels=1, target=1)
    assert rp.PoisoningBudget(points=1, eps=np.array([0.5, 0.25])) == rp.PoisoningBudget(points=1, eps=(0.5, 0.25))
    assert rp.PoisoningBudget.removal(np.int64(2)) == rp.PoisoningBudget.removal(2)


VALUES: dict[str, Any] = {
    "points": 1, "eps": 0.5, "norm": "l1", "columns": (1, 2), "clip": (0.0, 1.0), "labels": 1,
    "label_radius": 0.5, "target": 1, "paired": True, "change": "substitution", "k": 1,
}  # fmt: skip
X = torch.tensor([[0.0, 0.75, 0.5], [0.5, 0.5, 0.5], [1.0, 0.25, 0.5]], dtype=torch.float64)
Y = torch.tensor([0.0, 1.0, 2.0])


def _batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Poisoned forms of X and Y that tell any two budgets of VALUES apart."""
    features = [X]
    for move in ([0.5, 0, 0], [0, 0.25, 0], [0, 0.5, 0], [0, 0.25, 0.5], [0, 0.5, 0.5], [9, 9, 9]):
        for rows in ([0], [0, 1]):
            moved = X.clone()
            moved[rows] += torch.tensor(move, dtype=torch.float64)
            features.append(moved)
    labels = [Y]
    for rows in ([0], [2], [0, 2]):
        for value in (1.0, 2.0, 0.25):
            changed = Y.clone()
            changed[rows] = value
            labels.append(changed)
    shorter = [(X[1:], Y[1:]), (torch.cat([X, X[:1]]), torch.cat([Y, Y[:1]]))]
    return [(x, y) for x in features for y in labels] + shorter


@pytest.mark.parametrize("names", [
    pytest.param(names, id="+".join(names)) for n in (1, 2, 3, 4) for names in combinations(VALUES, n)
])  # fmt: skip
def test_every_field_is_used_or_refused(names: tuple[str, ...]) -> None:
    """Taking any given field back changes what the poisoner may do, or leaves a budget that is refused."""
    assert set(VALUES) == {f.name for f in fields(rp.PoisoningBudget)}
    given = {name: VALUES[name] for name in names}
    try:
        budget = rp.PoisoningBudget(**given)
    except ArgumentError:
        return
    allowed = [inside(budget, (X, Y), batch) for batch in _batches()]
    for name in names:
        try:
            without = rp.PoisoningBudget(**{n: v for n, v in given.items() if n != name})
        except ArgumentError:
            continue
        assert allowed != [inside(without, (X, Y), batch) for batch in _batches()], name
