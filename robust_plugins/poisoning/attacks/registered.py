"""Attacks on training data by the names under which plugins registered them, and the built-in ones."""

from __future__ import annotations

from typing import Any

from robust_plugins.poisoning.attacks.backdoors import DynamicBackdoor, StaticBackdoor
from robust_plugins.poisoning.attacks.builtin import CoordinatePoisoning, GradientAlignment, LossAscent, RandomPoisoning
from robust_plugins.poisoning.attacks.goals import BullseyePolytope
from robust_plugins.poisoning.attacks.interface import PoisoningAttack
from robust_plugins.registry.hookspecs import Register, hookimpl
from robust_plugins.registry.information import ComponentInfo, Kind
from robust_plugins.registry.registry import build, registry


@hookimpl
def register_poisoning_attacks(register: Register) -> None:
    """Registers the attacks of this package."""
    register("poison:random", RandomPoisoning)
    register("poison:loss-ascent", LossAscent)
    register("poison:alignment", GradientAlignment)
    register("poison:coordinates", CoordinatePoisoning)
    register("poison:backdoor", StaticBackdoor)
    register("poison:dynamic-backdoor", DynamicBackdoor)
    register("poison:bullseye", BullseyePolytope)


def poisoning_attack(name: str, /, **parameters: Any) -> PoisoningAttack:
    """The attack on training data registered as `name`, for example `rp.poisoning_attack("poison:random", count=20)`.

    Raises UnknownNameError for an unknown name or parameter, PluginError where the plugin failed or its backend is
    missing, ArgumentError for a parameter's value.
    """
    return build(Kind.POISONING_ATTACK, PoisoningAttack, name, **parameters)


def poisoning_attacks() -> list[ComponentInfo]:
    """Every registered attack on training data, with plugin, version and status."""
    return registry().components(Kind.POISONING_ATTACK)
