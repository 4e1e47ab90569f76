"""One printed table for one or several comparisons of the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING

from robust_plugins.balls import Ball

if TYPE_CHECKING:
    from rich.table import Table

    from robust_plugins.brackets.decisions import Comparison


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Clean, attacked and certified accuracy: a row per component, a column per comparison, and the time per sample.

    The comparisons are of the same samples and components, one per ball; raises ValueError for none.
    """
    from rich import box  # here, so that importing the package stays quick
    from rich.table import Table

    first = comparisons[0]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("accuracy of")
    table.add_column("is")
    for comparison in comparisons:
        table.add_column(ball_name(comparison.ball), justify="right")
    table.add_column("ms per sample", justify="right")
    table.add_row("the model", "clean", *(f"{c.clean:.3f}" for c in comparisons), "")
    for index, row in enumerate(first.rows):
        rows = [c.rows[index] for c in comparisons]
        shares = ["failed" if r.accuracy is None else f"{r.accuracy:.3f}" for r in rows]
        milliseconds = [1000 * r.seconds / max(1, len(first.y)) for r in rows if r.accuracy is not None]
        time = f"{sum(milliseconds) / len(milliseconds):.3g}" if milliseconds else ""
        table.add_row(row.name, "attacked" if row.kind == "attack" else "certified", *shares, time)
    return table


def conclusion(comparisons: Sequence[Comparison]) -> str:
    """In words: what is known of the robust accuracy, what failed, and what contradicts what."""
    lines = []
    for comparison in comparisons:
        low, high = comparison.bracket
        lines.append(f"{ball_name(comparison.ball)}: the robust accuracy is between {low:.3f} and {high:.3f}.")
    errors = {f"{row.name} failed: {row.error}" for c in comparisons for row in c.rows if row.error}
    crossings = [f"CONTRADICTION at {ball_name(c.ball)}, {x}" for c in comparisons for x in c.crossings]
    return "\n".join([*lines, *sorted(errors), *(crossings or ["No attack contradicts a certificate."])])


def ball_name(ball: Ball) -> str:
    """A ball as a column's title: its norm and its radius, or the range of its radii."""
    eps = (ball.radii or (0.0,)) if isinstance(ball.radii, tuple) else (ball.radii,)  # of no sample: nothing moves
    radius = f"{min(eps):.4g}" if min(eps) == max(eps) else f"{min(eps):.4g} to {max(eps):.4g}"
    return f"{type(ball).__name__} {radius}"


def rendered(table: Table, *, width: int = 110) -> str:
    """The table as plain text without trailing blanks."""
    from rich.console import Console

    text = StringIO()
    Console(file=text, width=width, force_terminal=False, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")
