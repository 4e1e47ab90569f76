"""Faults in a study's file, in words: where they are, the value, what is accepted, and the nearest name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel

from robust_plugins.errors import RobustPluginsError


@contextmanager
def named(where: str) -> Iterator[None]:
    """Errors of the package that leave the block begin with where they come from, a file or a key in it."""
    try:
        yield
    except RobustPluginsError as error:
        error.args = (f"{where}: {error}",)
        raise


def in_words(fault: dict[str, Any], whole: type[BaseModel]) -> str:
    """One fault in words: the key as a path, its value, what is accepted, and the nearest name."""
    location = tuple(part for part in fault["loc"] if not _is_type(part))
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if fault["type"] == "extra_forbidden":
        known = sorted(_table(whole, location[:-1]).model_fields)
        return f"unknown key {key!r}; accepted: {', '.join(known)}{nearest(str(location[-1]), known)}"
    if fault["type"] == "missing":
        annotation = _table(whole, location[:-1]).model_fields[str(location[-1])].annotation
        what = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        if _tables_in(annotation) is not None:
            what = f"at least one table, [[{key}]]"
        return f"{key!r} is missing; accepted: {what}"
    if fault["type"] == "value_error":
        return f"{key}: {fault['ctx']['error']}".lstrip(": ")
    if fault["type"] == "literal_error":
        allowed = _allowed(whole, location)
        near = nearest(fault["input"], allowed)
        return f"{key!r} is {fault['input']!r}; accepted: {', '.join(map(repr, allowed))}{near}"
    accepted = fault["msg"].removeprefix("Input should be ")
    if (
        fault["type"] == "list_type"
        and _tables_in(_table(whole, location[:-1]).model_fields[str(location[-1])].annotation) is not None
    ):
        accepted = f"tables, each under a line [[{key}]]"
    elif fault["type"] == "model_type":
        accepted = f"a table, under a line [{key}]" if isinstance(location[-1], str) else "a table"
    elif fault["type"] == "too_short":
        accepted = f"at least {fault['ctx']['min_length']} of them"
    elif fault["type"] == "string_pattern_mismatch":
        accepted = "the name of a file"
    return f"{key!r} is {fault['input']!r}; accepted: {accepted}"


def _is_type(part: object) -> bool:
    """Whether pydantic means one of several types here, and no key."""
    return isinstance(part, str) and (
        part in ("str", "int", "float", "constrained-int", "constrained-float") or "[" in part or part.startswith("is-")
    )


def _table(whole: type[BaseModel], location: tuple[Any, ...]) -> type[BaseModel]:
    """The table that a path of keys leads to."""
    found = whole
    for part in location:
        if isinstance(part, str) and part in found.model_fields:
            found = _tables_in(found.model_fields[part].annotation) or whole
    return found


def _tables_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((t for a in get_args(annotation) if (t := _tables_in(a)) is not None), None)


def _allowed(whole: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    names = [part for part in location if isinstance(part, str)]
    annotation = (
        _table(whole, location[:-1] if isinstance(location[-1], str) else location[:-2])
        .model_fields[names[-1]]
        .annotation
    )
    return [str(value) for value in _literals(annotation)]


def _literals(annotation: Any) -> list[Any]:
    arguments = get_args(annotation)
    if any(isinstance(a, str) for a in arguments):
        return [a for a in arguments if isinstance(a, str)]
    return [value for a in arguments for value in _literals(a)]


def nearest(name: object, known: list[str]) -> str:
    """The known name that is most like this one, as a question; nothing where none is."""
    found = get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f". Did you mean {found[0]!r}?" if found else ""
