"""Progress of long work, on standard error: a bar in a terminal, and lines anywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Say = Callable[[str], None]


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
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield (lambda: bar.advance(task)), (lambda text: console.print(text, markup=False, soft_wrap=True))
