"""The attacks of foolbox; what needs the package is skipped where it is absent."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from support.attacked import decisions, mlp
from support.others_attacks import each_finds_something, each_refuses_in_one_sentence, listed_as_missing

import robust_plugins as rp
from robust_plugins.testing import attack_checks

WALK = {"steps": 2, "first_queries": 20, "most_queries": 40}
SHORT: dict[str, dict[str, Any]] = {
    "foolbox:fgsm": {},
    "foolbox:pgd": {"steps": 5},
    "foolbox:fmn": {"steps": 10},
    "foolbox:ddn": {"steps": 10},
    "foolbox:deepfool": {"steps": 5},
    "foolbox:cw": {"steps": 20, "searches": 3},
    "foolbox:ead": {"steps": 20, "searches": 3},
    "foolbox:hopskipjump": WALK,
    "foolbox:boundary": {"steps": 40},
}
needed = pytest.mark.skipif(find_spec("foolbox") is None, reason="foolbox is not installed")


@needed
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("check", attack_checks)
@pytest.mark.parametrize("name", SHORT)
def test_conformance(name: str, check: Callable[[rp.Attack], None]) -> None:
    check(rp.attack(name, **SHORT[name]))


@needed
@pytest.mark.parametrize("name", SHORT)
def test_each_finds_something(name: str) -> None:
    each_finds_something(name, SHORT[name])


@needed
@pytest.mark.parametrize("name", SHORT)
def test_each_refuses_in_one_sentence(name: str) -> None:
    each_refuses_in_one_sentence(name, SHORT[name])


@needed
def test_samples_without_a_start_are_left_alone() -> None:
    """foolbox gives up all samples for one that has no adversarial point to start from."""
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    model, ball = mlp(), rp.Linf(eps=0.5, clip=(0, 1))
    y = decisions(model, x)
    result = rp.attack("foolbox:hopskipjump", tries=1, **WALK)(model, x, y, ball, seed=0)
    assert 0 < result.success.sum() < 4
    assert rp.attack("foolbox:hopskipjump", **WALK)(model, x, y, ball, seed=0).success.all()


@needed
@pytest.mark.parametrize("kind", [rp.L2, rp.L1])
def test_fmn_comes_near_the_closest_example(kind: type[rp.Ball]) -> None:
    """As foolbox has it, it stays a step away in L2, and finds nothing for some samples in L1."""
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    model, ball = mlp(), kind(eps=30.0, clip=(0, 1))
    y = decisions(model, x)
    found, ours = (rp.attack(f"{name}:fmn")(model, x, y, ball, seed=0) for name in ("foolbox", "rp"))
    assert found.success.all()
    assert (found.distance <= 1.3 * ours.distance).all()


@needed
@pytest.mark.usefixtures("unchecked")
def test_fields_are_checked() -> None:
    for name, field, value in (
        ("pgd", "relative_step", 0.0), ("fmn", "steps", 0), ("deepfool", "overshoot", 0), ("cw", "searches", 0),
        ("ead", "first_constant", 0.0), ("hopskipjump", "most_queries", 5), ("boundary", "tries", 0),
    ):  # fmt: skip
        with pytest.raises(rp.ArgumentError, match=f"`{field}` is"):
            rp.attack(f"foolbox:{name}", **{field: value})


def test_all_are_listed_and_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(SHORT) == {info.name for info in rp.attacks() if info.plugin == "foolbox"}
    listed_as_missing("foolbox", r"pip install 'robust_plugins\[foolbox\]'", monkeypatch)
