"""`Table`: columns and rows of text, printed alike in the terminal, in notebooks and on pages."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from io import StringIO

NAME = 56
"""Longer words than this are folded: a component with many parameters would push its figures off the screen."""

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

        Sentences are folded first, between words. Figures never are: those for which there is no room follow in another
        table. Where a name itself would have to be broken, each row is a paragraph with a line for each column.
        """
        if width is None:
            return self._drawn(self._wanted)
        parts = list(self._parts(width))
        if any(part._least > width for part in parts):
            return "\n\n".join("\n".join(self._paragraph(row, width)) for row in self.rows)
        return "\n\n".join(part._drawn(part._shares(width)) for part in parts)

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

    @property
    def _wanted(self) -> list[int]:
        """The width of each column where there is room for all of it."""
        return [min(w, NAME) if i < self.words else w for i, w in enumerate(self._widths)]

    @property
    def _needed(self) -> list[int]:
        """The width of each column that breaks no name."""
        longest = [
            max(len(word) for cell in column for word in (*cell.split(), ""))
            for column in zip(self.columns, *self.rows, strict=True)
        ]
        wanted = self._wanted
        return [min(n, wanted[i]) if i < self.words else wanted[i] for i, n in enumerate(longest)]

    @property
    def _least(self) -> int:
        return 1 + sum(self._needed) + GAP * (len(self.columns) - 1)

    def _shares(self, width: int) -> list[int]:
        """Each column gets of the width what it needs, and of the rest, in equal parts, as much as it wants."""
        shares, wanted = self._needed, self._wanted
        room = width - self._least
        while room > 0 and (open_ := [i for i, w in enumerate(wanted) if shares[i] < w]):
            for i in open_[:room]:
                more = min(max(1, room // len(open_)), wanted[i] - shares[i])
                shares[i] += more
                room -= more
        return shares

    def _parts(self, width: int) -> Iterator[Table]:
        """Tables of as many columns of figures as fit beside the words, folded as far as need be."""
        widths = self._needed
        least = sum(w + GAP for w in widths[: self.words])
        chosen: list[int] = []
        for column in range(self.words, len(self.columns)):
            if chosen and least + sum(widths[i] + GAP for i in (*chosen, column)) - GAP + 1 > width:
                yield self._only(chosen)
                chosen = []
            chosen.append(column)
        yield self._only(chosen)

    def _only(self, figures: list[int]) -> Table:
        kept = [*range(self.words), *figures]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[i] for i in kept), rows=rows)

    def _paragraph(self, row: tuple[str, ...], width: int) -> Iterator[str]:
        """A row as the name in its first column, and the other cells that say something below it, each by its title."""
        name, *others = row
        yield from _folded(name, width, "", "  ")
        for title, cell in zip(self.columns[1:], others, strict=True):
            if cell:
                yield from _folded(cell, width, f"  {title}: ", "    ")

    def _drawn(self, widths: list[int]) -> str:
        from rich import box  # here, so that importing the package stays quick
        from rich.console import Console
        from rich.table import Table as Drawn
        from rich.text import Text

        drawn = Drawn(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, (title, width) in enumerate(zip(self.columns, widths, strict=True)):
            if index < self.words:
                drawn.add_column(Text(title), overflow="fold", width=width)
            else:
                drawn.add_column(Text(title), justify="right", no_wrap=True, width=width)
        for row in self.rows:
            drawn.add_row(*map(Text, row))  # Text: a name in brackets is no markup
        text = StringIO()
        whole = sum(widths) + GAP * len(widths)
        Console(file=text, width=whole, force_terminal=False, color_system=None).print(drawn)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")


def _folded(text: str, width: int, first: str, others: str) -> list[str]:
    """Lines of at most `width` characters, folded between words alone."""
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
