"""`Table`: columns and rows of text, printed alike in the terminal, in notebooks and on pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from io import StringIO

NAME = 56
"""Longer words than this are folded: a component with many parameters would push its figures off the screen."""

NARROW = 12
"""No column of words is folded to less than this."""

GAP = 3
"""The space between two columns."""


@dataclass(frozen=True)
class Table:
    """Titles of columns, and rows with a cell for each. Printing it gives plain text without colours.

    - `columns`: the titles.
    - `rows`: their cells, as text.
    - `words`: so many columns, the first ones, hold words and are aligned left; the others hold figures, aligned
      right.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 2

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int | None = None) -> str:
        """The table as text, in lines of at most `width` characters where that is possible; None: as wide as it is.

        Words are folded first. Figures never are: those for which there is no room follow in another table.
        """
        if width is None:
            return self._drawn(sum(self._widths) + GAP * len(self.columns))
        return "\n\n".join(part._drawn(width) for part in self._parts(width))

    def html(self) -> str:
        """The table as an HTML element; what its cells hold is text."""
        titles = "".join(f"<th>{escape(title)}</th>" for title in self.columns)
        sides = ["left"] * self.words + ["right"] * (len(self.columns) - self.words)
        lines = (
            "".join(
                f'<td style="text-align:{side};padding:.1em .6em">{escape(cell)}</td>'
                for side, cell in zip(sides, row, strict=True)
            )
            for row in self.rows
        )
        rows = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"

    @property
    def _widths(self) -> list[int]:
        return [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]

    def _parts(self, width: int) -> Iterator[Table]:
        """Tables of as many columns of figures as fit beside the words, folded as far as need be."""
        widths = self._widths
        least = sum(min(w, NARROW) + GAP for w in widths[: self.words])
        chosen: list[int] = []
        for column in range(self.words, len(self.columns)):
            if chosen and least + sum(widths[i] + GAP for i in (*chosen, column)) > width:
                yield self._only(chosen)
                chosen = []
            chosen.append(column)
        yield self._only(chosen)

    def _only(self, figures: list[int]) -> Table:
        kept = [*range(self.words), *figures]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[i] for i in kept), rows=rows)

    def _drawn(self, width: int) -> str:
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
        Console(file=text, width=width, force_terminal=False, color_system=None).print(drawn)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")
