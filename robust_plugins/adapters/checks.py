"""Checks that several of the attacks have in common: numbers among their fields, and balls and targets of a call."""

from __future__ import annotations

import math

from robust_plugins.balls import Ball, Box
from robust_plugins.errors import ArgumentError


def check_counts(**fields: int) -> None:
    """Raises ArgumentError for a field that is no integer of at least 1."""
    for name, value in fields.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ArgumentError(name, repr(value), accepted="an integer of at least 1", hint="Take one or more.")


def check_positive(**fields: float) -> None:
    """Raises ArgumentError for a field that is no finite number above 0."""
    for name, value in fields.items():
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ArgumentError(name, repr(value), accepted="a finite number above 0", hint=f"Choose `{name}` > 0.")


def check_norm(attack: str, ball: Ball, *norms: float) -> None:
    """Raises ArgumentError for a ball in another norm than the attack searches in."""
    if ball.norm not in norms:
        names = {math.inf: "Linf", 2.0: "L2", 1.0: "L1"}
        raise ArgumentError(
            "ball",
            f"an {names.get(ball.norm, type(ball).__name__)} ball, for {attack}",
            accepted=" or ".join(names[norm] for norm in norms),
            hint="Give such a ball, or choose another attack.",
        )


def check_one_radius(attack: str, ball: Ball) -> None:
    """Raises ArgumentError for a ball whose features have radii of their own, which many libraries cannot be told."""
    if isinstance(ball, Box):
        raise ArgumentError(
            "ball", f"a Box, for {attack}", accepted="Linf, L2 or L1: its library knows one radius for all features",
            hint="Use art:pgd or an attack of rp:, which take a Box.",
        )  # fmt: skip


def check_clip(attack: str, ball: Ball, why: str) -> None:
    """Raises ArgumentError for a ball without the clip range that the attack needs."""
    if ball.clip is None:
        raise ArgumentError(
            "ball", f"one without a clip range, for {attack}", accepted=f"one with a clip range: {why}",
            hint="Give the range of the inputs, for example clip=(0, 1).",
        )  # fmt: skip


def check_untargeted(attack: str, targeted: bool, why: str = "it has no targeted form") -> None:
    """Raises ArgumentError for a target that the attack cannot be given."""
    if targeted:
        raise ArgumentError(
            "target", "given", accepted=f"None for {attack}: {why}",
            hint="Leave `target` out, or choose another attack.",
        )  # fmt: skip
