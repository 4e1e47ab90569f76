"""Checks of the parameters that components share."""

from __future__ import annotations

import math
from collections.abc import Iterable

from robust_plugins.errors import ArgumentError


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
