"""Printing of commands: tables for people, JSON for programs, warnings in one line."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from robust_plugins.harness.table import Table

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
"""The option `--json` of every command."""


def print_json(value: Any) -> None:
    """Prints `value` as strict JSON; numbers that are not finite, which JSON does not have, become null."""
    click.echo(json.dumps(finite(value), indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows of text under their columns' names, in the width of the terminal."""
    click.echo(fitted(Table(tuple(columns), tuple(map(tuple, rows)), words=len(columns))))


def fitted(table: Table) -> str:
    """The table in the width of the terminal; as wide as it is where the output is none."""
    return table.text(terminal_width())


def terminal_width() -> int | None:
    """The columns of the terminal, or those that the environment variable COLUMNS states; None for files and pipes."""
    stated = os.environ.get("COLUMNS", "")
    if stated.isdigit() and int(stated):
        return int(stated)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError, AttributeError):  # no terminal, or no file at all
        return None


def one_stream() -> bool:
    """Whether standard output and error end in the same place, a terminal or `2>&1`: nothing need be said on both."""
    try:
        out, err = os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.path.samestat(out, err)


def forget_output() -> None:
    """Drops what standard output could not write: at its end Python would try that once more, and complain."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # no file at all
        return


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line each on standard error, each text once, without the place in the code."""
    told: set[str] = set()

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if str(message) not in told:
            told.add(str(message))
            click.echo(f"Warning: {message}", err=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def finite(value: Any) -> Any:
    """`value` with null for numbers that strict JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
