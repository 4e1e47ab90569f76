from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import robust_plugins as rp
from robust_plugins.data.splits import stratified_split, unit_scaled


def parts(**changed: Any) -> dict[str, Any]:
    return {
        "name": "made up",
        "x_train": torch.rand(4, 3),
        "y_train": torch.tensor([0, 1, 0, 1]),
        "x_test": torch.rand(2, 3),
        "y_test": torch.tensor([0, 1]),
        "classes": 2,
        "clip": (0.0, 1.0),
    } | changed


def test_representation_is_short() -> None:
    assert repr(rp.Dataset(**parts())) == (
        "Dataset('made up', 4 + 2 samples of shape (3,), 2 classes, clip=(0.0, 1.0))"
    )


def test_an_empty_test_part_is_fine() -> None:
    assert len(rp.Dataset(**parts(x_test=torch.rand(0, 3), y_test=torch.zeros(0, dtype=torch.int64))).y_test) == 0


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"y_test": torch.tensor([0, 2])}, "y_test"),
        ({"y_train": torch.tensor([0, 1, -1, 1])}, "y_train"),
        ({"x_test": torch.full((2, 3), 1.5)}, "x_test"),
        ({"x_train": torch.full((4, 3), torch.nan)}, "x_train"),
    ],
)
def test_parts_that_do_not_fit(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(rp.ArgumentError, match=f"`{named}`"):
        rp.Dataset(**parts(**changed))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("changed", [{"x_test": torch.rand(2, 4)}, {"y_test": torch.tensor([0])}])
def test_shapes_that_do_not_fit(changed: dict[str, Any]) -> None:
    with pytest.raises(rp.ArgumentError, match="x_test, y_test"):
        rp.Dataset(**parts(**changed))


labels = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)


@given(y=labels, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_split_is_a_stratified_partition(y: np.ndarray, fraction: float, seed: int) -> None:
    train, test = stratified_split(y, test_fraction=fraction, seed=seed)
    assert sorted([*train, *test]) == list(range(len(y)))
    for label in np.unique(y):
        total, tested = int((y == label).sum()), int((y[test] == label).sum())
        assert tested < total
        assert tested == min(total - 1, int(fraction * total + 0.5))
    again = stratified_split(y, test_fraction=fraction, seed=seed)
    assert np.array_equal(train, again[0])


def test_scale_of_constant_and_outlying_features() -> None:
    train, test = np.array([[0.0, 7.0], [4.0, 7.0]]), np.array([[2.0, 9.0], [8.0, 7.0], [-1.0, 1.0]])
    scaled, cut = unit_scaled(train, test)
    assert scaled.tolist() == [[0, 0], [1, 0]]
    assert cut.tolist() == [[0.5, 0], [1, 0], [0, 0]]
