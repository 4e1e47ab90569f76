"""The pictures of explanations on a page, as inline SVG: their bracket against eps, and explained samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from robust_plugins.brackets.ball_names import ball_name
from robust_plugins.brackets.explanation_comparison import ExplanationComparison
from robust_plugins.harness.pictures import Curve, against_radius, legend_below, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def deviation_curves(comparisons: Sequence[ExplanationComparison]) -> Figure | None:
    """Attacked and certified median deviation against eps; the truth lies in the shaded band.

    Comparisons with one eps per sample are left out. None where fewer than two remain.
    """
    points = sorted(
        ((c.ball.radii, c) for c in comparisons if not isinstance(c.ball.radii, tuple)), key=lambda point: point[0]
    )
    if len(points) < 2:
        return None
    low, high = ([_median(side) for side in half] for half in zip(*(c.deviation for _, c in points), strict=True))
    curves = [
        Curve(row.name, row.said, [_median(c.rows[index].deviation) for _, c in points])
        for index, row in enumerate(points[0][1].rows)
    ]
    axis = f"eps ({type(points[0][1].ball).__name__}, input units)"
    radii = [radius for radius, _ in points]
    figure, axes = against_radius(radii, (low, high), curves, axis=axis, label="relative deviation, median")
    # Below this two explanations look alike; the scale is logarithmic above it, and zero has a place.
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylim(bottom=0)
    legend_below(figure, axes)
    return figure


def deviation_plot(comparisons: Sequence[ExplanationComparison]) -> str:
    """The curves as SVG for a page; empty where there are none."""
    figure = deviation_curves(comparisons)
    return "" if figure is None else svg(figure, "deviation")


def _median(deviation: Tensor | None) -> float:
    """For a plot, which leaves NaN out: there is nothing to draw where there is no answer or no finite one."""
    median = math.nan if deviation is None else deviation.median().item()
    return median if math.isfinite(median) else math.nan


def explained_samples(
    comparison: ExplanationComparison, samples: int, feature_names: Sequence[str] = ()
) -> tuple[str, str]:
    """The first `samples` samples with their bounds by the tightest certifier as SVG, and a caption.

    Both are empty where no certifier answered, and for inputs that are neither images nor tables.
    """
    proved = comparison.tightest
    if proved is None or comparison.x.dim() not in (2, 4) or not len(comparison.y):
        return "", ""
    if comparison.x.dim() == 4 and comparison.x.shape[1] not in (1, 3):
        return "", ""
    figure = comparison.plot(samples=samples, feature_names=feature_names)
    number = {"logit": "logit of", "margin": "margin of", "loss": "loss for"}[comparison.of]
    caption = f"Gradients of the {number} class y, bounded by {proved.name} over {ball_name(comparison.ball)}"
    return svg(figure, "explanations"), caption
