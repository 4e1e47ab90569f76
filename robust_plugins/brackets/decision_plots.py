"""The pictures of decisions: accuracies as bars or against eps, and attacked samples."""

from __future__ import annotations

from collections.abc import Sequence

from robust_plugins.brackets.ball_names import ball_name
from robust_plugins.brackets.comparison import Comparison
from robust_plugins.decisions.results import AttackResult
from robust_plugins.harness.pictures import attacked_images, is_image, svg


def accuracy_plot(comparisons: Sequence[Comparison]) -> str:
    """Accuracy against eps as SVG for a page; empty where there is no such curve."""
    figure = comparisons[0].curves(comparisons) if comparisons else None
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
