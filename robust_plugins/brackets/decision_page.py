"""`write_report`: comparisons as one self-contained HTML page, with a plot and the attacked samples."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from robust_plugins.brackets.comparison import Comparison, comparison_table, conclusion
from robust_plugins.errors import ArgumentError, PluginError


def write_report(path: str | Path, comparisons: Sequence[Comparison], *, title: str, samples: int = 6) -> Path:
    """Writes `comparisons` (one per radius, of the same samples and components) as a page that needs no other file.

    It holds the table, accuracy against eps, and at the largest radius up to `samples` successes of the strongest
    attack: the image, the attacked image and their difference, where the inputs are images of shape (channels,
    height, width) with 1 or 3 channels. Missing folders are made. Returns the path. Raises ArgumentError for an empty
    list, PluginError where matplotlib or jinja2 is missing.
    """
    if not comparisons:
        raise ArgumentError(
            "comparisons", "empty", accepted="one or more", hint="Run rp.compare for each radius first."
        )
    missing = [module for module in ("jinja2", "matplotlib") if find_spec(module) is None]
    if missing:
        raise PluginError(f"a report needs {' and '.join(missing)}; install: pip install 'robust_plugins[report]'")
    from jinja2 import Environment, PackageLoader

    from robust_plugins.brackets.decision_plots import accuracy_plot, attacked_samples

    environment = Environment(loader=PackageLoader("robust_plugins.brackets"), autoescape=True)
    widest = max(comparisons, key=lambda c: c.ball.largest)
    pictures, caption = attacked_samples(widest, samples)
    page = environment.get_template("decisions.html").render(
        title=title,
        table=comparison_table(comparisons),
        conclusion=conclusion(comparisons).splitlines(),
        contradiction=any(c.crossings for c in comparisons),
        held=any(c.bracket.complete for c in comparisons),
        count=len(comparisons[0].y),
        seed=comparisons[0].seed,
        plot=accuracy_plot(comparisons),
        pictures=pictures,
        caption=caption,
        versions={name: version(name) for name in ("robust_plugins", "torch")},
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target
