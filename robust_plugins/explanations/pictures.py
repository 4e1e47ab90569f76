"""Pictures of explanations: attributions of images and of tables, with their bounds and what attacks found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robust_plugins.harness.pictures import UNSIGNED, is_image, picture, said, show_image, show_signed
from robust_plugins.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEATURES = 64
"""At most so many features of a table are drawn, those with the largest attributions."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanations:
    """Explanations of a batch are drawn from these, each shaped like the inputs."""

    value: Tensor
    """The attributions."""
    bounds: Interval | None = None
    """The lowest and the highest ones that are proved."""
    found: Tensor | None = None
    """What an attack found."""
    found_by: str = "an attack"
    x: Tensor | None = None
    """The inputs."""
    titles: Sequence[str] = ()
    """The name of each sample."""
    clip: tuple[float, float] | None = None

    def title(self, sample: int) -> str:
        """The name of one sample."""
        return self.titles[sample] if self.titles else f"sample {sample}"


def explained_figure(what: Explanations, samples: int, names: Sequence[str] = ()) -> Figure:
    """The explanations of the first `samples` samples whose bounds are finite; `names` are those of features.

    Images, of shape (channels, height, width) with 1 or 3 channels, are drawn as images, with a scale for each sample;
    others feature by feature.
    """
    finite = torch.ones(len(what.value), dtype=torch.bool)
    for t in (what.value, *((what.bounds.lower, what.bounds.upper) if what.bounds is not None else ())):
        finite &= t.flatten(1).isfinite().all(1).cpu()
    shown = finite.nonzero().flatten().tolist()[:samples]
    if not shown:
        return said("no sample has an explanation with finite bounds")
    return (_images if is_image(what.value) else _bars)(what, shown, names)


def _images(what: Explanations, shown: list[int], names: Sequence[str]) -> Figure:
    columns: list[tuple[str, Tensor]] = [("attribution", what.value)]
    if what.bounds is not None:
        columns += [("lowest", what.bounds.lower), ("highest", what.bounds.upper)]
    if what.found is not None:
        columns.append(("found", what.found))
    titles = (["input"] if what.x is not None else []) + [title for title, _ in columns]
    titles += ["width"] if what.bounds is not None else []
    figure = picture(1.75 * len(titles) + 0.6, 1.75 * len(shown) + 0.4)
    grid = figure.subplots(len(shown), len(titles), squeeze=False)
    for row, i in enumerate(shown):
        cells = list(grid[row])
        if what.x is not None:
            show_image(cells.pop(0), what.x[i].cpu(), "", what.clip)
        scale = max(t[i].sum(0).abs().max().item() for _, t in columns) or 1.0
        for axes, (_, t) in zip(cells, columns, strict=False):
            signed = show_signed(axes, t[i], scale, "")
        figure.colorbar(signed, ax=cells[len(columns) - 1], ticks=[-scale, 0, scale], format="%.2g")
        if what.bounds is not None:
            width = (what.bounds.upper - what.bounds.lower)[i].mean(0, keepdim=True).cpu()
            most = width.max().item() or 1.0
            drawn = show_image(cells[-1], width, "", (0.0, most), UNSIGNED)
            figure.colorbar(drawn, ax=cells[-1], ticks=[0, most], format="%.2g")
        grid[row][0].set_ylabel(what.title(i))
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    return figure


def _bars(what: Explanations, shown: list[int], names: Sequence[str]) -> Figure:
    flat = what.value.flatten(1).detach().cpu()
    order = flat.abs().mean(0).argsort(descending=True)[:FEATURES].sort().values
    labels = [names[j] if names else f"feature {j}" for j in order.tolist()]
    panels = min(len(shown), 3)  # in rows of three, so that letters keep their size
    rows = -(-len(shown) // panels)
    room = 0.075 * max(map(len, labels))
    figure = picture(2.3 * panels + room + 0.4, rows * (0.2 * len(labels) + 0.6) + 0.6)
    grid = figure.subplots(rows, panels, squeeze=False, sharey=True)
    at = list(range(len(labels)))
    for axes, i in zip(grid.flatten(), shown, strict=False):
        if what.bounds is not None:
            low, up = (t.flatten(1)[i].cpu()[order] for t in (what.bounds.lower, what.bounds.upper))
            axes.hlines(at, low, up, color="0.75", linewidth=5, label="proved interval")
        axes.plot(flat[i, order], at, "o", color="C0", markersize=4, label="attribution")
        if what.found is not None:
            found = what.found.flatten(1)[i].cpu()[order]
            axes.plot(found, at, "x", color="C3", markersize=5, label=f"found by {what.found_by}")
        axes.axvline(0, color="0.4", linewidth=0.8)
        axes.set_title(what.title(i), fontsize="medium")
    for axes in grid.flatten()[len(shown) :]:
        axes.axis("off")
    grid[0][0].set_yticks(at, labels)
    grid[0][0].invert_yaxis()
    handles, texts = grid[0][0].get_legend_handles_labels()
    columns = 1 if max(map(len, texts)) > 36 or figure.get_figwidth() < 5 else 3
    figure.legend(handles, texts, loc="outside lower center", ncols=columns, frameon=False)
    return figure
