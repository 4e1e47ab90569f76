"""`Table`: columns and rows of text, printed alike in the terminal and on pages; and how a ball is called there."""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO

from robust_plugins.balls import Ball

NAME = 56
"""Longer words than this are folded: a component with many parameters would push its figures off the screen."""


@dataclass(frozen=True)
class Table:
    """Titles of columns, and rows with a cell for each. Printing it gives plain text without colours."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 2
    """So many columns, the first ones, hold words and are aligned left; the others hold figures, aligned right."""

    def __str__(self) -> str:
        from rich import box  # here, so that importing the package stays quick
        from rich.console import Console
        from rich.table import Table as Drawn
        from rich.text import Text

        drawn = Drawn(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, title in enumerate(self.columns):
            if index < self.words:
                drawn.add_column(Text(title), overflow="fold", max_width=NAME)
            else:
                drawn.add_column(Text(title), justify="right", no_wrap=True)
        for row in self.rows:
            drawn.add_row(*map(Text, row))  # Text: a name in brackets is no markup
        text = StringIO()
        wide = sum(max(len(cell) for cell in column) + 3 for column in zip(self.columns, *self.rows, strict=True))
        Console(file=text, width=wide, force_terminal=False, color_system=None).print(drawn)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")


def ball_name(ball: Ball) -> str:
    """A ball as a column's title: its norm and its radius, or the range of its radii."""
    eps = (ball.radii or (0.0,)) if isinstance(ball.radii, tuple) else (ball.radii,)  # of no sample: nothing moves
    radius = f"{min(eps):.4g}" if min(eps) == max(eps) else f"{min(eps):.4g} to {max(eps):.4g}"
    return f"{type(ball).__name__} {radius}"
