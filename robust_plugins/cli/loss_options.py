"""The loss of `robust-plugins train`: a recipe, and the options that add to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import click

from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError, UnknownNameError
from robust_plugins.losses import (
    GradientCertLoss,
    HessianPenalty,
    L1Penalty,
    L2Penalty,
    MixedLoss,
    Ramp,
    Regulariser,
    WarmUp,
    recipe,
    recipes,
)
from robust_plugins.losses.ramp import Shape
from robust_plugins.registry.naming import parse_component

OPTIONS = {
    "ball": "--eps, --norm and --clip",
    "schedule": "--ramp",
    "regularisers": "--l1, --warm-up and --regulariser",
}
"""What sets the parameters of a recipe that cannot be written as literals."""


REGULARISERS: dict[str, type[Regulariser]] = {
    "gradient-cert": GradientCertLoss,
    "l1": L1Penalty,
    "l2-gradient": L2Penalty,
    "hessian": HessianPenalty,
    "warm-up": WarmUp,
}
"""The words of `--regulariser`."""


def regulariser(spec: str, ball: Ball) -> Regulariser:
    """The regulariser that `--regulariser` names, such as `"gradient-cert(alpha=0.5)"`; its ball is that of --eps."""
    name, written = parse_component(spec)
    if name not in REGULARISERS:
        raise UnknownNameError("regulariser", name, REGULARISERS)
    kind = REGULARISERS[name]
    known = {f.name for f in fields(kind)}
    for parameter in written:
        if parameter not in known - {"ball", "schedule"}:
            raise UnknownNameError(f"parameter of {name!r}:", parameter, known - {"ball", "schedule"})
    try:
        return kind(**written | ({"ball": ball} if "ball" in known else {}))
    except TypeError as error:  # a value of the wrong type, or a required one that is missing
        raise ArgumentError(
            f"parameters of {name}", written, accepted=", ".join(sorted(known - {"ball", "schedule"})), hint=f"{error}."
        ) from error


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
    spec: str,
    ball: Ball,
    epochs: int,
    ramp: Ramp | None,
    warm_up: bool,
    l1: float,
    specs: Sequence[str] = (),
    *,
    own_radius: bool,
) -> MixedLoss:
    """The recipe with what the options add to it; options that it has no use for are refused."""
    name, written = parse_component(spec)
    accepted = {info.name: info.parameters for info in recipes()}
    mine = accepted[name]
    for parameter in written.keys() & OPTIONS.keys():
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
    added = [regulariser(other, ball) for other in specs]
    asked = "--warm-up" if warm_up else "--regulariser"
    if (warm_up or any(isinstance(other, WarmUp) for other in added)) and (
        loss.schedule is None or loss.schedule(0) >= 1
    ):
        raise click.BadParameter(
            f"{name!r} is at full strength from the start, and it acts during a ramp: leave it out.",
            param_hint=f"'{asked}'",
        )
    if warm_up:
        added.append(WarmUp())
    if l1:
        added.append(L1Penalty(weight=l1))
    return replace(loss, regularisers=(*loss.regularisers, *added)) if added else loss
