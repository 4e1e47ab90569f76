"""Checks of the parameters that components share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from numbers import Real
from typing import Any

import numpy as np

from robust_plugins.errors import ArgumentError


def plain(value: Any) -> Any:
    """A number of numpy's as Python's own, which every check, every record and every file knows; others as they are."""
    return value.item() if isinstance(value, np.number | np.bool_) else value


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """Raises ArgumentError for what is no integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(
            name, repr(value), accepted=f"an integer of at least {least}", hint=f"Take {least} or more."
        )


def check_length(name: str, value: object, *, unit: str, hint: str) -> None:
    """Raises ArgumentError for what is no finite number above 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ArgumentError(name, repr(value), accepted=f"a finite number above 0 in {unit}", hint=hint)


def check_choice(name: str, value: object, accepted: Iterable[str], *, hint: str) -> None:
    """Raises ArgumentError for what is none of `accepted`."""
    accepted = tuple(accepted)
    if value not in accepted:
        raise ArgumentError(name, repr(value), accepted=", ".join(map(repr, accepted)), hint=hint)


def check_numbers(given: Mapping[str, object], annotations: Mapping[str, object]) -> None:
    """Raises ArgumentError for a value of `given` that is no number where its annotation asks for one, or for None."""
    for name, value in given.items():
        annotation = annotations.get(name)
        said = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        wanted = {part.strip() for part in said.split("|")}
        if not wanted & {"int", "float"} or not wanted <= {"int", "float", "None"}:
            continue
        if (value is None and "None" in wanted) or (isinstance(value, Real) and not isinstance(value, bool)):
            continue
        kind = "a number" if "float" in wanted else "an integer"
        accepted = f"{kind}, or None" if "None" in wanted else kind
        hint = "Write it without quotes." if isinstance(value, str) else "Give one number."
        raise ArgumentError(name, repr(value), accepted=accepted, hint=hint)


def check_fields(instance: Any) -> None:
    """Raises ArgumentError for a field of the dataclass `instance` that should be a number, and is none."""
    annotations = {field.name: field.type for field in fields(instance)}
    check_numbers({name: getattr(instance, name) for name in annotations}, annotations)
