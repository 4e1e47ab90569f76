"""What people have in the place of tensors, modules and names is taken where there is one meaning."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robust_plugins as rp

BALL = rp.Linf(eps=0.05, clip=(0, 1))
COMPONENTS = ["rp:pgd(steps=3)", "interval:ibp"]


def case() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(12, 4)
    return model, x, model(x).argmax(1)


def bracket(model: Any, x: Any, y: Any) -> tuple[Any, ...]:
    found = rp.compare(model, x, y, BALL, COMPONENTS, seed=0)
    margins = found["interval:ibp"].result.margin  # type: ignore[union-attr]
    return found.bracket, margins.tolist()


def test_arrays_loaders_and_data_sets_give_what_tensors_give() -> None:
    model, x, y = case()
    expected = bracket(model, x, y)
    pairs = TensorDataset(x, y)
    for samples, labels in (
        (x.numpy(), y.numpy()), (x.numpy(), y.tolist()), (x.numpy().astype(np.float64), y), (x, y.numpy()),
        (pairs, None), (DataLoader(pairs, batch_size=5), None),
    ):  # fmt: skip
        assert bracket(model, samples, labels) == expected
    radii = [
        rp.critical_radius({"ibp": "interval:ibp"}, model, *given, BALL, calls=3, seed=0).certified
        for given in ((x, y), (x.numpy(), y.numpy()), (pairs, None))
    ]
    assert torch.equal(radii[0], radii[1])
    assert torch.equal(radii[0], radii[2])
    explained = [
        rp.compare_explanations(model, *given, BALL, ["interval:ibp"], seed=0).value
        for given in ((x, y), (x.numpy(), y.numpy()), (DataLoader(pairs, batch_size=5), None))
    ]
    assert torch.equal(explained[0], explained[1])
    assert torch.equal(explained[0], explained[2])


def test_single_calls_take_arrays_and_loaders_and_give_tensors() -> None:
    model, x, y = case()
    attack, certifier, pairs = rp.attack("rp:pgd", steps=3), rp.certifier("interval:ibp"), TensorDataset(x, y)
    found, proved = attack(model, x, y, BALL, seed=0), certifier(model, x, y, BALL)
    for given in ((x.numpy(), y.numpy()), (x.numpy().astype(np.float64), y.tolist()), (DataLoader(pairs, 5), None)):
        assert torch.equal(attack(model, *given, BALL, seed=0).x_adv, found.x_adv)
        assert torch.equal(attack(model, *given, BALL, seed=0, eps=[0.05])[0].x_adv, found.x_adv)
        assert torch.equal(certifier(model, *given, BALL).margin, proved.margin)
        assert certifier(model, *given, BALL).verdicts == proved.verdicts
    with pytest.raises(rp.ArgumentError, match=r"an array of int64.*Scale bytes"):
        attack(model, np.ones((2, 4), dtype=np.int64), y[:2], BALL)


@pytest.mark.usefixtures("unchecked")  # the checker of types would be first
def test_what_has_two_meanings_is_refused() -> None:
    model, x, y = case()
    with pytest.raises(rp.ArgumentError, match=r"given beside a TensorDataset.*Give y=None"):
        bracket(model, TensorDataset(x, y), y)
    with pytest.raises(rp.ArgumentError, match="other things than pairs"):
        bracket(model, TensorDataset(x), None)
    with pytest.raises(rp.ArgumentError, match=r"an array of uint8.*astype\(np\.float32\) / 255"):
        bracket(model, (255 * x).byte().numpy(), y)
    scaled = (255 * x).byte().numpy().astype(np.float32) / 255  # as the message says
    assert bracket(model, scaled, y)
    with pytest.raises(rp.ArgumentError, match="`y` is None"):
        bracket(model, x, None)


@dataclass
class Output:
    """What models of transformers return."""

    logits: Tensor
    hidden: Tensor | None = None


class Classifier(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Output:
        return Output(self.body(x))


def test_the_logits_of_a_record_are_the_model_s() -> None:
    model, x, y = case()
    assert bracket(Classifier(model), x, y) == bracket(model, x, y)
    own, plain = (rp.attack("rp:fgsm")(m, x, y, BALL, seed=0) for m in (Classifier(model), model))
    assert torch.equal(own.logits, plain.logits)


@pytest.mark.usefixtures("unchecked")
def test_a_module_is_a_model_and_a_data_set_is_no_name() -> None:
    model, x, y = case()
    assert rp.load_model(model) is model
    for wrong in (TensorDataset(x, y), 3):
        with pytest.raises(rp.ArgumentError, match=r"rp\.Dataset\(name="):
            rp.dataset(wrong)  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", [rp.Linf, rp.L2, rp.L1])
def test_a_ball_without_its_range_says_what_to_write(kind: type[rp.Ball]) -> None:
    for wrong in (lambda: kind(0.1), lambda: kind(eps=0.1), lambda: kind(0.1, clip=(0, 1))):  # type: ignore[misc]
        with pytest.raises(
            rp.ArgumentError, match=rf"Write rp\.{kind.__name__}\(eps=0\.1, clip=\(0, 1\)\), or clip=None"
        ):
            wrong()
    ball = kind(eps=0.1, clip=(0, 1))
    for again in (copy.copy(ball), copy.deepcopy(ball), pickle.loads(pickle.dumps(ball)), replace(ball, eps=0.1)):
        assert again == ball
    assert kind(eps=0.1, clip=None).clip is None
