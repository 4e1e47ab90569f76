"""`Clock`: the time that one question may take; and what a timeout must be."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Literal

from robust_plugins.errors import ArgumentError

Ticks = Literal["wall", "cpu"]
"""Whether seconds pass by themselves, or are those that the process computes, for comparisons on busy machines."""


class OutOfTimeError(Exception):
    """The time is used up; what was proved so far stands."""


@dataclass
class Clock:
    """Seconds from its making on: of the wall clock, or with `cpu` those that the process computes."""

    seconds: float
    cpu: bool = False
    start: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = self._now()

    def _now(self) -> float:
        return time.process_time() if self.cpu else time.perf_counter()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self._now() - self.start

    @property
    def left(self) -> float:
        """Seconds that remain, below zero when none do."""
        return self.seconds - self.spent

    def check(self) -> None:
        """Raises OutOfTimeError when no time is left."""
        if self.left <= 0:
            raise OutOfTimeError

    def share(self, part: float) -> Clock:
        """A clock, begun now, for that part of what is left."""
        return Clock(part * max(0.0, self.left), self.cpu)


def check_ticks(clock: Ticks) -> None:
    """Raises ArgumentError for what is no kind of seconds."""
    if clock not in ("wall", "cpu"):
        raise ArgumentError("clock", repr(clock), accepted="'wall' or 'cpu'", hint="Leave it out for seconds.")


def check_timeout(seconds: float) -> None:
    """Raises ArgumentError unless there are seconds for each sample."""
    if not (isinstance(seconds, int | float) and math.isfinite(seconds) and seconds > 0):
        raise ArgumentError("timeout", seconds, accepted="seconds > 0 for each sample", hint="60 suits small networks.")
