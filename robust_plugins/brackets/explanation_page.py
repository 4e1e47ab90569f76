"""`write_explanation_report`: brackets of explanations as one self-contained HTML page, with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from robust_plugins.brackets.ball_names import ball_name
from robust_plugins.brackets.explanation_comparison import (
    ExplanationComparison,
    explanation_conclusion,
    explanation_table,
)
from robust_plugins.brackets.pages import needed, write_page
from robust_plugins.errors import ArgumentError


def write_explanation_report(
    path: str | Path,
    comparisons: Sequence[ExplanationComparison],
    *,
    title: str,
    samples: int = 6,
    feature_names: Sequence[str] = (),
    about: Mapping[str, str] | None = None,
) -> Path:
    """Writes `comparisons` (one per radius, of the same samples and components) as a page that needs no other file.

    It holds a table per radius, the deviation against eps, and for up to `samples` samples at the largest radius the
    attribution with its lowest and highest value: of images as images, of tables as intervals. `about` is
    said at its end, as `{"model": ..., "command": ...}`. Missing folders are made; an older page is replaced. Returns
    the path. Raises ArgumentError for an empty list and for a file that holds something else, PluginError where
    matplotlib or jinja2 is missing.
    """
    if not comparisons:
        raise ArgumentError(
            "comparisons", "empty", accepted="one or more", hint="Run rp.compare_explanations for each radius first."
        )
    needed()
    from robust_plugins.brackets.explanation_plots import deviation_plot, explained_samples

    widest = max(comparisons, key=lambda c: c.ball.largest)
    pictures, caption = explained_samples(widest, samples, feature_names)
    first = comparisons[0]
    return write_page(
        path,
        "explanations.html",
        about=about or {},
        title=title,
        tables=[{"ball": ball_name(c.ball), "figures": explanation_table(c)} for c in comparisons],
        conclusion=explanation_conclusion(comparisons).splitlines(),
        contradiction=any(c.crossings for c in comparisons),
        held=any(c.deviation.complete for c in comparisons),
        count=len(first.y),
        number={"logit": "the logit", "margin": "the margin", "loss": "the loss"}[first.of],
        radius=first.radius,
        seed=first.seed,
        plot=deviation_plot(comparisons),
        pictures=pictures,
        caption=caption,
    )
