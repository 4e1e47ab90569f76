"""Splits and scales, the same for every data set: stratified, seeded, and fitted to the training part alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from robust_plugins.errors import ArgumentError

Array = npt.NDArray[Any]


def stratified_split(y: Array, *, test_fraction: float, seed: int) -> tuple[Array, Array]:
    """Indices of the training and of the test samples, both in random order, for labels `y` of shape (samples,).

    Every class gives the same share to the test part, `test_fraction` of it rounded to the nearest number, but
    keeps at least one sample for training. The same `seed` gives the same split. Raises ArgumentError unless
    0 < test_fraction < 1 and seed >= 0.
    """
    if not (isinstance(test_fraction, float) and 0 < test_fraction < 1):
        raise ArgumentError(
            "test_fraction", test_fraction, accepted="a number between 0 and 1", hint="0.2 keeps a fifth for testing."
        )
    rng = np.random.default_rng(checked_seed(seed))
    train, test = [], []
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        count = min(math.floor(test_fraction * len(members) + 0.5), len(members) - 1)
        test.append(members[:count])
        train.append(members[count:])
    return rng.permutation(np.concatenate(train)), rng.permutation(np.concatenate(test))


def unit_scaled(train: Array, test: Array) -> tuple[Array, Array]:
    """Both tables, shape (samples, features), with every feature scaled by the training part's range to [0, 1].

    Test values outside that range are cut to it, so that [0, 1] is the valid range of both; a feature that is
    constant in the training part becomes 0.
    """
    low, high = train.min(0), train.max(0)
    varies = high > low
    width = np.where(varies, high - low, 1)
    return (train - low) / width, np.clip((test - low) / width, 0, varies)


def checked_seed(seed: int) -> int:
    """`seed`, where it is an integer of at least 0. Raises ArgumentError for anything else."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ArgumentError("seed", repr(seed), accepted="an integer of at least 0", hint="0 is the usual choice.")
    return seed
