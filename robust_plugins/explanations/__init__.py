"""Explanations of a model, which are gradients with respect to its input: what can be proved about them over a ball."""

from __future__ import annotations

from robust_plugins.explanations import certifiers
from robust_plugins.explanations.attack import ExplanationAttack, ExplanationAttackResult
from robust_plugins.explanations.certificate import ExplanationCertificate
from robust_plugins.explanations.certifier import ExplanationCertifier
from robust_plugins.explanations.corner_pgd import CornerPGD
from robust_plugins.explanations.explained import Explained
from robust_plugins.explanations.registered import (
    explanation_attack,
    explanation_attacks,
    explanation_certifier,
    explanation_certifiers,
)
from robust_plugins.registry.hookspecs import Register, hookimpl

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
