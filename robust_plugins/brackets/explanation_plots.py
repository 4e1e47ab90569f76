"""The pictures of explanations as inline SVG: their bracket against eps, and explained samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robust_plugins.brackets.decision_plots import show_image
from robust_plugins.brackets.explanation_comparison import ExplanationComparison, ExplanationRow
from robust_plugins.brackets.table import ball_name
from robust_plugins.explanations import ExplanationAttackResult, ExplanationCertificate
from robust_plugins.harness.pictures import svg
from robust_plugins.registry.information import Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEATURES = 64
"""At most so many features of a table are drawn, those with the largest attributions."""


def deviation_plot(comparisons: Sequence[ExplanationComparison]) -> str:
    """Attacked and certified median deviation against eps, as SVG; the truth lies in the shaded band.

    Comparisons with one eps per sample are left out. Empty where fewer than two remain.
    """
    from matplotlib.figure import Figure

    points = sorted(
        ((c.ball.radii, c) for c in comparisons if not isinstance(c.ball.radii, tuple)), key=lambda point: point[0]
    )
    if len(points) < 2:
        return ""
    radii = [radius for radius, _ in points]
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    ends = [c.deviation for _, c in points]
    low, high = ([_median(side) for side in half] for half in zip(*ends, strict=True))
    axes.fill_between(radii, low, high, color="0.9", label="not known")
    for index, row in enumerate(points[0][1].rows):
        found = [c.rows[index].deviation for _, c in points]
        attacked = row.kind is Kind.EXPLANATION_ATTACK
        axes.plot(
            radii,
            [_median(d) for d in found],
            color=f"C{index}",
            linestyle="--" if attacked else "-",
            marker="v" if attacked else "^",
            label=f"{row.name} ({row.said})",
        )
    axes.set(xlabel=f"eps ({type(points[0][1].ball).__name__}, input units)", ylabel="relative deviation, median")
    # Below this two explanations look alike; the scale is logarithmic above it, and zero has a place.
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")
    return svg(figure, "deviation")


def _median(deviation: Tensor | None) -> float:
    """For a plot, which leaves NaN out: there is nothing to draw where there is no answer or no finite one."""
    median = math.nan if deviation is None else deviation.median().item()
    return median if math.isfinite(median) else math.nan


def explained_samples(
    comparison: ExplanationComparison, samples: int, feature_names: Sequence[str] = ()
) -> tuple[str, str]:
    """The first `samples` samples with their bounds by the tightest certifier as SVG, and a caption.

    Images, of shape (channels, height, width) with 1 or 3 channels: the input, its attribution, the lowest and the
    highest one, and the width between them. Tables: for each feature the attribution, its interval, and what the
    strongest attack found. Both are empty where no certifier answered, and for other inputs.
    """
    proved = _best(comparison, Kind.EXPLANATION_CERTIFIER, min)
    if proved is None or comparison.x.dim() not in (2, 4):
        return "", ""
    certificate = proved.results[0]
    assert isinstance(certificate, ExplanationCertificate)
    shown = [i for i in range(len(comparison.y)) if certificate.width[i].isfinite().all()][:samples]
    images = comparison.x.dim() == 4
    if not shown or (images and comparison.x.shape[1] not in (1, 3)):
        return "", ""
    draw = _images if images else _bars
    figure = draw(comparison, certificate, shown, feature_names)
    number = {"logit": "logit of", "margin": "margin of", "loss": "loss for"}[comparison.of]
    caption = f"Gradients of the {number} class y, bounded by {proved.name} over {ball_name(comparison.ball)}"
    return svg(figure, "explanations"), caption


def _best(comparison: ExplanationComparison, kind: Kind, choose: Any) -> ExplanationRow | None:
    rows = [row for row in comparison.rows if row.kind is kind and row.deviation is not None]
    return choose(rows, key=lambda row: row.deviation.nan_to_num(posinf=1e30).mean().item()) if rows else None


def _images(
    comparison: ExplanationComparison, certificate: ExplanationCertificate, shown: list[int], names: Sequence[str]
) -> Figure:
    from matplotlib.figure import Figure

    titles = ("input", "attribution", "lowest", "highest", "width")
    figure = Figure(figsize=(1.75 * len(titles), 1.85 * len(shown) + 0.3), layout="constrained")
    grid = figure.subplots(len(shown), len(titles), squeeze=False)
    value, low, up = certificate.value, certificate.gradient.lower, certificate.gradient.upper
    for row, i in enumerate(shown):
        scale = max(t[i].abs().max().item() for t in (value, low, up)) or 1.0
        show_image(grid[row][0], comparison.x[i].cpu(), f"y = {int(comparison.y[i])}", comparison.ball.clip)
        for column, t in enumerate((value, low, up)):
            show_image(grid[row][column + 1], _signed(t[i]), f"±{scale:.3g}", (-scale, scale), "RdBu_r")
        width = (up - low)[i].mean(0, keepdim=True).cpu()
        show_image(grid[row][4], width, f"0 to {width.max():.3g}", (0.0, width.max().item() or 1.0), "Greys")
    for column, title in enumerate(titles):
        grid[0][column].annotate(
            title, (0.5, 1.32), xycoords="axes fraction", ha="center", va="bottom", fontweight="bold"
        )
    return figure


def _bars(
    comparison: ExplanationComparison, certificate: ExplanationCertificate, shown: list[int], names: Sequence[str]
) -> Figure:
    from matplotlib.figure import Figure

    features = comparison.x.shape[1]
    order = certificate.value.abs().mean(0).argsort(descending=True)[:FEATURES]
    order = order if features > FEATURES else torch.arange(features)
    labels = [names[j] if names else str(j) for j in order.tolist()]
    height = 0.2 * len(labels) + 1
    figure = Figure(figsize=(min(2.6 * len(shown) + 1.5, 11), height), layout="constrained")
    grid = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    attacked = _best(comparison, Kind.EXPLANATION_ATTACK, max)
    at = range(len(labels))
    for axes, i in zip(grid, shown, strict=True):
        low, up = (t[i, order].cpu() for t in (certificate.gradient.lower, certificate.gradient.upper))
        axes.hlines(at, low, up, color="0.75", linewidth=5, label="proved interval")
        axes.plot(certificate.value[i, order].cpu(), at, "o", color="C0", markersize=4, label="attribution")
        if attacked is not None and isinstance(attacked.results[0], ExplanationAttackResult):
            found = attacked.results[0].gradient[i, order].cpu()
            axes.plot(found, at, "x", color="C3", markersize=5, label=f"found by {attacked.name}")
        axes.axvline(0, color="0.4", linewidth=0.8)
        axes.set_title(f"sample {i}, y = {int(comparison.y[i])}", fontsize="small")
        axes.tick_params(labelsize="small")
    grid[0].set_yticks(list(at), labels)
    grid[0].invert_yaxis()
    handles, texts = grid[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    return figure


def _signed(attribution: Tensor) -> Tensor:
    """One channel: the sum over colours, whose sign is kept."""
    return attribution.sum(0, keepdim=True).cpu()
