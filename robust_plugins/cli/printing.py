"""Printing of commands: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import click

from robust_plugins.harness.table import Table

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
"""The option `--json` of every command."""


def print_json(value: Any) -> None:
    """Prints `value` as strict JSON; numbers that are not finite, which JSON does not have, become null."""
    click.echo(json.dumps(finite(value), indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows of text under their columns' names."""
    click.echo(str(Table(tuple(columns), tuple(map(tuple, rows)), words=len(columns))))


def finite(value: Any) -> Any:
    """`value` with null for numbers that strict JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
