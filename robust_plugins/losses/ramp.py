"""`Ramp`: how strong a term is in the course of training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.parameters import check_fields

Shape = Literal["linear", "smooth"]

FOOT = 0.25
"""The share of a smooth ramp that is quartic."""


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """A number that is `first` until epoch `start`, goes to `last` at epoch `end`, and stays there.

    `shape="smooth"` starts as a quartic and goes on as the straight line that continues it (as auto_LiRPA's smoothed
    scheduler does); `"linear"` is straight. Epochs may be fractions: within epoch e, after batch b of n, it is
    `e + b / n`. Training for a bound collapses to a constant network where it starts at full strength.

    - `start`: the epoch of the last moment at `first`.
    - `end`: the epoch from which the number is `last`.
    - `shape`: `"smooth"` or `"linear"`.
    - `first`: the number before.
    - `last`: the number after.

    >>> ramp = rp.Ramp(start=0, end=10, shape="linear")
    >>> ramp(0), ramp(5), ramp(20)
    (0.0, 0.5, 1.0)
    """

    start: float
    end: float
    shape: Shape = "smooth"
    first: float = 0.0
    last: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not (math.isfinite(self.end) and 0 <= self.start <= self.end):
            raise ArgumentError(
                "start, end",
                f"{self.start} and {self.end}",
                accepted="epochs with 0 <= start <= end",
                hint="For example Ramp(start=0, end=10).",
            )
        if not (math.isfinite(self.first) and math.isfinite(self.last)):
            raise ArgumentError(
                "first, last",
                f"{self.first} and {self.last}",
                accepted="finite numbers",
                hint="For a factor, leave them out.",
            )
        if self.shape not in get_args(Shape):
            raise ArgumentError(
                "shape", repr(self.shape), accepted=", ".join(map(repr, get_args(Shape))), hint="Choose one of them."
            )

    def __call__(self, epoch: float) -> float:
        """The number at `epoch`."""
        share = self._share(epoch)
        return (1 - share) * self.first + share * self.last

    def _share(self, epoch: float) -> float:
        if epoch >= self.end:
            return 1.0
        if epoch <= self.start:
            return 0.0
        t = (epoch - self.start) / (self.end - self.start)
        if self.shape == "linear":
            return t
        # a t^4 up to the foot, then its tangent; a is such that the tangent reaches 1 at t = 1.
        a = 1 / (FOOT**4 + 4 * FOOT**3 * (1 - FOOT))
        return a * t**4 if t < FOOT else a * (FOOT**4 + 4 * FOOT**3 * (t - FOOT))
