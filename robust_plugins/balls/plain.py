"""The arguments of balls as plain data that JSON has, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from robust_plugins.errors import ArgumentError

_OPEN = {"lower": -math.inf, "upper": math.inf, "radius": math.inf}
"""The infinity that None stands for in an argument of this name; in `clip`, in that of its two ends."""

_HINT = 'Give all of what a result\'s `to_dict` has under "ball".'


def written(ball: Any) -> dict[str, Any]:
    """The arguments of a ball that say anything, tuples as lists; None stands for an infinite number."""
    said = {field.name: getattr(ball, field.name) for field in fields(ball)}
    return {name: _finite(value) for name, value in said.items() if name == "clip" or value not in (None, ())}


def kind_of(said: Mapping[str, Any], kinds: Mapping[str, type]) -> Any:
    """The class under `type`; raises ArgumentError where it is none of `kinds`."""
    found = kinds.get(str(said.get("type")))
    if found is None:
        raise ArgumentError("type", repr(said.get("type")), accepted=", ".join(sorted(kinds)), hint=_HINT)
    return found


def arguments(said: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The arguments that `written` has written; raises ArgumentError where one is missing or none of that class."""
    given = {name: value for name, value in said.items() if name not in ("type", "norm")}
    known = [field.name for field in fields(kind)]
    for name in (*given, "eps", "clip"):
        if name not in known or name not in given:
            found = "missing" if name in known else repr(given[name])
            raise ArgumentError(name, found, accepted=f"for {kind.__name__}: {', '.join(known)}", hint=_HINT)
    for name, infinity in _OPEN.items():
        if name in given:
            given[name] = _filled(given[name], infinity)
    if isinstance(given["clip"], list) and len(given["clip"]) == 2:
        low, high = given["clip"]
        given["clip"] = (_filled(low, -math.inf), _filled(high, math.inf))
    if isinstance(given["eps"], list):  # a tuple is one for each sample
        given["eps"] = tuple(given["eps"])
    return given


def _finite(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _filled(value: Any, infinity: float) -> Any:
    if isinstance(value, list):
        return [_filled(one, infinity) for one in value]
    return infinity if value is None else value
