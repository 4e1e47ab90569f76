"""What every component shares: a frozen dataclass whose fields are its parameters, run on some samples at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from robust_plugins.errors import ArgumentError

ERRORS = 8
"""How many times the measured rounding error of the model's evaluation at a sample its bounds may be off by: that at
other points of the ball, and that of the bounds themselves, are of its size but not known."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """What attacks and certifiers share: a frozen dataclass whose fields are its parameters.

    `batch_size` is the number of samples handed to the backend at a time; None lets the component choose.
    Subclasses check their fields in `__post_init__` and call `super().__post_init__()`.
    """

    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and (not isinstance(self.batch_size, int) or self.batch_size < 1):
            raise ArgumentError(
                "batch_size", self.batch_size, accepted="an integer of at least 1, or None", hint="None fits memory."
            )


def chunks(total: int, size: int | None) -> Iterator[slice]:
    """Slices of at most `size` that cover `range(total)`; a single one for None."""
    step = max(1, total if size is None else size)
    return (slice(start, min(start + step, total)) for start in range(0, total, step))
