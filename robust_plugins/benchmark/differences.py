"""`differences`: what changed between two stores, in what was asked, with what, and what came out."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from robust_plugins.benchmark.auditing import Finding, Findings, audit
from robust_plugins.benchmark.columns import Columns, joined
from robust_plugins.benchmark.records import box_words
from robust_plugins.harness.table import Table

QUESTION = ("model", "data", "sample", "norm", "eps", "clip", "box", "component", "kind", "seed")
"""What makes two records answers to the same question: names, since hashes change with what was improved."""

CHANGED = 1e-4
"""Relative to the larger of 1 and the margins: a smaller difference is rounding."""


@dataclass(frozen=True, eq=False)
class Differences:
    """Two stores, old and new, and the pairs of records that answer the same question."""

    old: Columns
    new: Columns
    pairs: NDArray[np.int64]
    """Places of (old, new), one row for each question that both answered."""

    @property
    def made(self) -> Table:
        """Where the two were made with other things: weights, parameters, versions, machines."""
        rows = []
        for name, of in (
            ("weights", ("model", "data", "model_hash")), ("component", ("component", "parameters")),
            ("inputs", ("data", "input_hash")),
        ):  # fmt: skip
            old, new = (_by(columns, of) for columns in (self.old, self.new))
            rows += [
                (f"{name} of {', '.join(key)}", *_short(old[key], new[key]))
                for key in old
                if key in new and old[key] != new[key]
            ]
        before, after = (_versions(columns) for columns in (self.old, self.new))
        rows += [
            (f"version of {key}", before.get(key, "none"), after.get(key, "none"))
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ]
        for column in ("machine", "device", "threads", "batch_size"):
            said = [sorted({str(_plain(v)) for v in columns[column]}) for columns in (self.old, self.new)]
            if said[0] != said[1]:
                rows.append((column.replace("_", " "), ", ".join(said[0]), ", ".join(said[1])))
        return Table(("made with", "old", "new"), tuple(rows), words=3)

    @property
    def asked(self) -> Table:
        """Questions that only one of the two answers, by model, data, component and ball."""
        rows = []
        for word, columns, mine in (("old", self.old, self.pairs[:, 0]), ("new", self.new, self.pairs[:, 1])):
            alone = np.setdiff1d(np.arange(len(columns)), mine)
            groups = columns.groups(alone, "model", "data", "component", "norm", "eps", "clip", "box")
            rows += [(word, *_where(columns, int(group[0])), str(len(group))) for group in groups]
        return Table(("only in", "model", "data", "component", "ball", "records"), tuple(rows), words=5)

    @property
    def verdicts(self) -> Table:
        """Verdicts that changed, by model, data, component and ball: how many, from which to which."""
        before, after = self.pairs.T
        changed = self.pairs[self.old["verdict"][before] != self.new["verdict"][after]]
        rows = []
        for group in _grouped(self.new, changed[:, 1], changed):
            moves = Counter((self.old["verdict"][a], self.new["verdict"][b]) for a, b in group)
            rows += [(*_where(self.new, int(group[0][1])), a, b, str(n)) for (a, b), n in moves.most_common()]
        return Table(("model", "data", "component", "ball", "old", "new", "records"), tuple(rows), words=6)

    @property
    def figures(self) -> Table:
        """Accuracy, margin and time of each component where both have answers: old, new, and the paired difference."""
        rows = []
        for group in _grouped(self.new, self.pairs[:, 1], self.pairs):
            before, after = group.T
            kind = str(self.new["kind"][after[0]])
            good = "certified" if "certifier" in kind else "unknown"
            shares = [(c["verdict"][p] == good).mean() for c, p in ((self.old, before), (self.new, after))]
            gaps = self.new["margin"][after] - self.old["margin"][before]
            size = np.maximum(1.0, np.fmax(abs(self.new["margin"][after]), abs(self.old["margin"][before])))
            moved = np.isfinite(gaps) & (np.abs(gaps) > CHANGED * size)
            both = (self.old["seconds"][before] > 0) & (self.new["seconds"][after] > 0)
            ratios = self.new["seconds"][after[both]] / self.old["seconds"][before[both]]
            rows.append((
                *_where(self.new, int(after[0])), str(len(group)),
                f"{100 * shares[0]:.1f} %", f"{100 * shares[1]:.1f} %",
                str(int(moved.sum())), f"{np.median(gaps[moved]):+.3g}" if moved.any() else "none",
                f"{np.median(ratios):.2f} ({np.quantile(ratios, 0.25):.2f}-{np.quantile(ratios, 0.75):.2f})"
                if len(ratios) else "not measured",
            ))  # fmt: skip
        titles = ("model", "data", "component", "ball", "records", "old", "new", "margins changed", "by (median)",
                  "time, new / old")  # fmt: skip
        return Table(titles, tuple(rows), words=4)

    @cached_property
    def contradictions(self) -> tuple[Findings, list[Finding]]:
        """Contradictions of records of one store with those of the other, where both are of the same weights."""
        both = joined([self.old, self.new])
        findings = audit(both)
        border = len(self.old)
        return findings, [f for f in findings.violations if (f.first < border) != (f.second < border)]

    def __str__(self) -> str:
        parts = [
            f"{len(self.old)} records in the old store, {len(self.new)} in the new one; "
            f"{len(self.pairs)} answer the same questions.",
        ]
        for title, table, none in (
            ("Made with", self.made, "Both were made with the same weights, parameters and versions."),
            ("Asked of one alone", self.asked, "Both were asked the same questions."),
            ("Changed verdicts", self.verdicts, "No verdict changed."),
            ("Figures (accuracy: not broken, or certified)", self.figures, ""),
        ):
            if table.rows:
                parts.append(f"{title}\n{table}")
            elif none:
                parts.append(none)
        findings, crossing = self.contradictions
        lines = [f"  {f.rule}: {findings.sentence(f)}" for f in crossing[:20]]
        parts.append(f"Contradictions between the two: {len(crossing)}" + ("\n" + "\n".join(lines) if lines else ""))
        return "\n\n".join(parts)


def differences(old: Columns, new: Columns) -> Differences:
    """Pairs the records of two stores that answer the same question: the last one of each where there are several."""
    both = joined([old, new])
    codes = both.codes(*QUESTION)
    latest = {int(code): i for i, code in enumerate(codes[: len(old)])}
    paired = {int(code): (latest[int(code)], i) for i, code in enumerate(codes[len(old) :]) if int(code) in latest}
    return Differences(old, new, np.array(list(paired.values()), np.int64).reshape(-1, 2))


def _grouped(columns: Columns, places: NDArray[np.int64], pairs: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """`pairs` apart by model, data, component and ball, which the new store's `places` tell."""
    row = {int(place): i for i, place in enumerate(places)}
    groups = columns.groups(places, "model", "data", "kind", "component", "norm", "eps", "clip", "box")
    return [pairs[[row[int(place)] for place in group]] for group in groups]


