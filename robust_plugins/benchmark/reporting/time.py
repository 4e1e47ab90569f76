"""Pictures of models and of time: clean against certified accuracy, instances decided within a time, and its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robust_plugins.benchmark.columns import Columns
from robust_plugins.benchmark.reporting.brackets import shortened
from robust_plugins.benchmark.reporting.settings import Setting
from robust_plugins.benchmark.reporting.style import PANEL, Look, drawing, figure

POINTS = 400


def pareto_panel(group: Sequence[Setting], eps: float, looks: Mapping[str, Look], name: str) -> str:
    """Clean against certified accuracy of several models at one radius; a line above each to its attacked accuracy.

    The models that no other one beats in both are joined by a line.
    """
    drawn, axes = figure()
    points = [(100 * s.clean.value, 100 * s.certified(eps).value, 100 * s.attacked(eps).value, s.model) for s in group]
    front = sorted(
        (p for p in points if not any(q[0] >= p[0] and q[1] >= p[1] and q[:2] != p[:2] for q in points)),
        key=lambda p: p[0],
    )
    axes.plot([p[0] for p in front], [p[1] for p in front], color="0.5", linewidth=1, zorder=1)
    for clean, certified, attacked, model in points:
        look = looks[model]
        axes.plot((clean, clean), (certified, attacked), color=look.colour, linewidth=1.2, alpha=0.6)
        axes.plot(clean, attacked, marker="_", color=look.colour, markersize=9)
        axes.plot(clean, certified, marker=look.mark, color=look.colour, markersize=7)
    axes.margins(x=0.12)
    axes.set(xlabel="clean accuracy (%)", ylabel="certified accuracy (%)", ylim=(-3, 103))
    return drawing(drawn, name)


def cactus_panel(columns: Columns, kind: str, looks: Mapping[str, Look], name: str) -> tuple[str, int]:
    """How many samples each component of one kind decided within a time each; returns the picture and their number.

    A certifier decides by proving or refuting, an attack by succeeding.
    """
    from matplotlib.ticker import NullFormatter

    drawn, axes = figure()
    decided = np.isin(columns["verdict"], ("certified", "falsified") if kind == "certifier" else ("falsified",))
    rows = np.flatnonzero((columns["kind"] == kind) & decided & (columns["seconds"] > 0))
    for group in columns.groups(rows, "component"):
        seconds = np.sort(columns["seconds"][group])
        kept = np.unique(np.linspace(0, len(seconds) - 1, min(POINTS, len(seconds))).round().astype(int))
        look = looks[str(columns["component"][group[0]])]
        axes.plot(
            seconds[kept], kept + 1, color=look.colour, linestyle=look.line, linewidth=1.4,
            marker=look.mark, markersize=4.5, markevery=[len(kept) - 1], clip_on=False,
        )  # fmt: skip
    axes.set_xscale("log")
    if len(rows):  # whole decades, whose ends alone are labelled: what lies between would overlap
        low, high = np.log10(columns["seconds"][rows].min()), np.log10(columns["seconds"][rows].max())
        axes.set_xlim(10 ** np.floor(low - 1e-9), 10 ** np.ceil(high + 1e-9))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="wall-clock seconds per sample", ylabel=f"{'decided' if kind == 'certifier' else 'broken'} (count)")
    axes.set_ylim(bottom=-0.05 * axes.get_ylim()[1])  # so that no number stands in the corner, where the two axes meet
    return drawing(drawn, name), len(rows)


@dataclass(frozen=True)
class Spent:
    """Where the time of one component went, in seconds of wall-clock time over all its records."""

    component: str
    records: int
    total: float
    backend: float | None
    """What the backend took, the model's passes included; None where nobody measured it."""
    model: float | None
    """An estimate of the model's part: the queries, times the time of one clean pass; None without either."""

    @property
    def layer(self) -> float | None:
        """The time that is left: our checks, projections and judgements."""
        return None if self.backend is None else max(self.total - self.backend, 0.0)


def spent(columns: Columns) -> list[Spent]:
    """The time of each component, longest first."""
    clean = (columns["kind"] == "clean") & np.isfinite(columns["seconds"])
    passing = {
        columns["model_hash"][g[0]]: float(np.median(columns["seconds"][g]))
        for g in columns.groups(np.flatnonzero(clean), "model_hash")
    }
    found = []
    rows = np.flatnonzero((columns["kind"] != "clean") & np.isfinite(columns["seconds"]))
    for group in columns.groups(rows, "component"):
        seconds, backend, queries = (columns[name][group] for name in ("seconds", "backend_seconds", "queries"))
        total = float(seconds.sum())
        per = np.array([passing.get(model, np.nan) for model in columns["model_hash"][group]])
        passes = queries * per
        known = float(backend.sum()) if np.isfinite(backend).all() else None
        found.append(Spent(
            str(columns["component"][group[0]]), len(group), total,
            known,
            min(float(passes.sum()), total if known is None else known) if np.isfinite(passes).all() else None,
        ))  # fmt: skip
    return sorted(found, key=lambda entry: -entry.total)


PARTS = (("model (estimated)", "#0072B2", ""), ("backend", "#E69F00", "////"), ("our layer", "#009E73", "\\\\"),
         ("not split", "#D9D9D9", ""))  # fmt: skip
"""The parts of the time, as legends name them and bars fill them."""


def split_panel(entries: Sequence[Spent], name: str) -> str:
    """The parts of each component's time as bars."""
    drawn, axes = figure((PANEL[0], 0.8 + 0.26 * len(entries)), words=True)
    axes.grid(visible=False, axis="y")
    for place, entry in enumerate(entries):
        parts = [0.0, 0.0, 0.0, 0.0]
        if entry.layer is None:
            parts[0] = entry.model or 0.0
            parts[3] = entry.total - parts[0]
        else:
            parts[0] = min(entry.model or 0.0, entry.backend or 0.0)
            parts[1], parts[2] = (entry.backend or 0.0) - parts[0], entry.layer
        start = 0.0
        for width, (_, fill, hatch) in zip(parts, PARTS, strict=True):
            axes.barh(place, width, left=start, color=fill, hatch=hatch, edgecolor="white", linewidth=0.4, height=0.7)
            start += width
    axes.set_yticks(range(len(entries)), [shortened(entry.component, 24) for entry in entries])
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.set(xlabel="wall-clock seconds, all records")
    return drawing(drawn, name)
