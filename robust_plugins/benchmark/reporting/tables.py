"""The tables of a report, for its page and its markdown alike."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from robust_plugins.benchmark.columns import Columns
from robust_plugins.benchmark.records import box_words
from robust_plugins.benchmark.reporting.settings import Setting
from robust_plugins.benchmark.reporting.time import Spent
from robust_plugins.harness.table import Table
from robust_plugins.harness.wilson import Share, percent

SILENT = ("timeout", "error", "unsupported")
"""The verdicts that are no answer."""


def ball_words(setting: Setting) -> str:
    """The norm, or the box, and the valid range of a setting."""
    ball = f"{setting.norm} ({box_words(setting.box)})" if setting.box else setting.norm
    return f"{ball}, inputs in {setting.clip}" if setting.clip else f"{ball}, inputs not clipped"


MOST = 6
"""Radii that a table has columns for; the others follow in further tables, as a page is only so wide."""


def accuracy_tables(setting: Setting, title: str) -> list[tuple[str, Table]]:
    """Accuracies of one setting with their 95 % intervals: a row for each component and bound, a column per radius.

    The first of them has the title.
    """
    usual = setting.count
    rows = [("the model", "clean", *[_with_range(setting.clean, usual)] * len(setting.radii))]
    for component, kind in setting.components:
        cells = [setting.cell(component, eps) for eps in setting.radii]
        texts = ["not run" if c is None else _with_range(c.share, usual, c.silent) for c in cells]
        rows.append((component, "attacked" if kind == "attack" else "certified", *texts))
    for name, bound, kind in (
        ("all attacks and witnesses", setting.attacked, "upper bound"),
        ("all certifiers", setting.certified, "lower bound"),
    ):  # fmt: skip
        rows.append((name, kind, *[_with_range(bound(eps), usual) for eps in setting.radii]))
    titles = ("accuracy of", "is", *[f"{setting.norm} {eps:.4g}" for eps in setting.radii])
    return _pieces(title, Table(titles, tuple(rows)))


def _pieces(title: str, table: Table) -> list[tuple[str, Table]]:
    """The table cut into some of `MOST` columns of figures, each with all of its columns of words."""
    words = table.words
    found = []
    for start in range(words, max(len(table.columns), words + 1), MOST):
        titles, *rows = [row[:words] + row[start : start + MOST] for row in (table.columns, *table.rows)]
        found.append((title if start == words else "", Table(titles, tuple(rows), words)))
    return found


def _with_range(share: Share, usual: int, silent: int = 0) -> str:
    """A share and its interval, with the number of samples where that is not the usual one."""
    if not share.total:
        return f"no answer for {silent}" if silent else "no samples"
    notes = [f"n = {share.total}"] if share.total != usual else []
    notes += [f"{silent} silent"] if silent else []
    return f"{share} ({share.range})" + (f"; {', '.join(notes)}" if notes else "")


def failure_table(columns: Columns) -> Table:
    """Records without an answer by component and cause, most frequent first; numbers in causes are not told apart."""
    counts: Counter[tuple[str, str, str]] = Counter()
    first: dict[tuple[str, str, str], int] = {}
    for place in np.flatnonzero(np.isin(columns["verdict"], SILENT)).tolist():
        cause = re.sub(r"\d+(\.\d+)?", "#", columns["error"][place])
        key = (columns["component"][place], columns["verdict"][place], cause)
        counts[key] += 1
        first.setdefault(key, place)
    rows = []
    for (component, verdict, _), count in counts.most_common():
        place = first[(component, verdict, _)]
        where = f"{columns['model'][place]}, {columns['data'][place]} sample {int(columns['sample'][place])}"
        rows.append((component, verdict, columns["error"][place] or "no cause given", where, str(count)))
    return Table(("component", "no answer", "cause", "first at", "records"), tuple(rows), words=4)


def time_table(entries: Sequence[Spent], columns: Columns) -> Table:
    """Time of each component: per record, in all, and its parts."""
    rows = []
    for entry in entries:
        own = columns["seconds"][columns["component"] == entry.component]
        own = own[np.isfinite(own)]
        rows.append((
            entry.component, str(entry.records), seconds(float(np.median(own))), seconds(float(own.max())),
            seconds(entry.total), _seconds(entry.model), _seconds(entry.backend), _seconds(entry.layer),
        ))  # fmt: skip
    titles = (
        "component",
        "records",
        "median",
        "longest",
        "all",
        "model (estimated)",
        "backend, model included",
        "our layer",
    )
    return Table(titles, tuple(rows), words=1)


def seconds(value: float) -> str:
    """A time with its unit, three digits at most."""
    if value < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.3g} s" if value < 1000 else f"{value / 3600:.2g} h"


def _seconds(value: float | None) -> str:
    return "not measured" if value is None else seconds(value)


def explanation_tables(columns: Columns) -> list[tuple[str, Table]]:
    """For each model, data set and norm: the widths of explanations that were reached, and proved, at each radius."""
    rows = np.flatnonzero(np.isin(columns["kind"], ("explanation attack", "explanation certifier")))
    found = []
    for setting in columns.groups(rows, "model", "data", "norm", "clip", "box"):
        first = int(setting[0])
        radii = sorted(set(columns["eps"][setting].tolist()))
        lines = []
        for group in columns.groups(setting, "kind", "component"):
            attack = columns["kind"][group[0]] == "explanation attack"
            cells = [_widths(columns, group[columns["eps"][group] == eps], attack=attack) for eps in radii]
            lines.append((str(columns["component"][group[0]]), "reached" if attack else "proved", *cells))
        box = str(columns["box"][first])
        ball = f"{columns['norm'][first]}{f' ({box_words(box)})' if box else ''}"
        title = f"{columns['model'][first]} on {columns['data'][first]}, {ball}"
        titles = ("widest feature of", "is", *[f"{columns['norm'][first]} {eps:.4g}" for eps in radii])
        found += _pieces(title, Table(titles, tuple(lines)))
    return found


def _widths(columns: Columns, places: np.ndarray, *, attack: bool) -> str:
    if not len(places):
        return "not run"
    widths = columns["margin"][places]
    finite = widths[np.isfinite(widths)]
    silent = int(np.isin(columns["verdict"][places], SILENT).sum())
    median = f"median {np.median(finite):.3g}" if len(finite) else "no width"
    word, verdict = ("changed", "falsified") if attack else ("certified", "certified")
    missing = f", {silent} without answer" if silent else ""
    if attack and np.isnan(columns["success"][places]).all():
        return f"{median} (n = {len(places)}{missing})"  # it was only measured how far they change
    share = Share(int((columns["verdict"][places] == verdict).sum()), len(places))
    return f"{median}; {word} {share} (n = {len(places)}{missing})"


def poisoning_tables(columns: Columns) -> list[tuple[str, Table]]:
    """For each model and data set: the predictions that poison changed, and those that are proved to stay."""
    rows = np.flatnonzero(np.isin(columns["kind"], ("poisoning attack", "poisoning certifier")))
    found = []
    for setting in columns.groups(rows, "model", "data"):
        lines = []
        for group in columns.groups(setting, "kind", "component"):
            attack = columns["kind"][group[0]] == "poisoning attack"
            said = Share(int((columns["verdict"][group] == ("falsified" if attack else "certified")).sum()), len(group))
            word = "changed" if attack else "proved to stay"
            lines.append((str(columns["component"][group[0]]), word, str(said), f"{said.range} %", str(len(group))))
        first = int(setting[0])
        titles = ("component", "predictions", "share", "95 % interval", "records")
        found.append((f"{columns['model'][first]} on {columns['data'][first]}", Table(titles, tuple(lines))))
    return found


def provenance_table(columns: Columns) -> Table:
    """The versions, machines, devices, seeds and times that the records were made with."""
    versions: dict[str, set[str]] = {}
    for text in dict.fromkeys(columns["versions"]):
        for name, version in (json.loads(text) if text else {}).items():
            versions.setdefault(name, set()).add(str(version))
    created = sorted(value for value in columns["created"] if value)
    machines = {
        (m or "a machine without a name", d, int(t))
        for m, d, t in zip(columns["machine"], columns["device"], np.nan_to_num(columns["threads"]), strict=True)
    }
    rows = [
        *[(name, ", ".join(sorted(values))) for name, values in sorted(versions.items())],
        *[("machine", f"{m}: {d}, {t} thread{'' if t == 1 else 's'}") for m, d, t in sorted(machines)],
        ("seeds", ", ".join(f"{int(s)}" for s in sorted({s for s in columns["seed"] if np.isfinite(s)}))),
        ("batch sizes", ", ".join(f"{int(s)}" for s in sorted({s for s in columns["batch_size"] if np.isfinite(s)}))),
        ("written", " to ".join(sorted({created[0], created[-1]})) if created else "at unknown times"),
    ]
    return Table(("what", "which"), tuple(rows))


def weights_table(columns: Columns) -> Table:
    """Each model and data set with the hash of its weights, the number of its samples, and its clean accuracy."""
    rows = []
    for group in columns.groups(np.arange(len(columns)), "model", "data", "model_hash"):
        first = int(group[0])
        clean = group[columns["kind"][group] == "clean"]
        right = Share(int((columns["verdict"][clean] != "falsified").sum()), len(clean))
        inputs = len(set(columns["input_hash"][group]))
        rows.append((
            columns["model"][first], columns["data"][first], columns["model_hash"][first], str(inputs),
            percent(right.value),
        ))  # fmt: skip
    return Table(("model", "data", "hash of the weights", "inputs", "clean accuracy"), tuple(rows), words=3)
