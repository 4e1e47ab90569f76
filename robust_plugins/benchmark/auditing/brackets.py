"""Contradictions about explanations and about training data: what was achieved, against what was proved."""

from __future__ import annotations

import json

import numpy as np

from robust_plugins.benchmark.auditing.containment import Points, worst_inside
from robust_plugins.benchmark.auditing.findings import Finding, Rule, Severity, found
from robust_plugins.benchmark.columns import Columns

ROUNDING = 1e-5
"""Relative to the proved bound: how far what was achieved may pass it before it is a contradiction."""

EXPLAINED = ("of", "radius")
"""What a call says about which number is explained, and how far weights may move."""


def bracket_findings(columns: Columns) -> list[Finding]:
    """Explanations and trainings whose brackets cross: more was achieved than was proved to be possible."""
    return _explanations(columns) + _trainings(columns)


def _explanations(columns: Columns) -> list[Finding]:
    """The largest change of a feature, and the deviation, against the proved width and deviation.

    Verdicts are no part of it: those of attacks are about the deviation, those of certifiers about the width.
    """
    kind = columns["kind"]
    columns.derive("_explained", _called(columns, EXPLAINED))
    keys = columns.codes("model_hash", "input_hash", "label", "_explained")
    attacks, claims = (np.flatnonzero(kind == f"explanation {what}") for what in ("attack", "certifier"))
    findings: list[Finding] = []
    for places in columns.groups(attacks, "component_hash"):
        for measure in ("margin", "loss"):  # width, and deviation
            match = worst_inside(columns, claims, Points(places, -columns[measure][places]), keys)
            proved = columns[measure][match.claims]
            with np.errstate(invalid="ignore"):
                excess = -match.values - proved
            slack = ROUNDING * np.abs(proved)
            for severity, of in (
                (Severity.VIOLATION, excess > slack),
                (Severity.NEAR, (excess > 0) & (excess <= slack)),
            ):
                of &= np.isfinite(proved)
                findings += found(Rule.EXPLANATION, severity, match.claims[of], match.points[of], excess[of])
    return findings


def _trainings(columns: Columns) -> list[Finding]:
    """A prediction that poison changed, although it was proved to stay whatever poison the budget allows.

    Model and input stand for the training, the budget and the point that is asked about.
    """
    kind, verdict = columns["kind"], columns["verdict"]
    keys = columns.codes("model_hash", "input_hash", "label", "norm", "eps")
    proved = np.flatnonzero((kind == "poisoning certifier") & (verdict == "certified"))
    changed = np.flatnonzero((kind == "poisoning attack") & (verdict == "falsified"))
    first = {int(key): int(place) for key, place in zip(keys[proved][::-1], proved[::-1], strict=True)}
    pairs = [(first[int(keys[place])], int(place)) for place in changed if int(keys[place]) in first]
    return [Finding(Rule.POISONING, Severity.VIOLATION, a, b, float("nan")) for a, b in pairs]


def _called(columns: Columns, names: tuple[str, ...]) -> list[str]:
    """The part of each record's call that says what is asked."""
    known: dict[str, str] = {}
    for text in dict.fromkeys(columns["parameters"]):
        call = (json.loads(text) if text else {}).get("call", {})
        known[text] = json.dumps({name: call.get(name) for name in names}, sort_keys=True)
    return [known[text] for text in columns["parameters"]]
