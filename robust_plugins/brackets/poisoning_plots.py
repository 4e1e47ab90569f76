"""Pictures of poisoned training: parameters in their bounds, regions that are certified, scores against the budget.

All functions give a matplotlib figure, and need matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.harness.pictures import picture
from robust_plugins.poisoning.abstract.pictures import epochs_drawn
from robust_plugins.poisoning.abstract.run import PoisoningRun
from robust_plugins.poisoning.attacks.interface import PoisonedTrainings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLEAN, POISONED, CERTIFIED = "#1b1b1b", "#c8442b", "#3b6fb5"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Scores against the budget's size, for one setting of the rest."""

    label: str
    sizes: Sequence[float]
    certified: Sequence[float]
    achieved: Sequence[float] | None = None


def bracket_figure(run: PoisoningRun, trainings: Sequence[PoisonedTrainings], pushed: Sequence[int]) -> Figure:
    """Every pushed parameter, less its clean value: its bounds, and what attacks reached; and the widths by epoch.

    `pushed` counts the trained parameters, flattened; at most 24 are drawn.
    """
    low, up, clean = _bounds(run)
    shown = list(pushed[:24])
    reached = torch.cat(
        [torch.cat([p.reshape(len(p), p.shape[1:].numel()) for p in t.parameters.values()], 1) for t in trainings]
    )
    figure = picture(8.5, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    places = range(len(shown))
    finite = bool(low.isfinite().all() and up.isfinite().all())
    if finite:
        left.bar(places, (up - low)[shown].tolist(), bottom=(low - clean)[shown].tolist(), width=0.7, color=CERTIFIED,
                 alpha=0.25, label="certified bounds")  # fmt: skip
    for i, c in enumerate(shown):
        values = (reached[:, c] - clean[c]).tolist()
        left.plot([i] * len(values), values, linestyle="", marker="_", markersize=9, color=POISONED,
                  label=None if i else "poisoned trainings")  # fmt: skip
    left.axhline(0, color=CLEAN, linewidth=0.8, label="clean training")
    left.set(ylabel="value, less that of clean training", xticks=list(places))
    left.set_xticklabels([parameter_name(run, c) for c in shown], rotation=90)
    epochs_drawn(right, [r.epoch for r in run.history], [r.width for r in run.history])
    left.grid(alpha=0.3)
    left.use_sticky_edges = False
    left.autoscale_view()
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    return figure


def parameter_name(run: PoisoningRun, place: int) -> str:
    """One of the trained parameters, counted flattened, by its name and its place there: `0.weight[3, 1]`."""
    for name, bounds in run.parameters.items():
        if place < bounds.lower.numel():
            at = [int(i) for i in torch.unravel_index(torch.tensor(place), bounds.lower.shape)]
            return f"{name}{at}" if at else name
        place -= bounds.lower.numel()
    raise IndexError(place)


def trajectory_figure(
    boxes: Sequence[PoisoningRun],
    clean: Float[Tensor, "times parameters"],
    poisoned: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    *,
    names: Callable[[int], str] | None = None,
) -> Figure:
    """Pairs of parameters through training, inside their growing boxes.

    `boxes` are the runs after each update (or epoch); `clean` (times, parameters) and each of `poisoned` (times,
    trainings, parameters) are the flattened parameters at the start and after each of these updates. `names` calls a
    parameter by its place among them; None: by its own name.
    """
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    called = partial(parameter_name, boxes[0]) if names is None else names
    figure = picture(4.2 * len(pairs), 4.4)
    for axes, (i, j) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        for t, run in enumerate(boxes):
            low, up, _ = _bounds(run)
            corner, size = (low[i].item(), low[j].item()), ((up - low)[i].item(), (up - low)[j].item())
            strength = 0.25 + 0.75 * (t + 1) / len(boxes)
            axes.add_patch(Rectangle(corner, *size, fill=True, facecolor=(*_rgb(CERTIFIED), 0.10 * strength),
                                     edgecolor=(*_rgb(CERTIFIED), strength), linewidth=1.1,
                                     label="certified box" if t == len(boxes) - 1 else None))  # fmt: skip
        first = True
        for paths in poisoned:
            for k in range(paths.shape[1]):
                axes.plot(paths[:, k, i].tolist(), paths[:, k, j].tolist(), color=POISONED, linewidth=0.8, alpha=0.8,
                          marker=".", markersize=3, label="poisoned training" if first else None)  # fmt: skip
                first = False
        axes.plot(
            clean[:, i].tolist(), clean[:, j].tolist(), color=CLEAN, linewidth=1.5, marker=".", label="clean training"
        )
        axes.plot(clean[:1, i].tolist(), clean[:1, j].tolist(), color=CLEAN, marker="o", markersize=6)
        axes.set(xlabel=called(i), ylabel=called(j))
        axes.xaxis.set_major_locator(MaxNLocator(4))  # more labels would run into each other
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.margins(0.05)
        axes.autoscale_view()
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def region_figure(
    runs: Mapping[str, PoisoningRun],
    features: Callable[[Tensor], Tensor],
    points: tuple[Tensor, Tensor],
    *,
    limits: tuple[float, float, float, float],
    scores: Mapping[str, str] | None = None,
    columns: int = 3,
    classes: tuple[str, str] = ("class 0", "class 1"),
    resolution: int = 160,
) -> Figure:
    """Where in the plane every model of a run decides alike: the class certified, or grey where poison can change it.

    `features` makes inputs of points in the plane; `points` (x in the plane, classes 0 and 1) are drawn on top.
    `limits`: left, right, bottom, top. `scores` are written under the runs' titles; `classes` name them in the legend.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    left, right, bottom, top = limits
    xs, ys = torch.linspace(left, right, resolution), torch.linspace(bottom, top, resolution)
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 2)
    columns = min(columns, len(runs))
    rows = -(-len(runs) // columns)
    figure = picture(max(2.9 * columns, 4.0), 2.9 * rows + 0.8)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    shades = ["#c9c9c9", "#f2b8a6", "#a9c6ea"]
    colours = ListedColormap(shades)
    for axes, (title, run) in zip(panels, runs.items(), strict=False):
        like = next(iter(run.parameters.values())).lower
        x = features(grid.to(like.dtype))
        decided = run.certified_prediction(x).view(resolution, resolution)
        axes.imshow((decided + 1).cpu().numpy(), origin="lower", extent=limits, cmap=colours, vmin=0, vmax=2,
                    aspect="auto", interpolation="nearest")  # fmt: skip
        with torch.no_grad():
            z = run.nominal(x)
        border = (z[:, 1] - z[:, 0] if z.shape[1] > 1 else z[:, 0]).view(resolution, resolution)
        axes.contour(xs.numpy(), ys.numpy(), border.cpu().numpy(), levels=[0.0], colors=CLEAN, linewidths=1)
        for label, colour in ((0, "#9c2f17"), (1, "#1f4f8f")):
            own = points[0][points[1] == label]
            axes.plot(
                own[:, 0].tolist(),
                own[:, 1].tolist(),
                linestyle="",
                marker=".",
                markersize=1.6,
                color=colour,
                alpha=0.8,
            )
        under = "" if scores is None else f"\n{scores[title]}"
        axes.set_title(f"{title}{under}", fontsize="medium")
        axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    for axes in panels[len(runs) :]:
        axes.axis("off")
    words = ("poison can change the class", *(f"{name} whatever the poison" for name in classes))
    handles: list[Any] = [Patch(facecolor=shade, label=word) for shade, word in zip(shades, words, strict=True)]
    handles.append(Line2D([], [], color=CLEAN, linewidth=1, label="border without poison"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def curve_figure(
    panels: Mapping[str, Sequence[Curve]], *, score: str, nominal: float | None, sizes: Mapping[str, str]
) -> Figure:
    """Certified scores (solid) and those that attacks achieved (dashed) against the budget, a panel for each kind.

    `sizes` are the horizontal axes' names, by panel; `nominal` is the score without poison.
    """
    figure = picture(4.4 * len(panels), 3.5)
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        if nominal is not None:
            axes.axhline(nominal, color=CLEAN, linestyle=":", linewidth=1, label="without poison")
        for number, curve in enumerate(curves):
            style: dict[str, Any] = {"color": f"C{number}", "markersize": 4}
            axes.plot(curve.sizes, curve.certified, marker="o", label=f"{curve.label}, certified", **style)
            if curve.achieved is not None:
                axes.plot(curve.sizes, curve.achieved, marker="v", linestyle="--", label=f"{curve.label}, attacked",
                          **style)  # fmt: skip
        axes.set(xlabel=sizes[title], ylabel=score, title=title)
        axes.grid(alpha=0.3)
        _legend(axes)
    return figure


def _bounds(run: PoisoningRun) -> tuple[Tensor, Tensor, Tensor]:
    own = dict(run.nominal.named_parameters())
    low = torch.cat([p.lower.flatten() for p in run.parameters.values()])
    up = torch.cat([p.upper.flatten() for p in run.parameters.values()])
    return low, up, torch.cat([own[name].detach().flatten() for name in run.parameters])


def _rgb(colour: str) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return tuple(to_rgb(colour))


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False)
