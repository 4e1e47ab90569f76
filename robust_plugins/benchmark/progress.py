"""`reporting`: how far a run is, on a terminal or as a plain line every half minute."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from robust_plugins.benchmark.planning import Batch
from robust_plugins.benchmark.work import Answers

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


class Report:
    """Is told what a run does; this one keeps it to itself."""

    def say(self, text: str) -> None:
        """Something that takes time begins."""

    def begun(self, left: list[Batch], total: int) -> None:
        """So many batches are left of so many rows."""

    def told(self, batch: Batch, answers: Answers) -> None:
        """The answers of a batch are written."""


class Lines(Report):
    """Prints a line every half minute: records, time left, failures."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._left = self._done = 0
        self._failures: Counter[str] = Counter()

    def say(self, text: str) -> None:
        """Prints it."""
        print(text, file=sys.stderr, flush=True)

    def begun(self, left: list[Batch], total: int) -> None:
        """Prints how much there is to do."""
        self._left = sum(map(len, left))
        self._start = self._last = time.monotonic()
        self.say(f"{self._left} of {total} records to compute, in {len(left)} batches")

    def told(self, batch: Batch, answers: Answers) -> None:
        """Counts, and prints a line where half a minute is over."""
        self._done += len(batch)
        self._failures[batch.component] += _failed(answers)
        now = time.monotonic()
        if now - self._last < EVERY:
            return
        self._last = now
        left = (now - self._start) / self._done * (self._left - self._done)
        failed = "".join(f", {name} failed on {n}" for name, n in self._failures.most_common(3) if n)
        self.say(f"{self._done} of {self._left} records, about {_time(left)} left{failed}")


class Bars(Report):
    """Shows a bar for each component, with the time left and its failures."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._tasks: dict[str, Any] = {}
        self._failures: Counter[str] = Counter()

    def say(self, text: str) -> None:
        """Prints it above the bars."""
        self._display.console.print(text, highlight=False, markup=False)

    def begun(self, left: list[Batch], total: int) -> None:
        """Draws the bars."""
        rows: Counter[str] = Counter()
        for batch in left:
            rows[batch.component] += len(batch)
        self.say(f"{rows.total()} of {total} records to compute")
        if rows:
            self._tasks[""] = self._display.add_task("all", total=rows.total(), failed="")
        for name, count in rows.items():
            self._tasks[name] = self._display.add_task(name, total=count, failed="")

    def told(self, batch: Batch, answers: Answers) -> None:
        """Moves the bars."""
        name = batch.component
        failed = _failed(answers)
        for key in ("", name):
            self._failures[key] += failed
            count = self._failures[key]
            self._display.update(self._tasks[key], advance=len(batch), failed=f"{count} failed" if count else "")


@contextmanager
def reporting(shown: bool) -> Iterator[Report]:
    """Tells of a run: by nothing, by bars on a terminal, or by lines."""
    if not shown:
        yield Report()
        return
    from rich.console import Console  # here, so that importing the package stays quick
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield Lines()
        return
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("[red]{task.fields[failed]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as display:
        yield Bars(display)


def _failed(answers: Answers) -> int:
    """For how many samples there is no answer."""
    return sum(row["verdict"] in ("error", "timeout") for row in answers.rows)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
