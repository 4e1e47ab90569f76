"""Shares of samples with the interval within which the share of all samples lies."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z = 1.959963984540054
"""The normal quantile of a 95 % interval."""


@dataclass(frozen=True)
class Share:
    """So many of so many samples."""

    count: int
    total: int

    @property
    def value(self) -> float:
        """The share; NaN of nothing."""
        return self.count / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of Wilson (1927), which never leaves [0, 1] and has a width for 0 of n, too."""
        if not self.total:
            return math.nan, math.nan
        n, p = self.total, self.value
        middle = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        return percent(self.value)

    @property
    def range(self) -> str:
        """The interval as tables have it."""
        low, high = self.interval
        return "" if math.isnan(low) else f"{100 * low:.1f}-{100 * high:.1f}"


def percent(value: float) -> str:
    """A share as tables have it."""
    return "none" if math.isnan(value) else f"{100 * value:.1f} %"
