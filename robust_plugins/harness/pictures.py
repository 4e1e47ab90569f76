"""The parts that all pictures are made of: figures, images with their colours, bars, curves against a radius."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from robust_plugins.errors import PluginError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Half = Literal["clean", "attacked", "certified"]

COLOURS: dict[Half, str] = {"clean": "0.45", "attacked": "#c8442b", "certified": "#3b6fb5"}
"""The two halves of a bracket look alike in every picture."""

SIGNED, UNSIGNED = "RdBu_r", "Greys"
"""The colours of numbers around zero, and of numbers from zero on."""


@cache
def _kind() -> Any:
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure of matplotlib that notebooks show, whether pyplot has been imported or not."""

        def _repr_svg_(self) -> str:
            return svg(self, "picture")

    return Picture


def picture(width: float, height: float) -> Figure:
    """An empty figure of this size in inches. Raises PluginError where matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise PluginError('a picture needs matplotlib; install it: pip install "robust_plugins[report]"')
    figure: Figure = _kind()(figsize=(width, height), layout="constrained")
    return figure


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element to be set into a page; `name` keeps its ids apart from other pictures'."""
    import matplotlib as mpl

    out = StringIO()
    # Text stays text; the salt keeps the ids of two pictures on one page apart, and pages reproducible.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def said(text: str) -> Figure:
    """A figure that says in words why there is nothing to draw."""
    figure = picture(6.4, 1.2)
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def is_image(x: Tensor) -> bool:
    """Whether a batch holds images that can be drawn: (batch, channels, height, width) with 1 or 3 channels."""
    return x.dim() == 4 and x.shape[1] in (1, 3)


def show_image(axes: Axes, image: Tensor, title: str, limits: tuple[float, float] | None, colours: str = "gray") -> Any:
    """Draws an image of 1 or 3 channels without ticks, and returns what a colour bar needs.

    `limits` are the values of the ends of its colours; None: the least and the largest value.
    """
    low, high = limits or (float(image.min()), float(image.max()))
    shown = image[0] if len(image) == 1 else ((image - low) / max(high - low, 1e-30)).clamp(0, 1).permute(1, 2, 0)
    drawn = axes.imshow(shown.numpy(), cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    axes.set_title(title, fontsize="medium")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, color="0.75", linewidth=0.6)
    return drawn


def show_signed(axes: Axes, values: Tensor, scale: float, title: str) -> Any:
    """Draws numbers around zero, shaped like an image; of colours the sum, whose sign is kept."""
    return show_image(axes, values.sum(0, keepdim=True).cpu(), title, (-scale, scale), SIGNED)


def attacked_images(
    x: Tensor | None, x_adv: Tensor, shown: Sequence[int], titles: Sequence[tuple[str, str]],
    limits: tuple[float, float] | None,
) -> Figure:  # fmt: skip
    """A column for each sample: x, x' and x' - x with one scale for all; x' alone where x is not given.

    `titles` are those of x and of x', for each sample.
    """
    rows = 1 if x is None else 3
    figure = picture(max(1.5 * len(shown) + 1.2, 3.2), 1.7 * rows + 0.2)
    grid = figure.subplots(rows, len(shown), squeeze=False)
    scale = 0.0 if x is None else max(float((x_adv[i] - x[i]).abs().max()) for i in shown) or 1e-12
    for column, i in enumerate(shown):
        if x is None:
            show_image(grid[0][column], x_adv[i].cpu(), titles[column][1], limits)
            continue
        show_image(grid[0][column], x[i].cpu(), titles[column][0], limits)
        show_image(grid[1][column], x_adv[i].cpu(), titles[column][1], limits)
        change = (x_adv[i] - x[i]).mean(0, keepdim=True).cpu()
        drawn = show_image(grid[2][column], change, "", (-scale, scale), SIGNED)
    for row, label in enumerate(("x'",) if x is None else ("x", "x'", "x' - x")):
        grid[row][0].set_ylabel(label)
    if x is not None:
        figure.colorbar(drawn, ax=list(grid[2]), ticks=[-scale, 0, scale], format="%.2g", shrink=0.9)
    return figure


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart.

    - `name`: what stands beside the bar.
    - `half`: which half of the bracket it is, whose colour it has.
    - `value`: its length; None where there is none, which is said.
    - `ends`: the ends of an interval around the value, drawn as whiskers.
    """

    name: str
    half: Half
    value: float | None
    ends: tuple[float, float] | None = None


def bars(rows: Sequence[Bar], label: str, *, bracket: tuple[float, float] | None = None, share: bool = True) -> Figure:
    """A horizontal bar for each row, in the colours of the halves, with intervals as whiskers and figures beside.

    The band `bracket` is where the truth lies. With `share` the axis is from 0 to 1.
    """
    figure = picture(6.4, 0.42 * len(rows) + 1.3)
    axes = figure.subplots()
    if bracket is not None:
        axes.axvspan(*bracket, color="0.9", label="not known")
    for place, row in enumerate(rows):
        if row.value is None or not math.isfinite(row.value):
            axes.text(0, place, " no answer" if row.value is None else " unbounded", va="center", color="0.4")
            continue
        axes.barh(place, row.value, height=0.6, color=COLOURS[row.half], alpha=0.75)
        if row.ends is not None:
            axes.plot(row.ends, [place, place], color="0.15", linewidth=1.2, marker="|", markersize=8)
        inside = share and row.value > 0.5
        beside = row.value if row.ends is None else max(row.ends)  # the figure stands behind the whisker, not on it
        axes.annotate(
            f"{row.value:.3f}" if share else f"{row.value:.4g}", (0 if inside else beside, place),
            xytext=(6, 0), textcoords="offset points", va="center", ha="left",
            color="white" if inside else "0.15",
            bbox=None if inside else {"facecolor": "white", "alpha": 0.7, "pad": 1, "linewidth": 0},
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [f"{_short(row.name)} ({row.half})" for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(label)
    if share:
        axes.set_xlim(0, 1.02)
    axes.grid(axis="x", alpha=0.3)
    return figure


@dataclass(frozen=True)
class Curve:
    """The figures of one component at each radius, NaN where it has none."""

    name: str
    half: Half
    values: Sequence[float]


def against_radius(
    radii: Sequence[float], band: tuple[Sequence[float], Sequence[float]], curves: Sequence[Curve], *, axis: str,
    label: str,
) -> tuple[Figure, Axes]:  # fmt: skip
    """Curves against the radius, dashed for attacks and solid for certifiers; the truth lies in the shaded band."""
    figure = picture(6.4, 4.2)
    axes = figure.subplots()
    axes.fill_between(radii, *band, color="0.9", label="not known")
    for index, curve in enumerate(curves):
        attacked = curve.half == "attacked"
        axes.plot(
            radii, curve.values, color=f"C{index}", linestyle="--" if attacked else "-",
            marker="v" if attacked else "^", label=f"{_short(curve.name)} ({curve.half})",
        )  # fmt: skip
    axes.set(xlabel=axis, ylabel=label)
    axes.grid(alpha=0.3)
    return figure, axes


def legend_below(figure: Figure, axes: Axes) -> None:
    """The legend under the axes, so that the picture keeps its width."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels), default=0) < 36 else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def drawn(value: float | None) -> float:
    """A number for a plot, which leaves NaN out: there is nothing to draw where there is no answer."""
    return math.nan if value is None or not math.isfinite(value) else value


def _short(name: str, most: int = 44) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
