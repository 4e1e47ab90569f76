"""The errors of the package: one base class, and messages that say what to do next."""

from collections.abc import Iterable
from difflib import get_close_matches


def of_type(value: object) -> str:
    """Names the type of `value` in a sentence: "an int", "a Tensor", "an LSTM"."""
    name = type(value).__name__
    spelt = name[:2].isupper() or name == "ndarray"  # then the letter's own name is read
    return f"{'an' if name[0].lower() in ('aefhilmnorsx' if spelt else 'aeiou') else 'a'} {name}"


class RobustPluginsError(Exception):
    """Base class of every error that this package raises on purpose."""


class ArgumentError(RobustPluginsError, ValueError):
    """An argument has a value that cannot be used.

    The message names the argument, the value, what is accepted and what to do.
    """

    def __init__(self, argument: str, value: object, *, accepted: str, hint: str) -> None:
        self.argument = argument
        self.value = value
        first, *more = str(value).split("\n")
        shown = f"{first.rstrip()} ..." if more else first  # a network or a tensor would hide what is accepted
        super().__init__(f"`{argument}` is {shown}; accepted: {accepted}. {hint}")


MANY = 40
"""So many names beside the nearest ones would hide these."""


class UnknownNameError(RobustPluginsError, LookupError):
    """A component, parameter, data set or model of that name does not exist; the nearest names are listed.

    All names are, too, where none is near or they are few. `elsewhere` says what else has this name.
    """

    def __init__(self, what: str, name: str, known: Iterable[str], *, elsewhere: str = "", hint: str = "") -> None:
        self.name = name
        known = sorted(known)
        near = get_close_matches(name, known, n=3, cutoff=0.4)
        nearest = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        listing = f" Known: {', '.join(known)}." if known else " None is known."
        if near and len(known) > MANY:
            listing = f" {len(known)} are known."
        said = f" It is the name of {elsewhere}." if elsewhere else ""
        super().__init__(f"unknown {what} {name!r}.{said}{nearest}{listing}{' ' + hint if hint else ''}")


class PluginError(RobustPluginsError):
    """A plugin could not be loaded, was blocked, or lacks its backend; the cause is chained."""


class UnsupportedModelError(RobustPluginsError):
    """A certifier cannot bound this model; the message names the layer. Becomes `Verdict.UNSUPPORTED`."""


class ComponentError(RobustPluginsError):
    """A component broke its contract: the wrong shape, type or device came back from a plugin."""


class TrainingError(RobustPluginsError, ArithmeticError):
    """Training cannot go on: the loss or the weights are not finite. The message names the epoch and the batch."""
