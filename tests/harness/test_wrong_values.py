"""Wrong values of every kind get one error of the package's own, which says what is accepted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import robust_plugins as rp
from robust_plugins.decisions.attacks.pgd import PGD
from robust_plugins.registry.information import Kind
from robust_plugins.registry.registry import registry

pytestmark = pytest.mark.usefixtures("unchecked")  # the checker of types would be first
BALL = rp.Linf(eps=0.1, clip=(0, 1))
X, Y = torch.rand(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
NUMBERS = {"int", "float", "int | None", "float | None"}


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


KINDS = {
    Kind.ATTACK: rp.attacks,
    Kind.CERTIFIER: rp.certifiers,
    Kind.EXPLANATION_ATTACK: rp.explanation_attacks,
    Kind.EXPLANATION_CERTIFIER: rp.explanation_certifiers,
    Kind.POISONING_ATTACK: rp.poisoning_attacks,
    Kind.LOSS: rp.recipes,
    Kind.MODEL: rp.models,
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_component_takes_anything_else_for_a_number(kind: Kind) -> None:
    from robust_plugins.registry.naming import annotations_of

    tried = 0
    for info in KINDS[kind]():
        if info.missing:
            continue
        for name, annotation in annotations_of(registry().factory_of(kind, info.name)).items():
            if str(annotation) not in NUMBERS:
                continue
            tried += 1
            for wrong in ("10", [1], nn.ReLU()):
                with pytest.raises(rp.ArgumentError, match=f"`{name}` is .*accepted: (a number|an integer)"):
                    registry().create(kind, info.name, **{name: wrong})
    assert tried


SETTINGS: dict[Callable[..., Any], dict[str, Any]] = {
    rp.SGD: {"lr": 0.1},
    rp.Adam: {"lr": 0.1},
    rp.AdamW: {"lr": 0.1},
    rp.Ramp: {"start": 0, "end": 1},
    rp.Clip: {"gamma": 1.0},
    rp.NormClip: {"gamma": 1.0},
    rp.GradientCertLoss: {"alpha": 1.0, "ball": BALL},
}


@pytest.mark.parametrize("make", SETTINGS, ids=lambda make: make.__name__)
def test_no_setting_takes_anything_else_for_a_number(make: Any) -> None:
    fields = [field.name for field in dataclasses.fields(make) if field.type in NUMBERS]
    assert fields
    for name in fields:
        for wrong in ("10", [1], nn.ReLU()):
            with pytest.raises(rp.ArgumentError, match=f"`{name}` is .*accepted: (a number|an integer)"):
                make(**{**SETTINGS[make], name: wrong})


@pytest.mark.parametrize("betas", ["10", nn.ReLU(), 0.9, (0.9, "1"), (0.9,)])
def test_betas_are_two_numbers(betas: Any) -> None:
    with pytest.raises(rp.ArgumentError, match=r"`betas` is .*accepted: two numbers in \[0, 1\)"):
        rp.Adam(lr=0.1, betas=betas)


@pytest.mark.parametrize("made", [
    lambda n: rp.attack("rp:pgd", steps=n(3), step_size=np.float32(0.5)),
    lambda n: PGD(steps=n(3), step_size=np.float32(0.5)),
    lambda n: rp.attack("rp:apgd", steps=n(3), batch_size=n(2)), lambda n: rp.certifier("interval:crown", memory=n(9)),
    lambda n: rp.explanation_attack("gradient:corner-pgd", steps=n(3)),
    lambda n: rp.poisoning_attack("poison:coordinates", steps=n(3)),
    lambda n: rp.recipe("madry", ball=BALL, epochs=n(4), steps=n(2)),
])  # fmt: skip
def test_numbers_of_numpy_are_numbers(made: Callable[[Any], object]) -> None:
    """As parameters of every component, made by its name or by its class, and the same as Python's own."""
    assert repr(made(np.int64)) == repr(made(int))


def test_targets_in_words_are_named() -> None:
    with pytest.raises(rp.ArgumentError, match="`target` is a list that is no array of numbers"):
        rp.attack("rp:fgsm")(net(), X, Y, BALL, target=["cat"] * len(X))
