"""The features that a poisoner may move: by their indices, or by a mask over all of them."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral

import torch
from jaxtyping import Bool
from torch import Tensor

from robust_plugins.errors import ArgumentError

_ACCEPTED = "indices >= 0 of the flattened sample, or a mask of one truth value per feature, at least one chosen"


class Mask(tuple[bool, ...]):
    """One truth value per feature. Unlike a tuple it does not equal the indices 0 and 1."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(("mask", *self))


Columns = tuple[int, ...] | Mask


def as_columns(given: Iterable[object] | Tensor | None) -> Columns | None:
    """Truth values as a mask, integers (numpy's too) as sorted indices. Raises ArgumentError for anything else."""
    if given is None:
        return None
    values = given.flatten().tolist() if isinstance(given, Tensor) else _flat(given)
    if values and all(isinstance(v, bool) for v in values):
        found: Columns = Mask(bool(v) for v in values)
        fine = any(values)
    else:
        whole = [int(v) for v in values if isinstance(v, Integral) and not isinstance(v, bool)]
        found = tuple(sorted(set(whole)))
        fine = bool(whole) and len(whole) == len(values) and found[0] >= 0
    if not fine:
        raise ArgumentError("columns", repr(given), accepted=_ACCEPTED, hint="None lets all features move.")
    return found


def chosen(columns: Columns, features: int) -> Bool[Tensor, " features"]:
    """Which of so many features these are. Raises ArgumentError where they belong to other samples."""
    if isinstance(columns, Mask):
        if len(columns) != features:
            raise ArgumentError("columns", f"a mask of {len(columns)} values", accepted=f"one of {features}",
                                hint="One truth value for each entry of the flattened sample.")  # fmt: skip
        return torch.tensor(list(columns))
    if columns[-1] >= features:
        raise ArgumentError("columns", columns[-1], accepted=f"below {features}",
                            hint="Indices count the entries of the flattened sample from 0.")  # fmt: skip
    found = torch.zeros(features, dtype=torch.bool)
    found[list(columns)] = True
    return found


def _flat(given: object) -> list[object]:
    """The entries of a sequence, or of an array of any shape, as plain Python values."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ArgumentError("columns", repr(given), accepted=_ACCEPTED, hint="For example (0, 3).")
    plain = getattr(given, "tolist", None)  # numpy's arrays
    found: list[object] = []
    for value in plain() if callable(plain) else given:
        if isinstance(value, list):
            found += _flat(value)
        else:
            scalar = getattr(value, "tolist", None)  # numpy's numbers
            found.append(scalar() if callable(scalar) else value)
    return found