def _where(columns: Columns, place: int) -> tuple[str, str, str, str]:
    norm, eps, box = (columns[name][place] for name in ("norm", "eps", "box"))
    ball = f"{norm} {eps:.4g}{f' ({box_words(box)})' if box else ''}" if norm else "none"
    return columns["model"][place], columns["data"][place], columns["component"][place], ball


def _by(columns: Columns, names: tuple[str, ...]) -> dict[tuple[str, ...], frozenset[str]]:
    """For each combination of all names but the last the values of the last."""
    found: dict[tuple[str, ...], set[str]] = {}
    for values in {*zip(*(columns[name] for name in names), strict=True)}:
        found.setdefault(values[:-1], set()).add(values[-1])
    return {key: frozenset(values) for key, values in found.items()}


def _short(before: frozenset[str], after: frozenset[str]) -> tuple[str, str]:
    """Values that only one side has; their number where there are many."""
    ends = [sorted(mine - other) for mine, other in ((before, after), (after, before))]
    old, new = (", ".join(v[:40] for v in values) if len(values) <= 2 else f"{len(values)} others" for values in ends)
    return old or "the same and no more", new or "the same and no more"


def _versions(columns: Columns) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for text in dict.fromkeys(columns["versions"]):
        for name, version in (json.loads(text) if text else {}).items():
            found.setdefault(name, set()).add(str(version))
    return {name: ", ".join(sorted(values)) for name, values in found.items()}


def _plain(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value
