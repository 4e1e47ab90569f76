"""How long the slow tests search: minutes all together, or hours with `ROBUST_PLUGINS_LONG=1` in the environment."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")

LONG = os.environ.get("ROBUST_PLUGINS_LONG", "0") not in ("", "0")


def length(short: T, long: T) -> T:
    """How many, how large or which: for a search of minutes, or of hours."""
    return long if LONG else short


def thinned(cases: Iterable[T], every: int) -> list[T]:
    """Every so manieth case, from the first; all of them in the search of hours."""
    return list(cases)[:: length(every, 1)]
