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


def test_numbers_of_numpy_are_numbers() -> None:
    assert rp.SGD(lr=np.float32(0.5)).lr == 0.5
    assert rp.attack("rp:pgd", step_size=np.float64(0.01)).step_size == 0.01


@pytest.mark.parametrize("seed", ["a", 0.5, [1]])
def test_a_seed_is_an_integer(seed: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: rp.attack("rp:fgsm")(net(), X, Y, BALL, seed=seed),
        lambda: rp.compare(net(), X, Y, BALL, ["rp:fgsm"], seed=seed),
        lambda: rp.compare(net(), X, None, BALL, ["rp:margin-pgd"], task="regression", seed=seed),
        lambda: rp.compare_explanations(net(), X, Y, BALL, ["gradient:corner-pgd"], seed=seed),
        lambda: rp.critical_radius(["rp:fgsm"], net(), X, Y, BALL, seed=seed),
        lambda: rp.explanation_attack("gradient:corner-pgd")(net(), X, Y, BALL, seed=seed),
    ]
    for call in calls:
        with pytest.raises(rp.ArgumentError, match=r"`seed` is .*accepted: an integer"):
            call()


def test_a_class_is_no_model() -> None:
    for call in (rp.attack("rp:fgsm"), rp.certifier("interval:ibp")):
        with pytest.raises(rp.ArgumentError, match=r"`model` is the class Linear; .*Make an object"):
            call(nn.Linear, X, Y, BALL)
    with pytest.raises(rp.ArgumentError, match=r"`model` is the class Linear"):
        rp.compare(nn.Linear, X, Y, BALL, ["rp:fgsm"])
    for wrap in (rp.straight_through, rp.averaged):
        with pytest.raises(rp.ArgumentError, match=r"`model` is int"):
            wrap(3)  # type: ignore[arg-type]
    with pytest.raises(rp.ArgumentError, match=r"`train` is the class Linear; .*inside the function"):
        rp.partition_aggregation(nn.Linear, X, Y, partitions=2)


def test_a_class_is_no_learner() -> None:
    trees = pytest.importorskip("sklearn.tree", reason="scikit-learn is not installed")
    with pytest.raises(rp.ArgumentError, match=r"`train` is the class DecisionTreeClassifier; .*Make an object"):
        rp.partition_aggregation(trees.DecisionTreeClassifier, X, Y, partitions=2)


@pytest.mark.parametrize("x", [torch.rand(6, 3), torch.rand(6, 4, 2)])
def test_inputs_of_another_shape_than_the_model_takes_are_named(x: torch.Tensor) -> None:
    calls: list[Callable[[], object]] = [
        lambda: rp.attack("rp:fgsm")(net(), x, Y, BALL),
        lambda: rp.certifier("interval:ibp")(net(), x, Y, BALL),
        lambda: rp.compare(net(), x, Y, BALL, ["rp:fgsm"]),
    ]
    for call in calls:
        with pytest.raises(rp.ArgumentError, match=r"`x` is of samples of shape \(.*on which the model raises"):
            call()


def test_an_error_of_the_model_itself_stays_as_it_is() -> None:
    class Broken(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("the licence has expired")

    with pytest.raises(RuntimeError, match="licence") as caught:
        rp.attack("rp:fgsm")(Broken(4, 3), X, Y, BALL)
    assert not isinstance(caught.value, rp.RobustPluginsError)


def test_labels_in_words_are_named() -> None:
    with pytest.raises(rp.ArgumentError, match=r"`y` is a list that is no array of numbers"):
        rp.compare(net(), X, ["a", "b", "c", "a", "b", "c"], BALL, ["rp:fgsm"])
    with pytest.raises(rp.ArgumentError, match=r"`y` is an ndarray that is no array of numbers"):
        rp.compare(net(), X, np.array(["a", "b", "c", "a", "b", "c"]), BALL, ["rp:fgsm"])


@pytest.mark.parametrize("name", ["epochs", "batch_size"])
def test_training_counts_in_integers(name: str) -> None:
    for wrong in ("3", 2.5, 0):
        with pytest.raises(rp.ArgumentError, match=f"`{name}` is .*an integer of at least 1"):
            rp.train(net(), X, Y, **{"epochs": 1, "seed": 0, name: wrong})


def test_a_ball_is_no_number() -> None:
    with pytest.raises(rp.ArgumentError, match=r"`ball` is 0.1; accepted: rp.Linf"):
        rp.Scores(x=X, y=Y, ball=0.1)  # type: ignore[arg-type]


def test_a_name_of_another_kind_is_said_to_be_one() -> None:
    with pytest.raises(
        rp.UnknownNameError, match=r"^unknown attack 'interval:ibp'\. It is the name of a certifier and"
    ):
        rp.attack("interval:ibp")
    with pytest.raises(rp.UnknownNameError, match=r"'rp:pgd'\. It is the name of an attack\."):
        rp.compare_explanations(net(), X, Y, BALL, ["rp:pgd"])


def test_a_value_of_many_lines_is_shown_by_its_first() -> None:
    with pytest.raises(rp.ArgumentError) as caught:
        rp.to_art(net(), net())  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert "`component` is Sequential( ...; accepted:" in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"input_shape": 64, "classes": 10}, "input_shape"),
        ({"input_shape": (), "classes": 10}, "input_shape"),
        ({"input_shape": (64,), "classes": 1}, "classes"),
        ({"input_shape": (64,), "classes": 3, "widths": 3}, "widths"),
    ],
)
def test_networks_of_the_zoo_name_what_no_network_can_have(parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(rp.ArgumentError, match=f"`{named}` is "):
        rp.model("mlp", **parameters)
