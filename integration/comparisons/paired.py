"""CPU time of contenders as ratios to one of them, pair by pair: what else the machine does cancels out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

SHORTEST = 0.02
"""CPU seconds that are measured at once, at least: what is quicker is run several times."""


@dataclass(frozen=True)
class Line:
    """One contender beside the base of its table."""

    subject: str
    """What both did."""
    contender: str
    median: float
    """Of the ratios, as are the two quartiles."""
    low: float
    high: float
    pairs: int
    seconds: float
    """The median CPU seconds of one run."""

    @property
    def spread(self) -> str:
        """The middle half of the ratios."""
        return f"{number(self.low)} to {number(self.high)}"


def number(value: float) -> str:
    """Three digits at most, and never an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else f"{value:.1g}"


def seconds(run: Callable[[], object]) -> float:
    """The CPU seconds that `run` takes, of all threads of the process; the mean of several where it is quick."""
    start, runs, took = time.process_time(), 0, 0.0
    while took <= SHORTEST:
        run()
        runs, took = runs + 1, time.process_time() - start
    return took / runs


def rounds(contenders: Mapping[str, Callable[[], object]], repeats: int) -> list[dict[str, float]]:
    """CPU seconds of all contenders in each of so many rounds, in an order that rotates, after one to warm up."""
    names = list(contenders)
    for run in contenders.values():
        run()
    found = []
    for repeat in range(repeats):
        shift = repeat % len(names)
        found.append({name: seconds(contenders[name]) for name in names[shift:] + names[:shift]})
    return found


def line(subject: str, contender: str, ratios: Sequence[float], median_seconds: float) -> Line:
    """The median and the quartiles of ratios."""
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [ratios[0]] * 3
    return Line(subject, contender, middle, low, high, len(ratios), median_seconds)


def lines(subject: str, contenders: Mapping[str, Callable[[], object]], *, base: str, repeats: int) -> list[Line]:
    """A line for each contender, the base among them: its CPU time over that of the base in the same round."""
    found = rounds(contenders, repeats)
    return [
        line(subject, name, [row[name] / row[base] for row in found], statistics.median(row[name] for row in found))
        for name in contenders
    ]
