"""`Finding`: two records that cannot both be right, or can only just; and the rules by which such pairs are found."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_plugins.benchmark.columns import Columns


class Rule(StrEnum):
    """The rules that records must keep; the value is what tables call a breach."""

    INSIDE = "attack inside a certified ball"
    RADIUS = "certified radius above an attacked one"
    MARGIN = "margin below the proved one"
    DISAGREE = "certifiers disagree"
    MONOTONE = "verdicts not monotone in the radius"
    CLEAN = "above clean accuracy"
    BALL = "attack outside its ball"
    EXPLANATION = "explanations cross"
    POISONING = "poisoning brackets cross"
    BATCH = "differs between batch sizes"
    MACHINE = "differs between machines"


class Severity(StrEnum):
    """How much a finding means."""

    VIOLATION = "violation"  # one of the two records is wrong
    NEAR = "near"  # would be one, but for a difference that rounding can account for
    WEAK = "weak"  # both may be right, but a component missed what another record of its own implies


@dataclass(frozen=True)
class Finding:
    """Two records, by their places in the columns, that break a rule together."""

    rule: Rule
    severity: Severity
    first: int
    """The record that claims more: the proof, the larger radius, the smaller batch."""
    second: int
    """The record that speaks against it; the same as `first` where one record contradicts itself."""
    excess: float
    """By how much, in the units of the rule: margins, radii, or widths; NaN where it is a matter of yes and no."""


class Findings:
    """The findings of an audit, with the records that it is about."""

    def __init__(self, columns: Columns, found: list[Finding]) -> None:
        """Takes the records and what was found in them."""
        self.columns = columns
        self.found = found

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def of(self, severity: Severity) -> list[Finding]:
        """Those of one severity, in the order of the rules."""
        return [finding for finding in self.found if finding.severity is severity]

    @cached_property
    def violations(self) -> list[Finding]:
        """Those in which one of two records is wrong."""
        return self.of(Severity.VIOLATION)

    @property
    def summary(self) -> str:
        """How many findings there are of each severity, in words."""
        counts = {severity: len(self.of(severity)) for severity in Severity}
        violations = counts[Severity.VIOLATION]
        many = "no violation" if not violations else "1 violation" if violations == 1 else f"{violations} violations"
        return f"{many}, {counts[Severity.NEAR]} near, {counts[Severity.WEAK]} weak"

    def grouped(self, severity: Severity) -> list[tuple[Finding, int]]:
        """The worst finding of each rule, model and pair of components, with how many there are, worst first."""
        groups: dict[tuple[Any, ...], list[Finding]] = {}
        text = self.columns
        for finding in self.of(severity):
            names = [
                text[c][i] for i in (finding.first, finding.second) for c in ("model", "data", "component", "norm")
            ]
            groups.setdefault((finding.rule, *names), []).append(finding)
        worst = [(max(group, key=_size), len(group)) for group in groups.values()]
        return sorted(worst, key=lambda pair: (list(Rule).index(pair[0].rule), -pair[1]))

    def sentence(self, finding: Finding) -> str:
        """The finding in words."""
        return sentence(self.columns, finding)


def _size(finding: Finding) -> float:
    return -1.0 if np.isnan(finding.excess) else finding.excess


def found(
    rule: Rule, severity: Severity, first: NDArray[Any], second: NDArray[Any], excess: NDArray[Any]
) -> list[Finding]:
    """A finding for each place of three arrays of one length."""
    return [Finding(rule, severity, int(a), int(b), float(c)) for a, b, c in zip(first, second, excess, strict=True)]


def sentence(columns: Columns, finding: Finding) -> str:
    """Says in words how the two records contradict each other."""
    first, second = columns.row(finding.first), columns.row(finding.second)
    place = f"{first['model']}, {first['data']} sample {first['sample']}"
    mine, other = said(first), said(second)
    match finding.rule:
        case Rule.BALL:
            words = f"{mine}, {finding.excess:.3g} outside of its ball"
        case Rule.BATCH:
            words = f"in batches of {first['batch_size']} {mine}, of {second['batch_size']} {other}"
        case Rule.MACHINE:
            words = f"{mine} on {_where(first)}, {other} on {_where(second)}"
        case _:
            words = f"{mine}, but {other}"
    return f"{place}: {words}"


def said(row: dict[str, Any]) -> str:
    """Says what one record claims, as part of a sentence."""
    name, kind = row["component"], row["kind"]
    ball = f"{row['norm']} {row['eps']:.6g}" if row["norm"] else ""
    margin = f"{row['margin']:.6g}" if row["margin"] is not None and math.isfinite(row["margin"]) else ""
    if kind == "clean":
        return f"the model decides {row['prediction']} for {row['label']} on the input itself"
    if "attack" in kind:
        reached = f"reached {'the width' if 'explanation' in kind else 'the margin'} {margin}" if margin else "ran"
        distance = "" if row["distance"] is None else f" at distance {row['distance']:.6g}"
        won = {"falsified": " (success)", "unknown": " (no success)"}.get(row["verdict"] or "", f" ({row['verdict']})")
        return f"{name} {reached}{distance} in {ball}{won}"
    bound = "" if not margin else f", {'width at most' if 'explanation' in kind else 'margin at least'} {margin}"
    return f"{name} says {row['verdict']} in {ball}{bound}"


def _where(row: dict[str, Any]) -> str:
    return f"{row['machine'] or 'a machine without a name'} ({row['device']}, threads {row['threads']})"
