"""The attacks of ART by their names: what they find, in which units, and what each refuses."""

from __future__ import annotations

from typing import Any

import art.attacks.evasion as evasion
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from support.attacked import cnn, decisions, mlp
from torch import Tensor, nn

import robust_plugins as rp

SHORT: dict[str, dict[str, Any]] = {
    "art:mim": {"steps": 8},
    "art:apgd-ce": {"steps": 10},
    "art:apgd-dlr": {"steps": 10},
    "art:deepfool": {"steps": 10},
    "art:cw-l2": {"searches": 3, "first_constant": 1.0},
    "art:square": {"queries": 60},
    "art:hopskipjump": {"steps": 2, "first_queries": 20, "most_queries": 40},
    "art:boundary": {"steps": 30, "trials": 5, "directions": 10},
    "art:zoo": {"steps": 40, "searches": 1, "coordinates": 64},
    "art:auto": {"steps": 5, "restarts": 1, "queries": 5},
}
COSTLY = ("art:zoo", "art:cw-l2", "art:boundary", "art:auto")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in COSTLY else name for name in SHORT]
L2_ALONE = ("art:deepfool", "art:cw-l2", "art:boundary", "art:zoo")
UNIT = rp.Linf(eps=0.25, clip=(0, 1))


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_each_finds_something_on_flat_inputs_and_on_images(x: Tensor, name: str, dtype: torch.dtype) -> None:
    attack = rp.attack(name, **SHORT[name])
    model, x = mlp(dtype), x[:4].to(dtype)
    flat = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), model)
    ball = rp.L2(eps=3.0, clip=(0, 1)) if name in L2_ALONE else UNIT
    for network, inputs in ((model, x), (flat, x.flatten(1))):
        y = decisions(network, inputs)
        result = attack(network, inputs, y, ball, seed=0)
        assert ball.contains(result.x_adv, inputs).all()
        assert result.x_adv.dtype == dtype
        assert result.success.sum() >= 3


@pytest.mark.parametrize("name", NAMES)
def test_units_are_those_of_the_inputs(x: Tensor, name: str) -> None:
    """A model of inputs in [-10, 245] is attacked as the same one of inputs in [0, 1]."""

    class Bytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, z: Tensor) -> Tensor:
            out: Tensor = self.body((z + 10) / 255)
            return out

    attack, x = rp.attack(name, **SHORT[name]), x[:4]
    y = decisions(mlp(), x)
    eps = 2.0 if name in L2_ALONE else 0.2
    kind = rp.L2 if name in L2_ALONE else rp.Linf
    unit = attack(mlp(), x, y, kind(eps=eps, clip=(0, 1)), seed=0)
    wide = attack(Bytes(), 255 * x - 10, y, kind(eps=255 * eps, clip=(-10, 245)), seed=0)
    assert torch.equal(unit.success, wide.success)
    if name not in ("art:zoo", "art:hopskipjump", "art:boundary", "art:auto"):  # which rounding sends other ways
        torch.testing.assert_close(wide.distance / 255, unit.distance, rtol=0.02, atol=1e-4)


