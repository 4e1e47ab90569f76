"""Progress of long work, on standard error: a bar in a terminal or a notebook, and lines anywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Say = Callable[[str], None]


def shows_bars(console: Console) -> bool:
    """Whether bars can move there: in a terminal, and in notebooks that have ipywidgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


@contextmanager
def reporting(
    what: str, *, total: int | None, done: int = 0, enabled: bool = True
) -> Iterator[tuple[Callable[[], None], Say]]:
    """Gives two functions: one that advances the bar by one, one that prints a line. With `enabled=False` both are
    silent.
    """
    if not enabled:
        yield (lambda: None), (lambda text: None)
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=sys.stderr, highlight=False)
    with Progress(console=console, disable=not shows_bars(console)) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield (lambda: bar.advance(task)), (lambda text: console.print(text, markup=False, soft_wrap=True))
