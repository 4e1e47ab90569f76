"""The pictures of decisions: accuracies as bars or against eps, and attacked samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robust_plugins.brackets.ball_names import ball_name
from robust_plugins.brackets.comparison import Comparison
from robust_plugins.decisions.results import AttackResult
from robust_plugins.harness.pictures import (
    Curve,
    against_radius,
    attacked_images,
    drawn,
    is_image,
    legend_below,
    svg,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def accuracy_curves(comparisons: Sequence[Comparison]) -> Figure | None:
    """Attacked and certified accuracy against eps; the robust accuracy lies in the shaded band.

    Comparisons with one eps per sample have no place on the axis and are left out. None where fewer than two remain.
    """
    points = sorted(
        ((c.ball.radii, c) for c in comparisons if not isinstance(c.ball.radii, tuple)), key=lambda point: point[0]
    )
    if len(points) < 2:
        return None
    high, low = ([drawn(half) for half in halves] for halves in zip(*(c.bracket for _, c in points), strict=True))
    curves = [
        Curve(row.name, row.half, [drawn(c.rows[index].accuracy) for _, c in points])
        for index, row in enumerate(points[0][1].rows)
    ]
    kind = type(points[0][1].ball).__name__
    figure, axes = against_radius(
        [radius for radius, _ in points], (low, high), curves, axis=f"eps ({kind}, input units)", label="accuracy"
    )
    axes.axhline(drawn(points[0][1].clean), color="0.4", linestyle=":", label="clean")
    axes.set_ylim(-0.02, 1.02)
    legend_below(figure, axes)
    return figure


def accuracy_plot(comparisons: Sequence[Comparison]) -> str:
    """The curves as SVG for a page; empty where there are none."""
    figure = accuracy_curves(comparisons)
    return "" if figure is None else svg(figure, "accuracy")


def attacked_samples(comparison: Comparison, samples: int) -> tuple[str, str]:
    """`samples` successes of the strongest attack as SVG: x, x' and x' - x; and a caption.

    Both are empty where no attack succeeded on a sample that was classified correctly, or where the inputs are no
    images of shape (channels, height, width) with 1 or 3 channels.
    """
    attacks = [row for row in comparison.rows if isinstance(row.result, AttackResult)]
    if not attacks or not is_image(comparison.x):
        return "", ""
    strongest = min(attacks, key=lambda row: row.accuracy or 0.0)
    assert isinstance(strongest.result, AttackResult)
    result = strongest.result
    found = (result.success & comparison.correct).nonzero().flatten().tolist()[:samples]
    if not found:
        return "", ""
    titles = [(f"x: {int(comparison.y[i])}", f"x': {int(result.logits[i].argmax())}") for i in found]
    figure = attacked_images(comparison.x, result.x_adv, found, titles, comparison.ball.clip)
    caption = (
        f"{strongest.name} at {ball_name(comparison.ball)}: the sample x with its label, the input x' that was found "
        "with the model's decision, and the change"
    )
    return svg(figure, "samples"), caption
