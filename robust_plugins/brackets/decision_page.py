"""`write_report`: comparisons as one self-contained HTML page, with a plot and the attacked samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from robust_plugins.brackets.balls_comparison import BallsComparison
from robust_plugins.brackets.comparison import Comparison, comparison_table, sampling
from robust_plugins.brackets.pages import needed, write_page
from robust_plugins.errors import ArgumentError


def write_report(
    path: str | Path,
    comparisons: Comparison | BallsComparison[Comparison] | Sequence[Comparison],
    *,
    title: str,
    samples: int = 6,
    about: Mapping[str, str] | None = None,
) -> Path:
    """Writes `comparisons` (one per radius, of the same samples and components) as a page that needs no other file.

    It holds the table, accuracy against eps, and at the largest radius up to `samples` successes of the strongest
    attack: the image, the attacked image and their difference, where the inputs are images of shape (channels,
    height, width) with 1 or 3 channels. `about` is said at its end, as `{"model": ..., "command": ...}`. Missing
    folders are made; an older page is replaced. Returns the path. Raises ArgumentError for an empty list and for a file
    that holds something else, PluginError where matplotlib or jinja2 is missing.
    """
    several = tuple(comparisons) if isinstance(comparisons, BallsComparison | list | tuple) else (comparisons,)
    if not several or not all(isinstance(one, Comparison) for one in several):
        what = ", ".join(sorted({type(one).__name__ for one in several})) or "empty"
        raise ArgumentError(
            "comparisons", what, accepted="one rp.Comparison or more",
            hint="Run rp.compare for classes, once for each radius; its other results have `plot` and `to_frame`.",
        )  # fmt: skip
    needed()
    from robust_plugins.brackets.decision_plots import accuracy_plot, attacked_samples

    held = BallsComparison(several)
    pictures, caption = attacked_samples(max(several, key=lambda c: c.ball.largest), samples)
    return write_page(
        path,
        "decisions.html",
        about=about or {},
        title=title,
        table=comparison_table(several),
        conclusion=held.conclusion().splitlines(),
        sampling=sampling(several),
        contradiction=bool(held.crossings),
        held=any(c.bracket.complete for c in several),
        count=len(several[0].y),
        seed=several[0].seed,
        plot=accuracy_plot(several),
        pictures=pictures,
        caption=caption,
    )
