"""The loss of `robust-plugins train`: a recipe, and the options that add to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from robust_plugins.balls import Ball
from robust_plugins.losses import L1Penalty, MixedLoss, Ramp, Regulariser, WarmUp, recipe, recipes
from robust_plugins.losses.ramp import Shape
from robust_plugins.registry.naming import parse_component

OPTIONS = {"ball": "--eps, --norm and --clip", "schedule": "--ramp", "regularisers": "--l1 and --warm-up"}
"""What sets the parameters of a recipe that cannot be written as literals."""


def ramp_of(span: tuple[float, float] | None, shape: Shape | None) -> Ramp | None:
    """The ramp that --ramp and --ramp-shape describe; None without them."""
    if span is None:
        if shape is not None:
            raise click.BadParameter(
                "it is the shape of --ramp START END: give that, too.", param_hint="'--ramp-shape'"
            )
        return None
    if span[0] > span[1]:
        raise click.BadParameter(
            f"{span[0]:g} {span[1]:g} ends before it starts: give the earlier epoch first.", param_hint="'--ramp'"
        )
    return Ramp(start=span[0], end=span[1], shape=shape or "smooth")


def loss_of(
    spec: str, ball: Ball, epochs: int, ramp: Ramp | None, warm_up: bool, l1: float, *, own_radius: bool
) -> MixedLoss:
    """The recipe with what the options add to it; options that it has no use for are refused."""
    name, written = parse_component(spec)
    accepted = {info.name: info.parameters for info in recipes()}
    mine = accepted[name]
    for parameter in written.keys() & OPTIONS.keys() & set(mine):
        raise click.BadParameter(
            f"{spec!r}: `{parameter}` cannot be written there: it is set by {OPTIONS[parameter]}.",
            param_hint="'--recipe'",
        )
    if own_radius and "ball" not in mine:
        raise click.BadParameter(f"{name!r} trains for no radius: give --eps alone.", param_hint="'--eval-eps'")
    offered: dict[str, Any] = {"ball": ball, "epochs": epochs}
    if ramp is not None:
        ramped = ", ".join(other for other, theirs in accepted.items() if "schedule" in theirs)
        if "schedule" not in mine:
            raise click.BadParameter(
                f"{name!r} has no ramp: leave it out, or choose one of {ramped}.", param_hint="'--ramp'"
            )
        if "epochs" in written:
            raise click.BadParameter(
                f"{spec!r} sets the ramp by `epochs` already: give one of the two.", param_hint="'--ramp'"
            )
        offered["schedule"] = ramp
    # What the name says wins: of the recipe's own, `epochs` is how long the training is that its ramp is made for.
    loss = recipe(spec, **{key: value for key, value in offered.items() if key in mine and key not in written})
    added: list[Regulariser] = []
    if warm_up:
        if loss.schedule is None or loss.schedule(0) >= 1:
            raise click.BadParameter(
                f"{name!r} is at full strength from the start, and it acts during a ramp: leave it out.",
                param_hint="'--warm-up'",
            )
        added.append(WarmUp())
    if l1:
        added.append(L1Penalty(weight=l1))
    return replace(loss, regularisers=(*loss.regularisers, *added)) if added else loss
