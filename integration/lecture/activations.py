"""Monotone activations and the intervals of their outputs, each drawn: from the step function to the softmax.

    python -m integration.lecture.activations [--lower -1] [--upper 2] [--out DIR]

What rises maps the ends of an interval to the ends of the output's, which is exact. Each probability of the softmax
rises with its own logit and falls with the others, so that its ends are at corners of the box of all logits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from integration.lecture.parts import Option, Part, Picture, Table, picture, run
from robust_plugins.benchmark.reporting.style import COLOURS
from robust_plugins.intervals import Interval, trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIONS = (
    Option(name="lower", default=-1.0, help="the lower end of the input's interval"),
    Option(name="upper", default=2.0, help="its upper end"),
)  # fmt: skip
OTHER = (-0.5, 0.5)
"""The interval of the second logit, for the softmax of two."""


class Step(nn.Module):
    """1 where the input is not negative, else 0."""

    def forward(self, z: Tensor) -> Tensor:
        return (z >= 0).to(z.dtype)


class FirstProbability(nn.Module):
    """The softmax's probability of the first of two logits."""

    def forward(self, z: Tensor) -> Tensor:
        return z.softmax(1)[:, :1]


ACTIVATIONS = {
    "step": Step(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "ReLU": nn.ReLU(),
    "leaky ReLU": nn.LeakyReLU(0.1),
    "ELU": nn.ELU(),
    "softplus": nn.Softplus(),
    "softmax": FirstProbability(),
}


def bound(name: str, low: float, high: float) -> tuple[float, float]:
    """The interval of the output for inputs between `low` and `high`, by the engine."""
    ends = [[low, OTHER[0]], [high, OTHER[1]]] if name == "softmax" else [[low], [high]]
    z = Interval(*(torch.tensor([end], dtype=torch.float64) for end in ends))
    out = trace(ACTIVATIONS[name], z.lower).forward(z)[-1]
    return out.lower.item(), out.upper.item()


def values(name: str, z: Tensor, other: float = 0.0) -> Tensor:
    """The activation itself; of the softmax with `other` as the second logit."""
    inputs = torch.stack([z, torch.full_like(z, other)], 1) if name == "softmax" else z[:, None]
    with torch.no_grad():
        return ACTIVATIONS[name](inputs)[:, 0]


def draw(name: str, low: float, high: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.3, 1.9), layout="constrained")
    axes = figure.subplots()
    left, right = low - 0.5 * (high - low), high + 0.5 * (high - low)
    z = torch.linspace(left, right, 401, dtype=torch.float64)
    bottom, top = bound(name, low, high)
    axes.axvspan(low, high, color="0.9", linewidth=0)
    axes.axhspan(bottom, top, color=COLOURS[1], alpha=0.15, linewidth=0)
    for end in (bottom, top):
        axes.axhline(end, color=COLOURS[1], linestyle="--", linewidth=1)
    if name == "softmax":
        axes.fill_between(z, values(name, z, OTHER[1]), values(name, z, OTHER[0]), color=COLOURS[0], alpha=0.35)
    axes.plot(z, values(name, z), color=COLOURS[0])
    axes.set(xlim=(left, right), xlabel="z1" if name == "softmax" else "z", title=name)
    return figure


def make(options: argparse.Namespace) -> Part:
    low, high = options.lower, options.upper
    pictures: list[Picture] = []
    rows = []
    for name in ACTIVATIONS:
        bottom, top = bound(name, low, high)
        caption = f"[{bottom:.4g}, {top:.4g}]"
        pictures.append(picture(draw(name, low, high), f"activation_{name.replace(' ', '_')}", caption))
        rows.append((name, f"{bottom:.4f}", f"{top:.4f}"))
    table = Table(
        name="activations", columns=("activation", "lower", "upper"), rows=tuple(rows),
        caption=f"The interval of the output for z in [{low:g}, {high:g}]; of the softmax of two logits that of the "
        f"first probability, where the second logit is in [{OTHER[0]:g}, {OTHER[1]:g}] (blue band).",
    )  # fmt: skip
    return Part(
        title="Monotone activations keep intervals exact", data="none.",
        sentence="What rises maps the ends of the input's interval (grey) to the ends of the output's (orange), and "
        "nothing is lost; a softmax falls with the other logits, and takes their opposite ends.",
        pictures=tuple(pictures), tables=(table,),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    run("activations", make, OPTIONS, arguments, describe=__doc__)


if __name__ == "__main__":
    main()
