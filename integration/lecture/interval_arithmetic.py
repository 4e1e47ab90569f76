"""Interval arithmetic: z in [2, 4] times W = 5 is in [10, 20]; and the same for matrices.

    python -m integration.lecture.interval_arithmetic [--out DIR]

An interval with centre m and radius r goes through the layer W z + b to centre W m + b and radius |W| r: each output
takes for each input the end that suits the sign of its weight. The picture shows the box of two inputs, what the layer
makes of it, and the interval around that: the smallest box that holds it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from integration.lecture.parts import Part, Table, picture, run
from robust_plugins.benchmark.reporting.style import COLOURS
from robust_plugins.intervals import Interval, trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WEIGHT = torch.tensor([[1.0, -2.0], [1.5, 0.5]])
BIAS = torch.tensor([0.5, -1.0])
BOX = Interval(torch.tensor([2.0, 0.0]), torch.tensor([4.0, 1.0]))


def through(weight: Tensor, bias: Tensor, z: Interval) -> Interval:
    """What the engine makes of an interval in front of a linear layer."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        batch = Interval(z.lower[None], z.upper[None])
        out = trace(layer, batch.lower).forward(batch)[-1]
    return Interval(out.lower[0], out.upper[0])


def by_centre(weight: Tensor, bias: Tensor, z: Interval) -> Interval:
    """The matrix form: centre and radius."""
    centre, radius = (z.upper + z.lower) / 2, (z.upper - z.lower) / 2
    middle, reach = weight @ centre + bias, weight.abs() @ radius
    return Interval(middle - reach, middle + reach)


def example() -> Interval:
    """The lecture's example: z in [2, 4], W = 5."""
    return through(torch.tensor([[5.0]]), torch.zeros(1), Interval(torch.tensor([2.0]), torch.tensor([4.0])))


def corners(z: Interval) -> Tensor:
    """The corners of a box in the plane, in the order in which its border is drawn."""
    (a, b), (c, d) = z.lower.tolist(), z.upper.tolist()
    return torch.tensor([[a, b], [c, b], [c, d], [a, d], [a, b]])


def draw(out: Interval) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    image = corners(BOX) @ WEIGHT.T + BIAS
    _filled(left, corners(BOX), COLOURS[0], "-", "")
    _filled(right, image, COLOURS[0], "-", "the box, and its image W z + b")
    _filled(right, corners(out), COLOURS[1], "--", "the interval of the image")
    for axes, name in ((left, "z"), (right, "output")):
        axes.set(xlabel=f"{name} 1", ylabel=f"{name} 2")
        axes.margins(0.15)
        axes.grid(alpha=0.25)
    figure.legend(
        *right.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize="small"
    )
    return figure


def _filled(axes: Axes, border: Tensor, colour: str, line: str, label: str) -> None:
    axes.fill(*border.T.tolist(), facecolor=colour, alpha=0.15)
    axes.plot(*border.T.tolist(), color=colour, linestyle=line, label=label)


def make(options: argparse.Namespace) -> Part:
    one, two = example(), through(WEIGHT, BIAS, BOX)
    matrix = by_centre(WEIGHT, BIAS, BOX)
    torch.testing.assert_close((two.lower, two.upper), (matrix.lower, matrix.upper))
    rows = [("5 z", "[2, 4]", _said(one.lower[0], one.upper[0]))]
    for i, name in enumerate(("z1 - 2 z2 + 0.5", "1.5 z1 + 0.5 z2 - 1")):
        rows.append((name, "[2, 4], [0, 1]", _said(two.lower[i], two.upper[i])))
    table = Table(
        name="interval_arithmetic", columns=("expression", "of z in", "is in"), rows=tuple(rows),
        caption="By the engine that all certificates of this package use; the last two are the picture's.",
    )  # fmt: skip
    return Part(
        title="Interval arithmetic", data="none.",
        sentence="Each output takes of each input the end that suits the sign of its weight: centre W m + b, radius "
        "|W| r. Every output's interval is as tight as can be, but how outputs depend on each other is lost.",
        pictures=(picture(draw(two), "interval_arithmetic",
                          "A box through a linear layer: the image is a parallelogram, the interval around it a box."
                          ""),),
        tables=(table,),
    )  # fmt: skip


def _said(low: Tensor, high: Tensor) -> str:
    return f"[{low.item():g}, {high.item():g}]"


def main(arguments: Sequence[str] | None = None) -> None:
    run("interval_arithmetic", make, (), arguments, describe=__doc__)


if __name__ == "__main__":
    main()
