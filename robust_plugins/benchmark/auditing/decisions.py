"""Contradictions about decisions: points that attacks, witnesses and clean inputs show, against what was proved."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from robust_plugins.benchmark.auditing.containment import Points, ball_slack, worst_inside
from robust_plugins.benchmark.auditing.findings import Finding, Rule, Severity, found
from robust_plugins.benchmark.columns import Columns

ROUNDING = 1e-5
"""Relative to the largest margin of the model: how far an achieved margin may lie below a proved one before it is a
contradiction. Both are computed in floating point, in float32 for most models."""


def decision_findings(columns: Columns) -> list[Finding]:
    """Contradictions in the records about decisions: certifiers against attacks, witnesses and clean inputs."""
    kind, verdict = columns["kind"], columns["verdict"]
    keys = columns.codes("model_hash", "input_hash", "label")
    certifier = kind == "certifier"
    claims = np.flatnonzero(certifier & (columns["norm"] != ""))
    certified = np.flatnonzero(certifier & (verdict == "certified"))
    fact = (kind == "attack") | (kind == "clean") | (certifier & (verdict == "falsified"))
    scale = margin_scale(columns)
    findings: list[Finding] = []
    for places in columns.groups(np.flatnonzero(fact), "component_hash", "kind"):
        wrong = places[verdict[places] == "falsified"]
        broken = Points(wrong, columns["eps"][wrong])
        findings += _refuted(columns, certified, broken, keys)
        if kind[places[0]] != "certifier":
            findings += _below(columns, claims, places, keys, scale)
    return findings + _above_clean(columns, keys) + _outside(columns) + _monotone(columns, keys)


def _refuted(columns: Columns, certified: NDArray[np.int64], broken: Points, keys: NDArray[np.int64]) -> list[Finding]:
    """A wrong decision inside a ball in which the decision was certified. No rounding of margins excuses that."""
    findings: list[Finding] = []
    match = worst_inside(columns, certified, broken, keys)
    near = worst_inside(columns, certified, broken, keys, tolerant=True)
    for severity, pairs in ((Severity.VIOLATION, match), (Severity.NEAR, near)):
        fresh = ~np.isin(pairs.claims, match.claims) if severity is Severity.NEAR else np.ones(len(pairs.claims), bool)
        claims, points = pairs.claims[fresh], pairs.points[fresh]
        excess = columns["eps"][claims] - np.fmin(columns["distance"][points], columns["eps"][points])
        rules = _rules(columns, claims, points)
        for rule in dict.fromkeys(rules.tolist()):
            of = rules == rule
            findings += found(Rule(rule), severity, claims[of], points[of], excess[of])
    return findings


def _rules(columns: Columns, claims: NDArray[np.int64], points: NDArray[np.int64]) -> NDArray[np.object_]:
    """By which rule a certified record and a wrong decision contradict each other."""
    same = {name: columns[name][claims] == columns[name][points] for name in ("component_hash", "norm", "eps", "box")}
    rules = np.full(len(claims), Rule.INSIDE, object)
    ball = same["norm"] & same["box"]
    smaller = ball & ~same["eps"]
    rules[smaller] = Rule.RADIUS
    kind = columns["kind"][points]
    rules[kind == "clean"] = Rule.CLEAN
    rules[kind == "certifier"] = Rule.DISAGREE
    rules[(kind == "certifier") & same["component_hash"] & ~(ball & same["eps"])] = Rule.MONOTONE
    return rules


def _below(
    columns: Columns,
    claims: NDArray[np.int64],
    places: NDArray[np.int64],
    keys: NDArray[np.int64],
    scale: NDArray[np.float64],
) -> list[Finding]:
    """A margin that was reached inside a ball, below the one proved for all of it."""
    finite = claims[np.isfinite(columns["margin"][claims])]
    match = worst_inside(columns, finite, Points(places, columns["margin"][places]), keys)
    excess = columns["margin"][match.claims] - match.values
    # Where the decision itself was certified, and is wrong, that is reported already.
    known = (columns["verdict"][match.claims] == "certified") & (columns["verdict"][match.points] == "falsified")
    slack = ROUNDING * scale[match.claims]
    findings: list[Finding] = []
    for severity, of in (
        (Severity.VIOLATION, ~known & (excess > slack)),
        (Severity.NEAR, ~known & (excess > 0) & (excess <= slack)),
    ):
        findings += found(Rule.MARGIN, severity, match.claims[of], match.points[of], excess[of])
    return findings


def _above_clean(columns: Columns, keys: NDArray[np.int64]) -> list[Finding]:
    """An attack that fails where the input itself is decided wrongly, as if attacked accuracy exceeded the clean one.

    Attacks with a target are free to fail.
    """
    kind, verdict = columns["kind"], columns["verdict"]
    aimed = {text: has_target(text) for text in dict.fromkeys(columns["parameters"])}
    targeted = np.fromiter((aimed[text] for text in columns["parameters"]), bool, len(columns))
    resisted = np.flatnonzero((kind == "attack") & (verdict == "unknown") & ~targeted)
    wrong = np.flatnonzero((kind == "clean") & (verdict == "falsified"))
    match = worst_inside(columns, resisted, Points(wrong, np.zeros(len(wrong))), keys)
    return found(Rule.CLEAN, Severity.VIOLATION, match.claims, match.points, np.full(len(match.claims), np.nan))


def has_target(parameters: str) -> bool:
    """Whether an attack of these parameters has a target, of its own or given to its call."""
    said = json.loads(parameters) if parameters else {}
    return (said | said.get("call", {})).get("target") is not None


def _outside(columns: Columns) -> list[Finding]:
    """An example, or a witness, farther away than the radius; by no more than rounding it is near.

    A fifth of that is nothing: the ball itself is a set of rounded numbers, and its border seldom at eps exactly.
    """
    eps, distance = columns["eps"], columns["distance"]
    slack = ball_slack(columns)
    excess = np.where((columns["norm"] != "") & ~np.isnan(distance), distance - eps, 0.0)
    findings: list[Finding] = []
    for severity, of in (
        (Severity.VIOLATION, excess > slack),
        (Severity.NEAR, (excess > slack / 5) & (excess <= slack)),
    ):
        places = np.flatnonzero(of)
        findings += found(Rule.BALL, severity, places, places, excess[places])
    return findings


def _monotone(columns: Columns, keys: NDArray[np.int64]) -> list[Finding]:
    """A component missed what its own answer at another radius implies: no contradiction, but weak.

    A certifier that certifies a ball and not a smaller one; an attack that succeeds in a ball and fails in a larger
    one.
    """
    kind, verdict = columns["kind"], columns["verdict"]
    own = columns.codes("model_hash", "input_hash", "label", "component_hash", "kind")
    findings: list[Finding] = []
    failed = np.flatnonzero((kind == "attack") & (verdict == "unknown"))
    won = np.flatnonzero((kind == "attack") & (verdict == "falsified"))
    match = worst_inside(columns, failed, Points(won, columns["eps"][won]), own)
    gap = columns["eps"][match.claims] - columns["eps"][match.points]
    of = gap > 0
    findings += found(Rule.MONOTONE, Severity.WEAK, match.claims[of], match.points[of], gap[of])
    # The roles are exchanged: the larger ball is the one that was proved, and the smaller one a point of its set.
    missed = np.flatnonzero((kind == "certifier") & (verdict == "unknown"))
    proved = np.flatnonzero((kind == "certifier") & (verdict == "certified"))
    same = columns.codes("model_hash", "input_hash", "label", "component_hash", "norm", "clip", "box")
    largest = np.full(int(same.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(largest, same[proved], columns["eps"][proved])
    beyond = missed[largest[same[missed]] > columns["eps"][missed]]
    if len(beyond):
        at = {(int(same[i]), float(columns["eps"][i])): int(i) for i in proved}
        first = np.array([at[int(same[i]), float(largest[same[i]])] for i in beyond])
        findings += found(Rule.MONOTONE, Severity.WEAK, first, beyond, columns["eps"][first] - columns["eps"][beyond])
    return findings


def margin_scale(columns: Columns) -> NDArray[np.float64]:
    """For each record the largest margin that its model shows anywhere, against which rounding is measured."""
    model = columns.codes("model_hash")
    shown = np.flatnonzero(np.isfinite(columns["margin"]) & np.isin(columns["kind"], ("attack", "clean", "certifier")))
    largest = np.zeros(int(model.max(initial=-1)) + 1)
    facts = shown[columns["kind"][shown] != "certifier"]
    np.maximum.at(largest, model[facts], np.abs(columns["margin"][facts]))
    # Where nobody ran the model there are the bounds alone, which may be loose by any factor.
    bounds = shown[(columns["kind"][shown] == "certifier") & (largest[model[shown]] == 0)]
    np.maximum.at(largest, model[bounds], np.abs(columns["margin"][bounds]))
    return largest[model]
