"""`Clock`: the time that one question may take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


class OutOfTimeError(Exception):
    """The time is used up; what was proved so far stands."""


@dataclass
class Clock:
    """Wall-clock seconds from its making on; `share` makes one for a part of what is left."""

    seconds: float
    start: float = field(default_factory=time.perf_counter)

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    @property
    def left(self) -> float:
        """Seconds that remain, below zero when none do."""
        return self.seconds - self.spent

    def check(self) -> None:
        """Raises OutOfTimeError when no time is left."""
        if self.left <= 0:
            raise OutOfTimeError
