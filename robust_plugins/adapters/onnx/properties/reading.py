"""Reads the bracketed expressions of VNN-LIB, one command after the other, without recursion."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from robust_plugins.errors import ArgumentError

DEEPEST = 100
"""How deep brackets may be nested: properties of networks need about five."""

_TOKEN = re.compile(r"[()]|;[^\n]*|[^\s();]+")


class Form(NamedTuple):
    """An atom, whose `items` are its text, or a list of forms in brackets."""

    items: Any
    position: int

    @property
    def atom(self) -> str | None:
        """The text of an atom; None for a list."""
        return self.items if isinstance(self.items, str) else None


class Source:
    """The text of a property, for errors that name the line."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text

    def line(self, position: int) -> int:
        """The line of a position, from 1 on."""
        return self.text.count("\n", 0, position) + 1

    def refused(self, position: int, found: str, hint: str = "") -> ArgumentError:
        """The error for what stands at a position."""
        return ArgumentError(
            "property", f"{str(self.path)!r}, line {self.line(position)}: {found}",
            accepted="VNN-LIB 1.0: declarations of X_i and Y_i, and asserts of and, or and linear comparisons of them",
            hint=hint or "Write the property in this form.",
        )  # fmt: skip


def commands(source: Source) -> Iterator[Form]:
    """Each command of a file. Raises ArgumentError, naming the line, where brackets do not close or hold nothing."""
    stack: list[tuple[list[Form], int]] = []
    for match in _TOKEN.finditer(source.text):
        token, position = match.group(), match.start()
        if token == "(":
            if len(stack) == DEEPEST:
                raise source.refused(position, f"brackets nested deeper than {DEEPEST}")
            stack.append(([], position))
        elif token == ")":
            if not stack:
                raise source.refused(position, "a bracket closes that was not opened")
            items, opened = stack.pop()
            if not items and not _may_be_empty(stack):
                raise source.refused(opened, "brackets with nothing in them")
            form = Form(items, opened)
            if not stack:
                yield form
            else:
                stack[-1][0].append(form)
        elif token[0] != ";":
            if not stack:
                raise source.refused(position, f"{token[:40]!r} outside of brackets")
            stack[-1][0].append(Form(token, position))
    if stack:
        raise source.refused(stack[0][1], "a bracket that is never closed: the file is truncated, or one is missing")


def _may_be_empty(stack: list[tuple[list[Form], int]]) -> bool:
    """Whether the brackets just closed are the arguments of `(declare-fun X_0 () Real)`."""
    return len(stack) == 1 and bool(stack[0][0]) and stack[0][0][0].items == "declare-fun"
