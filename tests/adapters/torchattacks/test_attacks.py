"""The attacks of torchattacks; what needs the package is skipped where it is absent."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
from support.others_attacks import each_finds_something, each_refuses_in_one_sentence, listed_as_missing

import robust_plugins as rp
from robust_plugins.testing import attack_checks

SHORT: dict[str, dict[str, Any]] = {
    "torchattacks:fgsm": {},
    "torchattacks:pgd": {"steps": 5},
    "torchattacks:mifgsm": {"steps": 5},
    "torchattacks:apgd": {"steps": 6, "loss": "dlr"},
    "torchattacks:apgdt": {"steps": 5},
    "torchattacks:fab": {"steps": 3},
    "torchattacks:square": {"queries": 30},
    "torchattacks:autoattack": {"steps": 3, "queries": 5},
    "torchattacks:cw": {"steps": 30, "constant": 10.0},
    "torchattacks:deepfool": {"steps": 5},
    "torchattacks:ead": {"steps": 20, "searches": 3},
}
needed = pytest.mark.skipif(find_spec("torchattacks") is None, reason="torchattacks is not installed")


@needed
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("check", attack_checks)
@pytest.mark.parametrize("name", SHORT)
def test_conformance(name: str, check: Callable[[rp.Attack], None]) -> None:
    check(rp.attack(name, **SHORT[name]))


@needed
@pytest.mark.parametrize("name", [name for name in SHORT if name != "torchattacks:ead"])
def test_each_finds_something(name: str) -> None:
    each_finds_something(name, SHORT[name])


@needed
@pytest.mark.parametrize("name", SHORT)
def test_each_refuses_in_one_sentence(name: str) -> None:
    each_refuses_in_one_sentence(name, SHORT[name])


@needed
@pytest.mark.usefixtures("unchecked")
def test_fields_are_checked() -> None:
    for name, field, value in (
        ("pgd", "relative_step", 0.0), ("mifgsm", "decay", 0), ("apgd", "loss", "margin"), ("fab", "restarts", 0),
        ("cw", "confidence", -1.0), ("ead", "steps", 9), ("autoattack", "queries", 0), ("deepfool", "overshoot", -1.0),
    ):  # fmt: skip
        with pytest.raises(rp.ArgumentError, match=f"`{field}` is"):
            rp.attack(f"torchattacks:{name}", **{field: value})


def test_all_are_listed_and_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(SHORT) == {info.name for info in rp.attacks() if info.plugin == "torchattacks"}
    listed_as_missing("torchattacks", r"pip install --no-deps torchattacks && pip install 'robust", monkeypatch)
