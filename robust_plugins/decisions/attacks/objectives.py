"""Attacks raise these losses per sample that grow as the decision leaves a label, or comes nearer to a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from robust_plugins.errors import ArgumentError

Loss = Literal["margin", "cross_entropy", "dlr"]
"""The losses by the names that attacks take."""

Objective = Callable[[Tensor], Tensor]
"""From logits (batch, classes) to the values (batch,) that are raised."""

THREE = 3
"""So many classes the difference of logits ratio needs."""


def margin(logits: Float[Tensor, "batch classes"], y: Integer[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """The best other logit less that of `y`: above zero where the decision is not `y`.

    f_6 of Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks", without its floor. It does
    not saturate, whatever the scale of the logits.
    """
    own = y.unsqueeze(1)
    return logits.scatter(1, own, -torch.inf).max(1).values - logits.gather(1, own).squeeze(1)


def cross_entropy(logits: Float[Tensor, "batch classes"], y: Integer[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """The cross-entropy of `y`; its gradient vanishes in floating point where the margin is large."""
    return F.cross_entropy(logits, y, reduction="none")


def difference_of_logits_ratio(
    logits: Float[Tensor, "batch classes"], y: Integer[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """The margin divided by the difference of the largest and the third largest logit; needs three classes.

    Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", equation 6. Neither shift nor scale of the logits changes it.
    """
    _check_three(logits)
    ranked = logits.topk(THREE, dim=1).values
    return margin(logits, y) / (ranked[:, 0] - ranked[:, 2]).clamp(min=torch.finfo(logits.dtype).tiny)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "margin": margin,
    "cross_entropy": cross_entropy,
    "dlr": difference_of_logits_ratio,
}


def objective(loss: Loss, y: Integer[Tensor, " batch"], *, targeted: bool) -> Objective:
    """An attack raises the returned function: the loss of the labels `y`, or its negative for targets `y`.

    For targets the ratio has the denominator of `towards`: that of equation 6 makes it constant where the target ranks
    third.
    """
    if targeted and loss == "dlr":
        return lambda logits: -margin(logits, y) / _spread(logits)
    of = LOSSES[loss]
    return (lambda logits: -of(logits, y)) if targeted else (lambda logits: of(logits, y))


def towards(
    loss: Loss, y: Integer[Tensor, " batch"], target: Integer[Tensor, " batch"]
) -> Callable[[Float[Tensor, "batch classes"]], Float[Tensor, " batch"]]:
    """An attack that leaves `y` by way of one class raises this: the targeted form of `loss` where `y` is known.

    The margin is `z_target - z_y`. The ratio divides it by `z_1 - (z_3 + z_4) / 2` of the ranked logits (Croce and
    Hein 2020, equation 7), by `z_1 - (z_2 + z_3) / 2` where there are three classes.
    """
    if loss == "cross_entropy":
        return objective(loss, target, targeted=True)

    def difference(logits: Tensor) -> Tensor:
        gap = logits.gather(1, target.unsqueeze(1)) - logits.gather(1, y.unsqueeze(1))
        return gap.squeeze(1) / _spread(logits) if loss == "dlr" else gap.squeeze(1)

    return difference


def _spread(logits: Tensor) -> Tensor:
    _check_three(logits)
    ranked = logits.topk(min(THREE + 1, logits.shape[1]), dim=1).values
    return (ranked[:, 0] - ranked[:, -2:].mean(1)).clamp(min=torch.finfo(logits.dtype).tiny)


def _check_three(logits: Tensor) -> None:
    if logits.shape[1] < THREE:
        raise ArgumentError(
            "loss", f"'dlr' for a model of {logits.shape[1]} classes", accepted="a model of three classes or more",
            hint="Take loss='margin'.",
        )  # fmt: skip
