"""Explanations of fields and parameters that are given in one place and used in many docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

POINT = re.compile(r"^- `\w+`.*(?:\n {2,}\S.*)*", flags=re.MULTILINE)


def with_inherited(component: type) -> str | None:
    """The docstring of a class, with what its bases say of the fields that it takes from them and does not name.

    `help()` shows a class's own docstring alone. Nothing is added where there is none.
    """
    own = vars(component).get("__doc__")
    if not own:
        return None
    return with_points(own, (point for base in component.__mro__[1:] for point in _points(base)))


def with_points(text: str, points: Iterable[str]) -> str:
    """A docstring, with the points of a list that say something of names of which it says nothing.

    A point is written as "- `name`: what it is", or for several names as "- `a`, `b`: what they are".
    """
    text = inspect.cleandoc(text)
    for point in points:
        if not any(f"`{name}`" in text for name in _names(point)):
            follows = text.rpartition("\n\n")[2].startswith("- ")
            text += ("\n" if follows else "\n\n") + point
    return text


def _points(base: type) -> list[str]:
    """The explanations that a class gives of its own fields."""
    fields = getattr(base, "__dataclass_fields__", {})
    found = POINT.findall(inspect.cleandoc(vars(base).get("__doc__") or ""))
    return [point for point in found if set(_names(point)) <= set(fields)]


def _names(point: str) -> list[str]:
    return re.findall(r"`(\w+)`", point.partition(":")[0])
