"""Pictures of brackets: accuracy against the radius, distributions of radii, verdicts, and pairs of margins."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from robust_plugins.benchmark.reporting.settings import ANSWERS, Setting
from robust_plugins.benchmark.reporting.style import KNOWN, PANEL, VERDICTS, Look, drawing, figure

POINTS = 1500
"""At most so many points or steps are drawn in one picture, spread evenly over all."""


def accuracy_panel(setting: Setting, looks: Mapping[str, Look], name: str) -> str:
    """Clean, attacked and certified accuracy against the radius; what is not decided is filled."""
    drawn, axes = figure()
    radii = setting.radii
    halves = [[share(eps) for eps in radii] for share in (setting.attacked, setting.certified)]
    high, low = ([100 * share.value for share in half] for half in halves)
    axes.fill_between(radii, low, high, color=KNOWN, linewidth=0)
    if not math.isnan(setting.clean.value):
        axes.axhline(100 * setting.clean.value, color="0.35", linestyle=":", linewidth=1.2)
    for component, kind in setting.components:
        cells = [setting.cell(component, eps) for eps in radii]
        answered = kind != "attack"
        values = [
            math.nan if c is None or (c.silent == c.asked) or (answered and not c.asked) else 100 * c.share.value
            for c in cells
        ]
        axes.plot(radii, values, **(looks[component].drawn | {"alpha": 0.9}))
    for half, values in zip(halves, (high, low), strict=True):
        ends = [share.interval for share in half]
        below = [max(v - 100 * a, 0) for v, (a, _) in zip(values, ends, strict=True)]
        above = [max(100 * b - v, 0) for v, (_, b) in zip(values, ends, strict=True)]
        axes.errorbar(radii, values, (below, above), color="0.25", linewidth=1.6, elinewidth=0.8, capsize=2)
    if min(radii) > 0 and max(radii) > 30 * min(radii):
        axes.set_xscale("log")
    axes.set(xlabel=f"radius eps ({setting.units})", ylabel="accuracy (%)", ylim=(-3, 103))
    return drawing(drawn, name)


def radius_panel(setting: Setting, name: str) -> str:
    """For each radius the share of samples whose certified radius, and whose attacked one, is at most that."""
    drawn, axes = figure()
    end = max(setting.radii) or 1.0
    curves = []
    for values, colour, line in (
        (setting.attacked_radius, "#D55E00", "--"),
        (setting.certified_radius, "#0072B2", "-"),
    ):
        # Where everybody certified the largest radius, nobody knows what is beyond it: the curve ends there.
        finite = np.sort(values[values < end] if line == "-" else values[values <= end])
        x = np.concatenate(([0.0], finite, [end]))
        y = 100 * np.concatenate(([0], np.arange(1, len(finite) + 1), [len(finite)])) / max(setting.count, 1)
        curves.append((x, y))
        kept = _thinned(len(x))
        axes.step(x[kept], y[kept], where="post", color=colour, linestyle=line, linewidth=1.4)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    high, low = (y[np.searchsorted(x, grid, side="right") - 1] for x, y in reversed(curves))
    axes.fill_between(grid, low, high, step="post", color=KNOWN, linewidth=0)
    axes.set(xlabel=f"radius ({setting.units})", ylabel="samples (%)", ylim=(-3, 103), xlim=(0, end))
    return drawing(drawn, name)


def verdict_panel(setting: Setting, name: str) -> str:
    """How each certifier answered at each radius, as bars that are all as long: where it stops deciding."""
    bars = [cell for cell in setting.cells if cell.kind == "certifier"]
    certifiers = list(dict.fromkeys(cell.component for cell in bars))
    bars.sort(key=lambda cell: (certifiers.index(cell.component), cell.eps))
    drawn, axes = figure((PANEL[0], max(1.9, 0.9 + 0.2 * len(bars) + 0.25 * len(certifiers))))
    axes.grid(visible=False)
    places, at = [], 0.0
    for i, cell in enumerate(bars):
        new = i > 0 and bars[i - 1].component != cell.component
        at += 1.9 if new else 1.0
        places.append(at)
    start = np.zeros(len(bars))
    for verdict in ANSWERS:
        widths = np.array([100 * cell.counts[verdict] / cell.asked for cell in bars])
        fill, hatch = VERDICTS[verdict]
        axes.barh(places, widths, left=start, color=fill, hatch=hatch, edgecolor="white", linewidth=0.4, height=0.86)
        start += widths
    axes.set_yticks(places, [f"{cell.eps:.4g}" for cell in bars], fontsize=8)
    for component in certifiers:
        own = [p for p, cell in zip(places, bars, strict=True) if cell.component == component]
        axes.text(0, own[0] - 0.62, shortened(component, 48), fontsize=8, va="bottom", ha="left")
    axes.set_ylim(at + 0.7, places[0] - 1.5 if places else 0)
    axes.spines["left"].set_visible(False)
    axes.tick_params(left=False)
    axes.set(xlabel="samples (%)", ylabel=f"radius eps ({setting.norm})", xlim=(0, 100))
    return drawing(drawn, name)


def margin_panel(setting: Setting, eps: float, name: str) -> tuple[str, str]:
    """The margin that the best attack reached against the one that the best certifier proved, sample by sample.

    Returns the picture and what it shows, in words; both empty where no two margins are of the same sample. Sound
    answers lie on the diagonal or above it.
    """
    best = {}
    for kind in ("attack", "certifier"):
        cells = [c for c in setting.cells if c.kind == kind and c.eps == eps and c.silent < c.asked]
        if not cells:
            return "", ""
        # The best attack leaves the smallest share and margins; the best certifier is one that proves most of them.
        rank = (lambda c: (-c.share.value, -c.margin)) if kind == "attack" else (lambda c: (c.finite, c.share.value))
        best[kind] = max(cells, key=rank).component
    columns, places = setting.columns, setting.places
    margins = {}
    for kind, component in best.items():
        rows = places[(columns["component"][places] == component) & (columns["eps"][places] == eps)]
        rows = rows[np.isfinite(columns["margin"][rows])]
        margins[kind] = dict(zip(columns["sample"][rows].tolist(), columns["margin"][rows].tolist(), strict=True))
    shared = sorted(margins["attack"].keys() & margins["certifier"].keys())
    if len(shared) < 2:
        return "", ""
    proved = np.array([margins["certifier"][i] for i in shared])
    reached = np.array([margins["attack"][i] for i in shared])
    drawn, axes = figure()
    kept = _thinned(len(shared))
    crossed = reached < proved - 1e-5 * np.abs(reached).max()
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.axvline(0, color="0.6", linewidth=0.8)
    low, high = min(proved.min(), reached.min()), max(proved.max(), reached.max())
    axes.plot((low, high), (low, high), color="0.35", linestyle=":", linewidth=1.2)
    axes.scatter(proved[kept], reached[kept], s=9, color="#0072B2", alpha=0.5, linewidths=0)
    axes.scatter(proved[crossed], reached[crossed], s=40, color="#D55E00", marker="x", linewidths=1.4)
    axes.set(xlabel="proved margin (logits)", ylabel="reached margin (logits)")
    more = f", {len(kept)} drawn" if len(kept) < len(shared) else ""
    crossings = f"; {int(crossed.sum())} below the diagonal" if crossed.any() else ""
    pair = f"{best['attack']} against {best['certifier']} at {setting.norm} {eps:.4g}"
    return drawing(drawn, name), f"{pair}, {len(shared)} samples{more}{crossings}"


def shortened(text: str, most: int) -> str:
    """`text`, or its beginning where it is longer than `most` letters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _thinned(count: int) -> np.ndarray:
    """At most `POINTS` places of so many, the first and the last among them."""
    if count <= POINTS:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, POINTS).round().astype(int))
