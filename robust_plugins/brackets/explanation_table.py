"""The brackets of explanations, printed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robust_plugins.brackets.table import ball_name
from robust_plugins.registry.information import Kind

if TYPE_CHECKING:
    from rich.table import Table

    from robust_plugins.brackets.explanations import ExplanationComparison, ExplanationRow


def explanation_table(comparison: ExplanationComparison) -> Table:
    """A row per component: median deviation, shares of samples, and the time per sample."""
    from rich import box  # here, so that importing the package stays quick
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("explanations", "are"):
        table.add_column(column)
    for column in columns(comparison):
        table.add_column(column, justify="right")
    for row in comparison.rows:
        table.add_row(row.name, said(row), *cells(comparison, row))
    return table


def columns(comparison: ExplanationComparison) -> list[str]:
    """The titles of what `cells` returns."""
    titles = ["deviation (median)", "top 1 kept"]
    if comparison.k > 1:
        titles.append(f"top {comparison.k} kept")
    if comparison.delta is not None:
        titles.append(f"width <= {comparison.delta:.4g}")
    return [*titles, "ms per sample"]


def cells(comparison: ExplanationComparison, row: ExplanationRow) -> list[str]:
    """One component's figures; where it failed, words."""
    if row.deviation is None or row.keeps_top_1 is None or row.keeps_top_k is None:
        return ["failed"] + [""] * (len(columns(comparison)) - 1)
    shares = [row.keeps_top_1, *([row.keeps_top_k] if comparison.k > 1 else [])]
    shares += [] if row.robust is None else [row.robust]
    figures = [f"{row.deviation.median().item():.4f}", *(f"{share.double().mean().item():.3f}" for share in shares)]
    return [*figures, f"{1000 * row.seconds / len(comparison.y):.3g}"]


def said(row: ExplanationRow) -> str:
    """What is said of a component's figures: that they were found, or that they are proved."""
    return "attacked" if row.kind is Kind.EXPLANATION_ATTACK else "certified"


def explanation_conclusion(comparisons: Sequence[ExplanationComparison]) -> str:
    """In words: what is known of the explanations, what failed, and what contradicts what."""
    lines = []
    for comparison in comparisons:
        low, high = (side.median().item() for side in comparison.deviation)
        top = {1: "keeps_top_1", comparison.k: "keeps_top_k"}
        kept = [
            f"the top {k} are kept for {_between(*comparison.share(what))}" for k, what in sorted(top.items())
        ]  # fmt: skip
        if comparison.delta is not None:
            kept.append(f"no width exceeds {comparison.delta:.4g} for {_between(*comparison.share('robust'))}")
        lines.append(
            f"{ball_name(comparison.ball)}: the median relative deviation is between {low:.4f} and {high:.4f}; "
            f"{'; '.join(kept)}."
        )
    errors = {f"{row.name}: {row.error}" for c in comparisons for row in c.rows if row.error}
    crossings = [f"CONTRADICTION at {ball_name(c.ball)}, {x}" for c in comparisons for x in c.crossings]
    return "\n".join([*lines, *sorted(errors), *(crossings or ["No attack contradicts a certificate."])])


def _between(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f} of the samples"
