"""`rings`: a data set, a recipe for it and a command."""

from __future__ import annotations

import math

import click
import torch
from torch import Tensor

import robust_plugins as rp


def rings(*, samples: int = 200, noise: float = 0.02) -> rp.Dataset:
    """Points on two circles around the middle of the unit square: the inner one is class 0, the outer one class 1."""
    if samples < 8 or noise < 0:
        raise rp.ArgumentError(
            "samples, noise", (samples, noise), accepted="at least 8 points, and noise of at least 0",
            hint="The defaults are 200 and 0.02.",
        )  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(samples) % 2
    angle = 2 * math.pi * torch.rand(samples, generator=draw)
    radius = torch.where(y == 0, 0.15, 0.4)
    x = 0.5 + radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1)
    x = (x + noise * torch.randn(samples, 2, generator=draw)).clamp(0, 1)
    train = slice(0, 3 * samples // 4)
    return rp.Dataset(
        name="rings", x_train=x[train], y_train=y[train], x_test=x[train.stop :], y_test=y[train.stop :], classes=2,
        clip=(0.0, 1.0), feature_names=("right", "up"), class_names=("inner", "outer"),
    )  # fmt: skip


def halves(*, ball: rp.Ball, steps: int = 3) -> rp.MixedLoss:
    """Half of the clean loss and half of that at what `steps` of gradient ascent find."""
    attack = rp.attack("rp:pgd", steps=steps, relative_step=0.5, best=False)
    return rp.MixedLoss(worst=attack, gamma=0.5, ball=ball)


@click.command("rings")
@click.option("--samples", default=200, help="How many points there are.")
def command(samples: int) -> None:
    """Print the rings as a picture of letters."""
    data = rings(samples=samples)
    side = 25
    picture = [[" "] * side for _ in range(side)]
    cells: Tensor = (data.x_train * (side - 1)).round().long()
    for (right, up), label in zip(cells.tolist(), data.y_train.tolist(), strict=True):
        picture[side - 1 - up][right] = ".o"[label]
    click.echo("\n".join("".join(row).rstrip() for row in picture))
