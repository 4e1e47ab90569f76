import math

import pytest
from support.study_records import record, synthetic

from robust_plugins.benchmark.auditing.audit import audit
from robust_plugins.benchmark.auditing.findings import Rule, Severity
from robust_plugins.benchmark.columns import Columns


def attacked(**given):
    fields = {"component": "pgd", "kind": "attack", "verdict": "falsified", "success": True, "prediction": 5}
    return record(**(fields | given))


def found(*records, **more):
    return audit(Columns.of(
        {name: getattr(r, name) for name in r.__dataclass_fields__} | more for r in records
    ))  # fmt: skip


def rules(findings, severity=Severity.VIOLATION):
    return [finding.rule for finding in findings.of(severity)]


PROOF = record(verdict="certified", margin=0.5)

CONTRADICTIONS = {
    "the same ball": (Rule.INSIDE, [PROOF, attacked(margin=-0.1, distance=0.1)]),
    "a smaller ball": (Rule.RADIUS, [PROOF, attacked(margin=-0.1, eps=0.05)]),
    "a larger ball, but a near example": (Rule.RADIUS, [PROOF, attacked(margin=-0.1, eps=0.3, distance=0.09)]),
    "an L2 ball inside": (Rule.INSIDE, [PROOF, attacked(norm="l2", margin=-0.1, eps=0.1)]),
    "an L1 ball inside": (Rule.INSIDE, [PROOF, attacked(norm="l1", margin=-0.1, eps=0.1)]),
    "a narrower range": (Rule.INSIDE, [PROOF, attacked(margin=-0.1, clip="[0.2,0.8]")]),
    "any range": (Rule.INSIDE, [record(verdict="certified", clip=""), attacked()]),
    "no margin at all": (Rule.INSIDE, [record(verdict="certified"), attacked()]),
    "the margin alone": (Rule.MARGIN, [PROOF, attacked(verdict="unknown", margin=0.49)]),
    "the margin where nothing was certified": (Rule.MARGIN, [record(margin=-0.1), attacked(margin=-0.2)]),
    "another certifier": (
        Rule.DISAGREE, [PROOF, record(component="complete", verdict="falsified", distance=0.1)],
    ),
    "another certifier at a smaller radius": (
        Rule.DISAGREE, [PROOF, record(component="complete", verdict="falsified", eps=0.05)],
    ),
    "itself at a smaller radius": (Rule.MONOTONE, [PROOF, record(verdict="falsified", eps=0.05)]),
    "the input itself": (Rule.CLEAN, [PROOF, record(kind="clean", verdict="falsified", prediction=5)]),
    "an attack that misses a wrong decision": (
        Rule.CLEAN, [attacked(verdict="unknown"), record(kind="clean", verdict="falsified", prediction=5)],
    ),
    "an example outside its ball": (Rule.BALL, [attacked(distance=0.101)]),
    "a witness outside its ball": (Rule.BALL, [record(verdict="falsified", distance=0.101)]),
    "a wider explanation": (Rule.EXPLANATION, [
        record(kind="explanation certifier", margin=0.5), attacked(kind="explanation attack", margin=0.51),
    ]),
    "a larger deviation": (Rule.EXPLANATION, [
        record(kind="explanation certifier", loss=0.5), attacked(kind="explanation attack", loss=0.51, eps=0.05),
    ]),
    "a changed prediction of a poisoned training": (Rule.POISONING, [
        record(kind="poisoning certifier", verdict="certified"), attacked(kind="poisoning attack"),
    ]),
    "another verdict in another batch": (Rule.BATCH, [
        record(verdict="certified", margin=0.5), record(batch_size=1, margin=-0.1),
    ]),
    "another margin in another batch": (Rule.BATCH, [record(margin=0.5), record(margin=0.4, batch_size=1)]),
    "another decision in another batch": (Rule.BATCH, [
        record(kind="clean", margin=0.1), record(kind="clean", margin=0.2, prediction=5, batch_size=1),
    ]),
    "another margin on another machine": (Rule.MACHINE, [record(margin=0.5), record(margin=0.4, machine="other")]),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_found_by_their_rule(case):
    rule, records = CONTRADICTIONS[case]
    assert rules(found(*records)) == [rule]


HARMLESS = {
    "a larger ball": [PROOF, attacked(eps=0.2, distance=0.2)],
    "another sample": [PROOF, attacked(sample=1)],
    "another model": [PROOF, attacked(model="other")],
    "another label": [PROOF, attacked(label=4)],
    "a wider range": [record(verdict="certified", clip="[0.2,0.8]"), attacked()],
    "an L-infinity ball, where nobody knows how many features there are": [
        record(verdict="certified", norm="l2", eps=5.0), attacked(eps=0.1),
    ],
    "a failed attack above the proof": [PROOF, attacked(verdict="unknown", margin=0.51)],
    "an attack with a target that it misses": [
        attacked(verdict="unknown", parameters='{"target":7}'),
        record(kind="clean", verdict="falsified", prediction=5),
    ],
    "no answer": [PROOF, attacked(verdict="error"), record(component="b", verdict="timeout")],
    "other explanations": [
        record(kind="explanation certifier", margin=0.5, parameters='{"call":{"of":"logit"}}'),
        attacked(kind="explanation attack", margin=0.51, parameters='{"call":{"of":"loss"}}'),
    ],
    "an explanation that changed by more than its threshold, and less than its bound": [
        record(kind="explanation certifier", verdict="certified", margin=0.5),
        attacked(kind="explanation attack", verdict="falsified", margin=0.4),
    ],
    "a search with a timeout in another batch": [
        record(verdict="certified", margin=0.5, parameters='{"timeout":2}'),
        record(margin=-0.1, batch_size=1, parameters='{"timeout":2}'),
    ],
    "an attack in another batch": [attacked(margin=-1.0), attacked(margin=-2.0, batch_size=1)],
}  # fmt: skip


@pytest.mark.parametrize("case", HARMLESS)
def test_nothing_is_found_where_both_may_be_right(case):
    assert len(found(*HARMLESS[case])) == 0


def test_balls_of_other_norms_hold_each_other_by_the_number_of_features():
    def verdict(claimed, eps, norm, radius, features):
        proof = record(verdict="certified", norm=claimed, eps=eps)
        return len(found(proof, attacked(norm=norm, eps=radius), features=features))

    assert verdict("l2", 1.0, "linf", 0.1, 100) == 1
    assert verdict("l2", 0.99, "linf", 0.1, 100) == 0
    assert verdict("l1", 10.0, "linf", 0.1, 100) == 1
    assert verdict("l1", 9.9, "linf", 0.1, 100) == 0
    assert verdict("l1", 1.0, "l2", 0.1, 100) == 1
    assert verdict("l1", 0.99, "l2", 0.1, 100) == 0


def test_the_real_distance_of_a_kept_example_counts():
    proof = record(verdict="certified", norm="l2", eps=0.5)
    assert len(found(proof, attacked(), features=100)) == 0
    assert rules(found(proof, attacked(), features=100, distance_l2=0.4)) == [Rule.INSIDE]


def test_what_rounding_can_account_for_is_near():
    near = found(PROOF, attacked(verdict="unknown", margin=0.5 - 1e-6))
    assert (rules(near), rules(near, Severity.NEAR)) == ([], [Rule.MARGIN])
    assert rules(found(attacked(distance=0.1 + 5e-7)), Severity.NEAR) == [Rule.BALL]
    assert len(found(attacked(distance=0.1 + 1e-7))) == 0
    assert rules(found(attacked(distance=0.1 + 1e-5, clip="[0.0,255.0]")), Severity.NEAR) == []
    assert rules(found(attacked(distance=0.1 + 1e-4, clip="[0.0,255.0]")), Severity.NEAR) == [Rule.BALL]
    just_outside = found(PROOF, attacked(eps=0.3, distance=0.1 + 1e-7))
    assert (rules(just_outside), rules(just_outside, Severity.NEAR)) == ([], [Rule.RADIUS])
    batches = found(
        record(kind="clean", margin=1.0), record(verdict="certified", margin=1e-5), record(batch_size=1, margin=0.0)
    )
    assert (rules(batches), rules(batches, Severity.NEAR)) == ([], [Rule.BATCH])


def test_what_a_component_missed_is_weak():
    certifier = found(record(verdict="certified", margin=0.1), record(eps=0.05, margin=-0.1))
    assert (rules(certifier), rules(certifier, Severity.WEAK)) == ([], [Rule.MONOTONE])
    attack = found(attacked(distance=0.1), attacked(verdict="unknown", success=False, eps=0.2, distance=0.2))
    assert (rules(attack), rules(attack, Severity.WEAK)) == ([], [Rule.MONOTONE])


def test_each_pair_of_components_is_named():
    other = attacked(component="fgsm", margin=-0.2)
    findings = found(PROOF, attacked(margin=-0.1), other, record(component="crown", verdict="certified"))
    assert len(findings.violations) == 4
    said = {findings.sentence(f) for f in findings.violations}
    assert any("bounds says certified in linf 0.1" in s and "fgsm reached the margin -0.2" in s for s in said)
    assert [count for _, count in findings.grouped(Severity.VIOLATION)] == [1, 1, 1, 1]


def test_a_sound_study_has_no_violation_and_one_lie_in_it_is_found():
    rows = synthetic(40)
    assert audit(Columns.of(_fields(r) for r in rows)).violations == []
    fields = [_fields(r) for r in rows]
    broken = next(f for f in fields if f["kind"] == "attack" and f["verdict"] == "falsified" and f["eps"] == 0.05)
    lie = next(
        f for f in fields
        if f["component"] == "ibp" and f["sample"] == broken["sample"] and f["model"] == broken["model"]
        and f["eps"] == 0.2
    )  # fmt: skip
    lie |= {"verdict": "certified", "margin": math.nan}
    findings = audit(Columns.of(fields))
    assert findings.violations
    assert {fields[f.first]["component"] for f in findings.violations} == {"ibp"}


def _fields(row):
    return {name: getattr(row, name) for name in row.__dataclass_fields__}
