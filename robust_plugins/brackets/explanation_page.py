"""`write_explanation_report`: brackets of explanations as one self-contained HTML page, with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from robust_plugins.brackets.ball_names import ball_name
from robust_plugins.brackets.explanation_comparison import (
    ExplanationComparison,
    explanation_conclusion,
    explanation_table,
)
from robust_plugins.errors import ArgumentError, PluginError


def write_explanation_report(
    path: str | Path,
    comparisons: Sequence[ExplanationComparison],
    *,
    title: str,
    samples: int = 6,
    feature_names: Sequence[str] = (),
) -> Path:
    """Writes `comparisons` (one per radius, of the same samples and components) as a page that needs no other file.

    It holds a table per radius, the deviation against eps, and for up to `samples` samples at the largest radius the
    attribution with its lowest and highest value: of images as images, of tables as intervals. Missing folders are
    made. Returns the path. Raises ArgumentError for an empty list, PluginError where matplotlib or jinja2 is missing.
    """
    if not comparisons:
        raise ArgumentError(
            "comparisons", "empty", accepted="one or more", hint="Run rp.compare_explanations for each radius first."
        )
    missing = [module for module in ("jinja2", "matplotlib") if find_spec(module) is None]
    if missing:
        raise PluginError(f"a report needs {' and '.join(missing)}; install: pip install 'robust_plugins[report]'")
    from jinja2 import Environment, PackageLoader

    from robust_plugins.brackets.explanation_plots import deviation_plot, explained_samples

    environment = Environment(loader=PackageLoader("robust_plugins.brackets"), autoescape=True)
    widest = max(comparisons, key=lambda c: c.ball.largest)
    pictures, caption = explained_samples(widest, samples, feature_names)
    first = comparisons[0]
    page = environment.get_template("explanations.html").render(
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
        versions={name: version(name) for name in ("robust_plugins", "torch")},
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target
