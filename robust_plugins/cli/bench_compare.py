"""`robust-plugins bench compare`: what changed between two stores."""

from __future__ import annotations

from pathlib import Path

import click

from robust_plugins.benchmark.columns import read_columns
from robust_plugins.benchmark.differences import differences
from robust_plugins.cli.printing import as_json, print_json
from robust_plugins.harness.table import Table


@click.command(
    short_help="Say what changed from one store to another.",
    epilog="Exit codes: 0 success, whatever changed; 2 wrong usage; 3 a record of one contradicts one of the other.",
)
@click.argument("old", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("new", type=click.Path(path_type=Path, dir_okay=False))
@as_json
@click.pass_context
def compare(ctx: click.Context, old: Path, new: Path, as_json: bool) -> None:
    """Say what changed from the store OLD to the store NEW: what was asked, what with, verdicts, margins and time.

    Records answer the same question where model, data, sample, ball, component and seed have the same names; weights
    and parameters may have changed, and are named where they did.
    """
    found = differences(read_columns(old), read_columns(new))
    findings, crossing = found.contradictions
    if as_json:
        tables = {"made": found.made, "asked": found.asked, "verdicts": found.verdicts, "figures": found.figures}
        counts = {"old": len(found.old), "new": len(found.new), "paired": len(found.pairs)}
        said = {"contradictions": [findings.sentence(f) for f in crossing]}
        print_json(counts | {name: _rows(table) for name, table in tables.items()} | said)
    else:
        click.echo(str(found))
    ctx.exit(3 if crossing else 0)


def _rows(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]
