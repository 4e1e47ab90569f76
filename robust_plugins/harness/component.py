"""The base of every component: a frozen dataclass whose fields are its parameters, run on some samples at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import getattr_static

from robust_plugins.errors import ArgumentError, ComponentError
from robust_plugins.harness.documentation import with_inherited
from robust_plugins.harness.parameters import plain

ERRORS = 8
"""The factor on the rounding error measured at a sample that its bounds are allowed to be off by: the errors at other
points of the ball, and those of the bounds themselves, are of the same size, but nobody has measured them."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """A component is a frozen dataclass whose fields are its parameters; every attack and certifier is one.

    - `batch_size`: how many samples are handed to the backend at a time; None lets the component choose.

    Subclasses check their fields in `__post_init__` and call `super().__post_init__()`. Their docstrings get what those
    of their bases say of fields that they take over.
    """

    batch_size: int | None = None

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        check_final(cls)
        cls.__doc__ = with_inherited(cls)

    def __post_init__(self) -> None:
        for name, value in [*vars(self).items()]:
            object.__setattr__(self, name, plain(value))
        if self.batch_size is not None and (not isinstance(self.batch_size, int) or self.batch_size < 1):
            raise ArgumentError(
                "batch_size", self.batch_size, accepted="an integer of at least 1, or None", hint="None fits memory."
            )

    def import_backend(self) -> None:
        """Imports what importing the backend by its name does not, so that studies take that for nobody's time."""


def check_final(component: type) -> None:
    """Raises ComponentError where a class, or one that it mixes in, replaces a method that a base marks as final.

    The public calls are final: what they check and restore is what their results rest on.
    """
    for base in component.__mro__:
        for name, method in vars(base).items():
            if getattr(method, "__final__", False) and getattr_static(component, name) is not method:
                raise ComponentError(
                    f"{component.__qualname__} replaces {base.__qualname__}.{name}, which is final; "
                    f"override {_offered(base)} instead"
                )


def _offered(base: type) -> str:
    return " or ".join(sorted(getattr(base, "__abstractmethods__", ()))) or "another method"


def chunks(total: int, size: int | None) -> Iterator[slice]:
    """Slices of at most `size` that cover `range(total)`; a single one for None."""
    step = max(1, total if size is None else size)
    return (slice(start, min(start + step, total)) for start in range(0, total, step))
