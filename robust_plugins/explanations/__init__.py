"""Explanations of a model, which are gradients with respect to its input: what can be proved about them over a ball."""

from __future__ import annotations

from typing import Any

from robust_plugins.errors import PluginError
from robust_plugins.explanations import certifiers
from robust_plugins.explanations.attack import ExplanationAttack, ExplanationAttackResult
from robust_plugins.explanations.certificate import ExplanationCertificate
from robust_plugins.explanations.corner_pgd import CornerPGD
from robust_plugins.explanations.definition import Explained
from robust_plugins.explanations.interface import ExplanationCertifier
from robust_plugins.hookspecs import Register, hookimpl
from robust_plugins.plugins import ComponentInfo, Kind, registry

__all__ = [
    "CornerPGD",
    "Explained",
    "ExplanationAttack",
    "ExplanationAttackResult",
    "ExplanationCertificate",
    "ExplanationCertifier",
    "explanation_attack",
    "explanation_attacks",
    "explanation_certifier",
    "explanation_certifiers",
]


@hookimpl
def register_explanation_certifiers(register: Register) -> None:
    """Registers the explanation certifiers of the interval engine."""
    register("interval:ibp", certifiers.IBP)
    register("interval:crown", certifiers.CROWN)
    register("interval:relaxed", certifiers.Relaxed)


@hookimpl
def register_explanation_attacks(register: Register) -> None:
    """Registers the explanation attacks of this package."""
    register("gradient:corner-pgd", CornerPGD)


def explanation_attack(name: str, /, **parameters: Any) -> ExplanationAttack:
    """The explanation attack registered as `name`, for example `rp.explanation_attack("gradient:corner-pgd")`.

    Raises as `explanation_certifier` does.
    """
    found = registry().create(Kind.EXPLANATION_ATTACK, name, **parameters)
    if not isinstance(found, ExplanationAttack):
        raise PluginError(
            f"{Kind.EXPLANATION_ATTACK} {name!r}: its factory returned {found!r}, which is no rp.ExplanationAttack"
        )
    return found


def explanation_attacks() -> list[ComponentInfo]:
    """Every registered explanation attack, with plugin, version and status."""
    return registry().components(Kind.EXPLANATION_ATTACK)


def explanation_certifier(name: str, /, **parameters: Any) -> ExplanationCertifier:
    """The explanation certifier registered as `name`, for example `rp.explanation_certifier("interval:relaxed")`.

    Raises UnknownNameError for an unknown name or parameter, PluginError where the plugin failed or its backend is
    missing, ArgumentError for a parameter's value.
    """
    found = registry().create(Kind.EXPLANATION_CERTIFIER, name, **parameters)
    if not isinstance(found, ExplanationCertifier):
        raise PluginError(
            f"{Kind.EXPLANATION_CERTIFIER} {name!r}: its factory returned {found!r}, which is no "
            "rp.ExplanationCertifier"
        )
    return found


def explanation_certifiers() -> list[ComponentInfo]:
    """Every registered explanation certifier, with plugin, version and status."""
    return registry().components(Kind.EXPLANATION_CERTIFIER)
