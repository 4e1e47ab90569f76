"""The run-time type checks of the test suite: beartype, with int accepted where float is asked for (PEP 484).

jaxtyping checks every call twice, and makes the checks of inner functions anew whenever they are defined, which took a
third of the suite's time. So a function is checked here at its first calls in each test, and then called as it is.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from random import Random
from types import CodeType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype._check.code import codemain

# The frames of this module stand in the place of jaxtyping's, which code that looks for its caller passes over.
__name__ = "jaxtyping.in_tests"

codemain.getrandbits = Random(0).getrandbits  # which items it checks must not move the random state that tests compare

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
jaxtyped = jaxtyping.jaxtyped


class Checks:
    """Which calls are checked: as many of every function, in each test, as `calls` says."""

    def __init__(self) -> None:
        self.calls = float("inf")
        self.done = Counter[CodeType]()

    def start(self) -> None:
        self.done.clear()

    def chosen(self, function: Any) -> Callable[..., Any]:
        """The function with its checks, or alone where it had enough of them; the checks are made at the first call."""
        if self.done[function.__code__] >= self.calls:
            return function
        self.done[function.__code__] += 1
        if not hasattr(function, "_checked"):
            function._checked = jaxtyped(function, typechecker=check)
        return function._checked


checks = Checks()


def sometimes_checked(decorated: Any) -> Any:
    """In the place of `jaxtyping.jaxtyped`, which its import hook puts around every function and every class."""
    if inspect.isclass(decorated):
        if hasattr(decorated, "__dataclass_fields__") and not hasattr(decorated.__init__, "__wrapped__"):
            decorated.__init__ = sometimes_checked(decorated.__init__)
        return decorated

    @functools.wraps(decorated)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return checks.chosen(decorated)(*args, **kwargs)

    return call


def install(package: str) -> None:
    """To be called before the first import of the package, whose annotated tensors have their shapes checked then."""
    jaxtyping.jaxtyped = lambda typechecker: sometimes_checked
    jaxtyping.install_import_hook(package, "support.typechecker.check")
