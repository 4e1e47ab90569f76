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
"""The parameters that say which number is explained, and how far weights may move."""

TRAINED = ("budget", "training")
"""The parameters that say what the poisoner may do, and to which training."""


def bracket_findings(columns: Columns) -> list[Finding]:
    """Explanations and trainings whose brackets cross: more was achieved than was proved to be possible."""
    explanations = _crossed(columns, "explanation", EXPLAINED, Rule.EXPLANATION)
    return explanations + _crossed(columns, "poisoning", TRAINED, Rule.POISONING)


def _crossed(columns: Columns, subject: str, question: tuple[str, ...], rule: Rule) -> list[Finding]:
    """Attacks of one subject against its certifiers: verdicts, and the largest value that was reached."""
    kind, verdict = columns["kind"], columns["verdict"]
    about = f"_{subject}"
    columns.derive(about, _asked(columns, question))
    keys = columns.codes("model_hash", "input_hash", "label", about)
    strict = columns.codes("model_hash", "input_hash", "label", about, "_allowed")
    attacks = np.flatnonzero(kind == f"{subject} attack")
    claims = np.flatnonzero(kind == f"{subject} certifier")
    certified = claims[verdict[claims] == "certified"]
    findings: list[Finding] = []
    for places in columns.groups(attacks, "component_hash"):
        won = places[verdict[places] == "falsified"]
        broken = worst_inside(columns, certified, Points(won, np.zeros(len(won))), strict)
        findings += found(rule, Severity.VIOLATION, broken.claims, broken.points, np.full(len(broken.claims), np.nan))
        wide = worst_inside(columns, claims, Points(places, -columns["margin"][places]), keys)
        proved = columns["margin"][wide.claims]
        excess = -wide.values - proved
        slack = ROUNDING * np.abs(proved)
        fresh = ~np.isin(wide.claims, broken.claims) & np.isfinite(proved)
        for severity, of in (
            (Severity.VIOLATION, fresh & (excess > slack)),
            (Severity.NEAR, fresh & (excess > 0) & (excess <= slack)),
        ):
            findings += found(rule, severity, wide.claims[of], wide.points[of], excess[of])
    return findings


def _asked(columns: Columns, names: tuple[str, ...]) -> list[str]:
    """The part of each record's parameters that says what is asked; and beside it how much change is allowed."""
    known: dict[str, str] = {}
    allowed: dict[str, str] = {}
    for text in dict.fromkeys(columns["parameters"]):
        values = json.loads(text) if text else {}
        known[text] = json.dumps({name: values.get(name) for name in names}, sort_keys=True)
        allowed[text] = json.dumps(values.get("delta"))
    columns.derive("_allowed", [allowed[text] for text in columns["parameters"]])
    return [known[text] for text in columns["parameters"]]