def test_steps_of_deepfool_are_not_scaled_by_the_clip_range() -> None:
    """ART's are: the nearest boundary at distance .5 is overshot by the range's whole length."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        model.bias.copy_(torch.tensor([0.0, 10.0]))
    x, y, ball = torch.tensor([[10.5, 5.0]]), torch.tensor([0]), rp.L2(eps=100.0, clip=(0, 100))
    theirs = rp.from_art(evasion.DeepFool, epsilon=0.02)(model, x, y, ball, seed=0)
    ours = rp.attack("art:deepfool")(model, x, y, ball, seed=0)
    assert theirs.distance > 5
    assert ours.success.all()
    torch.testing.assert_close(ours.distance, torch.tensor([0.51]))


def test_zoo_lowers_inputs_too() -> None:
    """ART clips the perturbation to the clip range, so that on [0, 1] no input ever falls."""
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0] * 4, [0.0] * 4]))
        model.bias.copy_(torch.tensor([0.0, 1.9]))
    x, y, ball = torch.full((2, 4), 0.5), torch.tensor([0, 0]), rp.L2(eps=0.5, clip=(0, 1))
    theirs = rp.from_art(
        evasion.ZooAttack, max_iter=60, initial_const=10.0, nb_parallel=4, abort_early=False, use_resize=False
    )(model, x, y, ball, seed=0)
    ours = rp.attack("art:zoo", steps=60)(model, x, y, ball, seed=0)
    assert not theirs.success.any()
    assert ours.success.all()


def test_the_first_constant_of_cw_reaches_targets(x: Tensor) -> None:
    model = mlp()
    y = decisions(model, x)
    ball = rp.L2(eps=8.0, clip=(0, 1))
    ours, weak = (
        rp.attack("art:cw-l2", **fields)(model, x[:4], y[:4], ball, target="least_likely", seed=0)
        for fields in ({}, {"first_constant": 0.01})
    )
    assert ours.success.all()
    assert not weak.success.all()


@pytest.mark.parametrize("name", NAMES)
def test_an_estimator_with_its_normalisation_stands_for_a_model(x: Tensor, name: str) -> None:
    mean, std = 0.3, 0.7
    x = x[:3]
    estimator = PyTorchClassifier(
        cnn().eval(), nn.CrossEntropyLoss(), (1, 8, 8), 4, clip_values=(0, 1), preprocessing=(mean, std)
    )
    y = torch.from_numpy(estimator.predict(x.numpy()).argmax(1))
    result = rp.attack(name, **SHORT[name])(estimator, x, y, UNIT, seed=0)
    logits = torch.from_numpy(estimator.predict(result.x_adv.numpy()))
    torch.testing.assert_close(result.logits, logits, rtol=1e-4, atol=1e-5)


REFUSED: list[tuple[str, rp.Ball, Any, str]] = [
    ("art:deepfool", UNIT, "random", "`target` is given.*art:deepfool: it has no targeted form"),
    ("art:square", UNIT, "random", "`target` is given.*art:square"),
    ("art:auto", UNIT, "random", "`target` is given.*art:auto"),
    ("art:square", rp.L1(eps=1.0, clip=(0, 1)), None, "an L1 ball, for art:square.*Linf or L2"),
    ("art:hopskipjump", rp.L1(eps=1.0, clip=(0, 1)), None, "an L1 ball, for art:hopskipjump.*Linf or L2"),
    *((name, rp.L2(eps=1.0, clip=None), None, f"without a clip range, for {name}.*clip=\\(0, 1\\)")
      for name in ("art:cw-l2", "art:square", "art:hopskipjump", "art:boundary", "art:zoo")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "ball", "target", "says"), REFUSED)
def test_what_an_attack_cannot_do_is_one_sentence(x: Tensor, name: str, ball: rp.Ball, target: Any, says: str) -> None:
    model = mlp()
    with pytest.raises(rp.ArgumentError, match=says):
        rp.attack(name, **SHORT[name])(model, x, decisions(model, x), ball, target=target)


def test_two_classes(x: Tensor) -> None:
    torch.manual_seed(4)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), x[:4]
    y = decisions(model, x)
    result = rp.attack("art:auto", steps=5, restarts=1, queries=5)(model, x, y, rp.Linf(eps=0.4, clip=(0, 1)), seed=0)
    assert result.success.all()
    with pytest.raises(rp.ArgumentError, match=r"one of 2 classes, for art:apgd-dlr.*3 classes or more.*art:apgd-ce"):
        rp.attack("art:apgd-dlr")(model, x, y, UNIT)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("art:mim", "steps", 0),
        ("art:mim", "decay", -1.0),
        ("art:mim", "relative_step", 0.0),
        ("art:apgd-ce", "restarts", True),
        ("art:apgd-dlr", "relative_step", float("inf")),
        ("art:deepfool", "overshoot", 0),
        ("art:cw-l2", "confidence", -1.0),
        ("art:square", "share", 1.0),
        ("art:hopskipjump", "tries", 1.5),
        ("art:boundary", "forward_step", 0.0),
        ("art:zoo", "coordinates", 0),
        ("art:auto", "queries", 0),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_fields_are_checked(name: str, field: str, value: Any) -> None:
    with pytest.raises(rp.ArgumentError, match=f"`{field}` is"):
        rp.attack(name, **{field: value})


def test_all_of_them_are_silent(x: Tensor, capfd: pytest.CaptureFixture[str]) -> None:
    model, x = cnn(), torch.rand(2, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.AdaptiveAvgPool2d(8), model)
    y = decisions(model, x)
    for name in SHORT:
        rp.attack(name, **SHORT[name])(model, x, y, rp.Linf(eps=0.01, clip=(0, 1)), seed=0)
    rp.from_art(evasion.SimBA, max_iter=3)(model, x, y, rp.L2(eps=1.0, clip=(0, 1)), seed=0)
    assert capfd.readouterr() == ("", "")


def test_autoattack_is_given_no_targets(x: Tensor) -> None:
    """Its flag adds attacks on every class; as y it takes labels to leave, and it would flee from the targets."""
    model = mlp()
    with pytest.raises(rp.ArgumentError, match="AutoAttack has no targeted form"):
        rp.from_art(evasion.AutoAttack)(model, x, decisions(model, x), UNIT, target="random")


def test_a_square_attack_that_would_search_nothing_is_refused(x: Tensor) -> None:
    """ART accepts L1 there, and returns the inputs."""
    model = mlp()
    with pytest.raises(rp.ArgumentError, match=r"SquareAttack.*searches nothing in L1"):
        rp.from_art(evasion.SquareAttack)(model, x, decisions(model, x), rp.L1(eps=1.0, clip=(0, 1)))


@pytest.mark.parametrize("name", ["art:square", "art:hopskipjump", "art:auto", "art:mim"])
def test_queries_come_in_the_batch_size_too(x: Tensor, name: str) -> None:
    seen = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, z: Tensor) -> Tensor:
            seen.append(len(z))
            out: Tensor = self.body(z)
            return out

    y = decisions(mlp(), x)
    rp.attack(name, batch_size=5, **SHORT[name])(Watched(), x, y, rp.Linf(eps=0.05, clip=(0, 1)), seed=0)
    assert max(seen) == 5
