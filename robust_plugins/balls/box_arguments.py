"""The arguments of a `Box`: checked, as plain nested numbers, or one sentence that says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust_plugins.errors import ArgumentError


def refuse_row(eps: object) -> None:
    """Raises ArgumentError for radii in a row, which could as well be one for each feature."""
    row = isinstance(eps, list) or (isinstance(eps, Tensor | np.ndarray) and eps.ndim == 1 and len(eps) > 1)
    if row:
        raise ArgumentError(
            "eps", "a row of numbers", accepted="one number, or one per sample in a tensor of shape (batch, 1)",
            hint="For one per feature give radius=...; for one per sample eps.reshape(-1, 1).",
        )  # fmt: skip


def is_plain(clip: object) -> bool:
    """Whether it is a pair of numbers, as of every ball."""
    return isinstance(clip, tuple | list) and len(clip) == 2 and all(isinstance(end, int | float) for end in clip)


def each_feature(name: str, value: object) -> Any:
    """A number, or nested tuples of numbers."""
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        tensor = torch.tensor(math.nan)
    if bool(tensor.isnan().any()) or isinstance(value, bool):
        raise ArgumentError(
            name, shown(value), accepted="a number, or one for each feature",
            hint="Give a tensor or lists of the shape of one sample.",
        )  # fmt: skip
    return _tuples(tensor.tolist())


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def feature_indices(name: str, value: object) -> tuple[int, ...]:
    """The indices in order; raises ArgumentError for what is none, or twice there."""
    given: Any = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    try:
        found = tuple(int(i) for i in given)
        valid = all(i == j and not isinstance(j, bool) and i >= 0 for i, j in zip(found, given, strict=True))
    except (TypeError, ValueError):
        found, valid = (), False
    if not valid or len(set(found)) < len(found):
        raise ArgumentError(
            name, shown(value), accepted="different indices of features, from 0",
            hint="Features are counted in the flattened sample, without the batch.",
        )  # fmt: skip
    return tuple(sorted(found))


def feature_groups(value: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The groups in order; raises ArgumentError for one of fewer than two features."""
    try:
        given = list(value)
    except TypeError:
        given = [value]  # type: ignore[list-item]
    groups = tuple(feature_indices("one_hot", group) for group in given)
    if any(len(group) < 2 for group in groups):
        raise ArgumentError(
            "one_hot", shown(value), accepted="groups of two features or more",
            hint="For example one_hot=[[3, 4, 5], [6, 7]].",
        )  # fmt: skip
    return groups


def flat_numbers(value: Any) -> list[float]:
    """All numbers of nested tuples."""
    return [n for v in value for n in flat_numbers(v)] if isinstance(value, tuple) else [float(value)]


def least(value: Any) -> float:
    """The least of nested numbers, 0 for none."""
    return min(flat_numbers(value), default=0.0)


def greatest(value: Any) -> float:
    """The greatest of nested numbers, 0 for none."""
    return max(flat_numbers(value), default=0.0)


def pairs_are_ordered(low: Any, high: Any) -> bool:
    """Whether no lower end is above the upper one, and both have shapes that fit."""
    try:
        return bool((torch.tensor(low, dtype=torch.float64) <= torch.tensor(high, dtype=torch.float64)).all())
    except RuntimeError:
        return False


def wrong_clip(clip: object) -> ArgumentError:
    """The error of a clip range that is none."""
    return ArgumentError(
        "clip", shown(clip), accepted="a pair (low, high), each a number or one per feature, low <= high, or None",
        hint="For example clip=(0, 1), or clip=(lower, upper) with two tensors of the shape of one sample.",
    )  # fmt: skip


def shown(value: object) -> str:
    """At most about forty characters of it."""
    text = repr(value)
    return (
        text if len(text) <= 60 else f"{text[:45]}... ({len(flat_numbers(value)) if isinstance(value, tuple) else '?'})"
    )
