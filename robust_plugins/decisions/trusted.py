"""The certifiers of this package of which it is known that they leave everything as it is, so that less is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from robust_plugins.errors import ComponentError

Kind = TypeVar("Kind", bound=type)

_OWN: set[type] = set()
"""The certifiers of the interval engine, and no subclass of theirs."""


def of_the_engine(certifier: Kind) -> Kind:
    """Marks a certifier of this package's engine; any other class is refused."""
    if certifier.__module__ != "robust_plugins.decisions.certifiers":
        raise ComponentError(f"{certifier.__qualname__} is none of the engine's own certifiers: it is checked")
    _OWN.add(certifier)
    _ALONE[certifier] = lambda _: True
    return certifier


_ALONE: dict[type, Callable[[nn.Module], bool]] = {}
"""The certifiers of this package, and no subclass of theirs, that leave `x`, `spec`, the random states and a model as
they are, and which models; they check `spec` themselves. `bounds` does without the copies that would find a change."""


def leaving_alone(models: Callable[[nn.Module], bool]) -> Callable[[Kind], Kind]:
    """Marks a certifier of this package that changes none of the `models`; a class of anybody else is refused."""

    def mark(certifier: Kind) -> Kind:
        if not certifier.__module__.startswith("robust_plugins."):
            raise ComponentError(f"{certifier.__qualname__} is none of this package's certifiers: it is checked")
        _ALONE[certifier] = models
        return certifier

    return mark


def leaves_alone(certifier: object, model: object) -> bool:
    """Whether it is known of the certifier that it changes nothing of this model."""
    models = _ALONE.get(type(certifier))
    return models is not None and isinstance(model, nn.Module) and models(model)


def is_of_the_engine(certifier: object) -> bool:
    """Whether it is one of the engine's own certifiers, and not of a class derived from one."""
    return type(certifier) in _OWN
