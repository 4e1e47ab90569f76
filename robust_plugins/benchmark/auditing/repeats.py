"""Answers that depend on what they must not depend on: the batch that a sample was in, the machine, the device."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from robust_plugins.benchmark.auditing.decisions import margin_scale
from robust_plugins.benchmark.auditing.findings import Finding, Rule, Severity, found
from robust_plugins.benchmark.columns import Columns

REPEATED = 1e-4
"""Relative to the largest margin of the model: by how much two runs may differ. Batches and machines order sums
differently, and relaxations divide by small numbers, which enlarges it."""

_SAME = ("model_hash", "input_hash", "label", "norm", "eps", "clip", "box", "kind", "method", "_parameters", "seed")


def repeat_findings(columns: Columns) -> list[Finding]:
    """Records of the same question to the same component that differ beyond rounding.

    Certifiers and clean decisions are held to it. A search with a timeout may answer more on a faster machine, so only
    certified against falsified counts there. Random draws of attacks depend on the batch, so attacks are compared
    across machines alone, and a difference there is weak: a rounding error may send them elsewhere.
    """
    question = _codes(columns)
    order = np.lexsort((np.arange(len(columns)), columns["batch_size"], question))
    starts = np.flatnonzero(np.diff(question[order], prepend=-1))
    if len(starts) == len(columns):
        return []  # no question was asked twice
    sizes = np.diff(np.append(starts, len(columns)))
    first, second = np.repeat(order[starts], sizes), order  # each record against the first one of its question
    differs = {name: columns[name][first] != columns[name][second] for name in ("batch_size", "machine", "device")}
    elsewhere = (first != second) & (
        differs["machine"] | differs["device"] | (columns["threads"][first] != columns["threads"][second])
    )
    batched = (first != second) & differs["batch_size"]
    findings: list[Finding] = []
    for rule, pairs in ((Rule.BATCH, batched), (Rule.MACHINE, elsewhere & ~batched)):
        findings += _different(columns, rule, first[pairs], second[pairs])
    return findings


def _codes(columns: Columns) -> NDArray[np.int64]:
    """A number for each question. How many samples a component takes at a time is no part of it."""
    known: dict[str, str] = {}
    for text in dict.fromkeys(columns["parameters"]):
        values = json.loads(text) if text else {}
        values.pop("batch_size", None)
        known[text] = json.dumps(values, sort_keys=True)
    columns.derive("_parameters", [known[text] for text in columns["parameters"]])
    return columns.codes(*_SAME)


def _different(columns: Columns, rule: Rule, first: NDArray[np.int64], second: NDArray[np.int64]) -> list[Finding]:
    verdict, kind = columns["verdict"], columns["kind"]
    answered = {"certified", "falsified", "unknown"}
    both = np.array(
        [a in answered and b in answered for a, b in zip(verdict[first], verdict[second], strict=True)], bool
    )
    first, second = first[both], second[both]
    searching = {text: "timeout" in (json.loads(text) if text else {}) for text in dict.fromkeys(columns["parameters"])}
    search = np.fromiter((searching[text] for text in columns["parameters"][first]), bool, len(first))
    attack = np.array(["attack" in name for name in kind[first]], bool)
    scale = np.maximum(margin_scale(columns)[first], np.finfo(np.float64).tiny)
    gap = np.abs(columns["margin"][first] - columns["margin"][second])
    within = np.isnan(gap) | (gap <= REPEATED * scale)
    other = (verdict[first] != verdict[second]) | (
        (kind[first] == "clean") & (columns["prediction"][first] != columns["prediction"][second])
    )
    opposite = other & (verdict[first] != "unknown") & (verdict[second] != "unknown")
    unequal = np.where(search, opposite, other | ~within)
    near = unequal & within & ~np.isnan(gap) & ~opposite
    findings = found(rule, Severity.VIOLATION, *_at(unequal & ~near & ~attack, first, second, gap))
    findings += found(rule, Severity.NEAR, *_at(near & ~attack, first, second, gap))
    if rule is Rule.MACHINE:
        findings += found(rule, Severity.WEAK, *_at(unequal & attack, first, second, gap))
    return findings


def _at(
    chosen: NDArray[np.bool_], first: NDArray[np.int64], second: NDArray[np.int64], gap: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    return first[chosen], second[chosen], gap[chosen]
