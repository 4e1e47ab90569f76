"""Values of options that click does not know: radii as fractions, devices."""

from __future__ import annotations

import math
from typing import Any

import click
import torch


class Number(click.FloatRange):
    """A finite number in a range, also written as a fraction: `8/255`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Reads the text; fails where it is no number of the range."""
        top, slash, bottom = str(value).partition("/")
        if slash:
            try:
                value = float(top) / float(bottom)
            except (ValueError, ZeroDivisionError):
                self.fail(f"{value!r} is no fraction of two numbers: write 8/255.", param, ctx)
        try:
            value = float(value)
        except ValueError:
            self.fail(f"{value!r} is no number: write 0.03 or 8/255.", param, ctx)
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value} is not a finite number.", param, ctx)


def device(ctx: click.Context, param: click.Parameter, value: str) -> torch.device:
    """The device of this name, tried; fails with the cause where it is none of this machine."""
    try:
        found = torch.device(value)
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # unknown, not in this build, or not real
        cause = str(error).splitlines()[0].partition(". ")[0]  # the rest is for the makers of torch
        raise click.BadParameter(f"{value!r} is no device of this machine: {cause}. Try 'cpu'.") from None
    return found


on_device = click.option(
    "--device", callback=device, default="cpu", show_default=True, help="The device to compute on: 'cpu', 'cuda', ..."
)
"""The option `--device` of every command that runs a model."""
