"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich import box
from rich.table import Table

from robust_plugins.brackets.table import rendered

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
"""The option `--json` of every command."""


def print_json(value: Any) -> None:
    """Prints `value` as strict JSON; numbers that are not finite, which JSON does not have, become null."""
    click.echo(json.dumps(finite(value), indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows of text under their columns' names."""
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    click.echo(rendered(table))


def finite(value: Any) -> Any:
    """`value` with null for numbers that strict JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
