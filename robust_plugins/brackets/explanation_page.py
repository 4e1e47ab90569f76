"""`write_explanation_report`: brackets of explanations as one self-contained HTML page, with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from robust_plugins.brackets.ball_names import ball_name
from robust_plugins.brackets.balls_comparison import BallsComparison
from robust_plugins.brackets.explanation_comparison import (
    ExplanationComparison,
    explanation_table,
)
from robust_plugins.brackets.pages import needed, write_page
from robust_plugins.errors import ArgumentError


def write_explanation_report(
    path: str | Path,
    comparisons: ExplanationComparison | BallsComparison[ExplanationComparison] | Sequence[ExplanationComparison],
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
    several = tuple(comparisons) if isinstance(comparisons, BallsComparison | list | tuple) else (comparisons,)
    if not several or not all(isinstance(one, ExplanationComparison) for one in several):
        what = ", ".join(sorted({type(one).__name__ for one in several})) or "empty"
        raise ArgumentError(
            "comparisons", what, accepted="one rp.ExplanationComparison or more",
            hint="Run rp.compare_explanations, for one radius or a list of them.",
        )  # fmt: skip
    held = BallsComparison(several)
    needed()
    from robust_plugins.brackets.explanation_plots import deviation_plot, explained_samples

    widest = max(several, key=lambda c: c.ball.largest)
    pictures, caption = explained_samples(widest, samples, feature_names)
    first = several[0]
    return write_page(
        path,
        "explanations.html",
        about=about or {},
        title=title,
        tables=[{"ball": ball_name(c.ball), "figures": explanation_table(c)} for c in several],
        conclusion=held.conclusion().splitlines(),
        contradiction=bool(held.crossings),
        held=any(c.deviation.complete for c in several),
        count=len(first.y),
        number={"logit": "the logit", "margin": "the margin", "loss": "the loss"}[first.of],
        radius=first.radius,
        seed=first.seed,
        plot=deviation_plot(several),
        pictures=pictures,
        caption=caption,
    )
