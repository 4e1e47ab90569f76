"""Every built-in attack and certifier passes every conformance check."""

from __future__ import annotations

import pytest
from support.length import length

import robust_plugins as rp
from robust_plugins.testing import attack_checks, certifier_checks, certifiers, fresh_registry  # noqa: F401 (a fixture)

pytestmark = pytest.mark.usefixtures("unchecked")

ATTACKS = {
    "art:fgsm": {},
    "art:bim": {"steps": 5},
    "art:pgd": {"steps": 5, "restarts": 2, "start": "gaussian"},
    "rp:auto": {"attacks": ("rp:fgsm", "rp:pgd(steps=5)")},
    "rp:fgsm": {},
    "rp:pgd": {"steps": 5, "restarts": 2},
    "rp:apgd": {"steps": 12, "restarts": 2, "targets": 1},
    "rp:square": {"queries": 20},
    "rp:margin-pgd": {"steps": 5, "restarts": 2, "targets": 2},
    "art:mim": {"steps": 5},
    "art:apgd-ce": {"steps": 5, "restarts": 2},
    "art:apgd-dlr": {"steps": 5},
    "art:deepfool": {"steps": 5},
    "art:cw-l2": {"steps": 3, "searches": 2},
    "art:square": {"queries": 10},
    "art:hopskipjump": {"steps": 2, "first_queries": 10, "most_queries": 20, "tries": 10},
    "art:boundary": {"steps": 3, "trials": 2, "directions": 3, "tries": 10},
    "art:zoo": {"steps": 4, "searches": 2},
    "art:auto": {"steps": 3, "restarts": 1, "queries": 3},
    "rp:minimal": {"attack": "rp:margin-pgd(steps=3)", "calls": 4},
    "rp:fmn": {"steps": 5},
    "rp:ddn": {"steps": 5},
    "rp:pdpgd": {"steps": 5},
    "rp:cw-linf": {"steps": 5, "rounds": 2},
    "rp:cw-l2": {"steps": 5, "searches": 2},
    "rp:hopskipjump": {"steps": 2, "first_queries": 10, "tries": 9},
}
SLOW_ATTACKS = (
    "art:apgd-ce", "art:apgd-dlr", "art:auto", "art:boundary", "art:cw-l2", "art:hopskipjump", "art:zoo",
    "rp:cw-l2", "rp:cw-linf", "rp:hopskipjump",
)  # fmt: skip
CERTIFIERS = {
    "lirpa:ibp": {},
    "lirpa:crown-ibp": {},
    "lirpa:crown": {},
    "lirpa:alpha-crown": {"steps": 3},
    "interval:ibp": {},
    "interval:crown-ibp": {},
    "interval:crown": {},
    "interval:alpha-crown": {"steps": 3},
    "interval:branch-and-bound": {"timeout": 5.0, "root_steps": 2},
    "milp:exact": {"timeout": 5.0},
    "cascade": {"stages": ("art:fgsm", "interval:ibp", "interval:crown")},
}
SLOW = ("lirpa:alpha-crown", "interval:branch-and-bound", "milp:exact", "cascade")
LATER = ("lirpa:crown-ibp", "interval:crown-ibp", "interval:alpha-crown")
"""Among the slow tests too, on every network and ball."""


@pytest.mark.parametrize("check", attack_checks)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW_ATTACKS else n for n in ATTACKS])
def test_attacks(name, check) -> None:
    check(rp.attack(name, **ATTACKS[name]))


def _of_certifiers():
    for name in CERTIFIERS:
        for check in certifier_checks:
            costs = check is certifiers.certificates_survive_attacks and name not in ("lirpa:crown", "interval:crown")
            slow = costs or name in SLOW + LATER
            yield pytest.param(name, check, marks=[pytest.mark.slow] if slow else [], id=f"{name}-{check.__name__}")


@pytest.mark.parametrize(("name", "check"), [*_of_certifiers()])
def test_certifiers(name, check, monkeypatch) -> None:
    if name in SLOW:  # on each network and each ball, not on each pair
        every, accepted = length(3, 1), certifiers._accepted
        monkeypatch.setattr(certifiers, "_accepted", lambda certifier: accepted(certifier)[::every])
    check(rp.certifier(name, **CERTIFIERS[name]))


def test_none_is_forgotten(fresh_registry) -> None:  # noqa: F811
    """A component that is registered later must be added here."""
    others = ("torchattacks", "foolbox")  # which have tests of their own, for where they are installed
    assert set(ATTACKS) == {info.name for info in rp.attacks() if info.plugin not in others}
    assert set(CERTIFIERS) == {info.name for info in rp.certifiers()}
