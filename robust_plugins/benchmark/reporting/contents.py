"""`Contents`: everything that a report says, gathered once for its page and its markdown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from robust_plugins.benchmark.auditing import Finding, Findings, Severity
from robust_plugins.benchmark.columns import Columns
from robust_plugins.benchmark.reporting.settings import Setting, settings
from robust_plugins.benchmark.reporting.tables import SILENT, ball_words
from robust_plugins.harness.wilson import Share


@dataclass(frozen=True)
class Line:
    """One line of the summary: a setting at the radius where its bracket is widest."""

    setting: Setting
    eps: float

    @property
    def model(self) -> str:
        """The model's name."""
        return self.setting.model

    @property
    def data(self) -> str:
        """The data set's name."""
        return self.setting.data

    @property
    def ball(self) -> str:
        """The norm and the radius."""
        return f"{self.setting.norm} {self.eps:.4g}"

    @property
    def clean(self) -> Share:
        """The clean accuracy."""
        return self.setting.clean

    @property
    def attacked(self) -> str:
        """The upper bound of the robust accuracy, in words where nobody attacked."""
        return str(self.setting.attacked(self.eps)) if self.setting.has["attack"] else "no attack"

    @property
    def certified(self) -> str:
        """The lower bound of the robust accuracy, in words where nobody certified."""
        return str(self.setting.certified(self.eps)) if self.setting.has["certifier"] else "no certifier"

    @property
    def loose(self) -> str:
        """Which side is loose."""
        return self.setting.loose(self.eps)


@dataclass(frozen=True, eq=False)
class Contents:
    """The records, what an audit found in them, and where they are from."""

    title: str
    columns: Columns
    findings: Findings
    stores: tuple[Path, ...]
    studies: tuple[dict[str, Any], ...]
    trainings: tuple[dict[str, Any], ...] = ()
    """As `Store.trainings` gives them."""

    @cached_property
    def settings(self) -> list[Setting]:
        """The models, data sets, norms and ranges about which there are answers on decisions."""
        return settings(self.columns)

    @cached_property
    def summary(self) -> list[Line]:
        """A line for each setting."""
        return [Line(setting, setting.middle) for setting in self.settings]

    @property
    def extent(self) -> str:
        """How much was run, in words."""
        c = self.columns
        balls = len({ball for ball in zip(c["norm"], c["eps"], c["box"], strict=True) if ball[0]})
        samples = len({(d, s) for d, s in zip(c["data"], c["sample"], strict=True)})
        kinds = c["kind"]
        parts = [
            _many(len(set(c["model"])), "model"), _many(len(set(c["data"])), "data set"), _many(balls, "ball"),
            _many(len(set(c["component"][kinds != "clean"])), "component"), _many(samples, "sample"),
        ]  # fmt: skip
        return f"{', '.join(parts[:-1])} and {parts[-1]}: {len(c):,} records"

    @property
    def silence(self) -> str:
        """How many records are without an answer, in words."""
        counts = {name: int((self.columns["verdict"] == name).sum()) for name in SILENT}
        words = [f"{count:,} {name}" for name, count in counts.items() if count]
        return f"Without an answer: {', '.join(words)}." if words else "Every record has an answer."

    @property
    def verdict(self) -> str:
        """Says in a sentence whether the audit found a contradiction."""
        violations = len(self.findings.violations)
        if violations:
            many = _many(violations, "contradiction")
            return f"{many} among {len(self.columns):,} records: in each one of two is wrong."
        return f"No contradiction among {len(self.columns):,} records."

    @property
    def margins_of_error(self) -> str:
        """Says in a sentence how many findings are no contradiction."""
        near, weak = len(self.findings.of(Severity.NEAR)), len(self.findings.of(Severity.WEAK))
        parts = []
        if near:
            parts.append(f"{near:,} come within rounding of one")
        if weak:
            parts.append(f"{weak:,} answers miss what the same component's own answer at another radius implies")
        return f"{'; '.join(parts)}." if parts else ""

    def worst(self, severity: Severity) -> list[tuple[Finding, int, str]]:
        """The worst finding of each kind, how many there are, and the sentence about it."""
        return [(f, count, self.findings.sentence(f)) for f, count in self.findings.grouped(severity)]

    @cached_property
    def files(self) -> list[tuple[str, str]]:
        """The stores with the hash of their content."""
        return [(path.name, _hash(path)) for path in self.stores]

    @property
    def configurations(self) -> list[str]:
        """The configurations of the studies as JSON to be read."""
        return [json.dumps(_said(study), indent=2) for study in self.studies]

    def groups(self) -> list[tuple[str, float, list[Setting]]]:
        """Settings that differ in the model alone, with the radius that they are compared at, and their title."""
        found: dict[tuple[str, ...], list[Setting]] = {}
        for setting in self.settings:
            found.setdefault((setting.data, setting.norm, setting.clip, setting.box), []).append(setting)
        groups = []
        for (data, norm, *_), group in found.items():
            radii = [setting.middle for setting in group]
            eps = sorted(radii)[len(radii) // 2]
            groups.append((f"{data}, {norm} {eps:.4g}", eps, group))
        return groups


def _said(value: Any) -> Any:
    """`value` without what says nothing: None and empty tables, which are the defaults."""
    if isinstance(value, dict):
        return {key: kept for key, item in value.items() if (kept := _said(item)) not in (None, [], {})}
    return [_said(item) for item in value] if isinstance(value, list) else value


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _many(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def caption(setting: Setting, settings: Sequence[Setting]) -> str:
    """Names a panel; its ball only where there are several kinds."""
    norms, ranges = {other.norm for other in settings}, {(other.clip, other.box) for other in settings}
    ball = f", {ball_words(setting)}" if len(ranges) > 1 else f", {setting.norm}" if len(norms) > 1 else ""
    return f"{setting.model} on {setting.data}{ball} (n = {np.size(setting.samples)})"
