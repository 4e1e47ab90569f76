"""Explanation attacks and certifiers by the names under which plugins registered them."""

from __future__ import annotations

from typing import Any

from robust_plugins.explanations.attack import ExplanationAttack
from robust_plugins.explanations.certifier import ExplanationCertifier
from robust_plugins.registry.information import ComponentInfo, Kind
from robust_plugins.registry.registry import build, registry


def explanation_attack(name: str, /, **parameters: Any) -> ExplanationAttack:
    """The explanation attack registered as `name`, for example `rp.explanation_attack("gradient:corner-pgd")`.

    Raises as `explanation_certifier` does.
    """
    return build(Kind.EXPLANATION_ATTACK, ExplanationAttack, name, **parameters)


def explanation_attacks() -> list[ComponentInfo]:
    """Every registered explanation attack, with plugin, version and status."""
    return registry().components(Kind.EXPLANATION_ATTACK)


def explanation_certifier(name: str, /, **parameters: Any) -> ExplanationCertifier:
    """The explanation certifier registered as `name`, for example `rp.explanation_certifier("interval:relaxed")`.

    Raises UnknownNameError for an unknown name or parameter, PluginError where the plugin failed or its backend is
    missing, ArgumentError for a parameter's value.

    >>> model = torch.nn.Linear(2, 2)  # its gradient is the same everywhere
    >>> x, y, ball = torch.rand(3, 2), torch.tensor([0, 1, 0]), rp.Linf(eps=0.1, clip=(0, 1))
    >>> rp.explanation_certifier("interval:relaxed")(model, x, y, ball, delta=0.01).robust.all()
    tensor(True)
    """
    return build(Kind.EXPLANATION_CERTIFIER, ExplanationCertifier, name, **parameters)


def explanation_certifiers() -> list[ComponentInfo]:
    """Every registered explanation certifier, with plugin, version and status."""
    return registry().components(Kind.EXPLANATION_CERTIFIER)
