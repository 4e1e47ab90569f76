"""The picture of one abstract training: its bounds and its scores, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robust_plugins.harness.pictures import COLOURS, drawn, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def training_figure(
    epochs: Sequence[int],
    widths: Sequence[float],
    nominal: Sequence[float | None],
    certified: Sequence[float | None],
    score: str,
) -> Figure:
    """The width of all bounds after each epoch, and beside it the scores, where there are any, called `score`."""
    scored = any(value is not None for value in (*nominal, *certified))
    figure = picture(8.5 if scored else 4.6, 3.4)
    panels = figure.subplots(1, 2 if scored else 1, squeeze=False)[0]
    epochs_drawn(panels[0], epochs, widths)
    if scored:
        panels[1].plot(epochs, [drawn(v) for v in nominal], marker=".", color=COLOURS["clean"], label="without poison")
        panels[1].plot(epochs, [drawn(v) for v in certified], marker=".", color=COLOURS["certified"], label="certified")
        _whole(panels[1], epochs)
        panels[1].set(xlabel="epoch", ylabel=score)
        panels[1].legend(frameon=False)
        panels[1].grid(alpha=0.3)
    return figure


def epochs_drawn(axes: Axes, epochs: Sequence[int], widths: Sequence[float]) -> None:
    """Draws the certified width against the epochs, on a logarithmic scale where it grows much."""
    axes.plot(epochs, [drawn(width) for width in widths], marker="o", markersize=4, color=COLOURS["certified"])
    finite = [width for width in widths if math.isfinite(width)]
    many = bool(finite) and 0 < 20 * finite[0] < finite[-1]
    axes.set(xlabel="epoch", ylabel="certified width, all parameters", yscale="log" if many else "linear")
    _whole(axes, epochs)
    axes.grid(alpha=0.3)


def _whole(axes: Axes, epochs: Sequence[int]) -> None:
    """Ticks at whole epochs alone, one where there is one."""
    from matplotlib.ticker import MaxNLocator

    if len(epochs) == 1:
        axes.set(xlim=(epochs[0] - 1, epochs[0] + 1), xticks=list(epochs))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
