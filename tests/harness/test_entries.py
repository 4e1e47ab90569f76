"""Every public call takes arrays, and data sets where those are read whole; records with logits stand for these."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import robust_plugins as rp

BALL = rp.Linf(eps=0.05, clip=(0, 1))
X = np.random.default_rng(0).random((12, 4))  # float64, for a model in float32
Y = np.arange(12) % 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class Recorded(nn.Module):
    """Returns a record, as models of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.net(x))


def _trained(x: Any, y: Any) -> torch.Tensor:
    model = network()
    rp.train(model, x, y, epochs=1, seed=0)
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def _explained_by_certifier(x: Any, y: Any) -> torch.Tensor:
    return rp.explanation_certifier("interval:ibp")(network(), x, y, BALL, delta=1.0).gradient.upper


def _explained_by_attack(x: Any, y: Any) -> torch.Tensor:
    attack = rp.explanation_attack("gradient:corner-pgd(steps=2, restarts=1)")
    return attack(network(), x, y, BALL, seed=0).gradient


@pytest.mark.parametrize("call", [_trained, _explained_by_certifier, _explained_by_attack])
def test_arrays_data_sets_and_loaders_are_as_good_as_tensors(call: Callable[[Any, Any], torch.Tensor]) -> None:
    x, y = torch.tensor(X, dtype=torch.float32), torch.tensor(Y)
    expected = call(x, y)
    data = TensorDataset(x, y)
    for given in ((X, Y), (data, None), (DataLoader(data, batch_size=5), None)):
        torch.testing.assert_close(call(*given), expected, rtol=0, atol=0)


def test_scores_and_properties_take_arrays() -> None:
    model, x = network(), torch.tensor(X, dtype=torch.float32)
    by_arrays, by_tensors = (
        rp.Scores(x=x, y=y, ball=BALL, attack="rp:fgsm")(model) for x, y in ((X, Y), (x, torch.tensor(Y)))
    )
    assert by_arrays == by_tensors
    unsafe = [rp.Halfspaces(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([100.0]))]
    ends = np.zeros(4, np.float32), np.full(4, 0.1, np.float32)
    assert rp.verify_property(model, *ends, unsafe, timeout=10).answer == "unsat"


def _mixed(worst: str) -> Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda model, x, y: rp.MixedLoss(worst=worst, gamma=0.5, ball=BALL, schedule=rp.Ramp(start=0, end=0))(
        model, x, y
    )


LOSSES: dict[str, Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "bounds": _mixed("interval:ibp"),
    "attack": _mixed("rp:fgsm"),
    "gradient bounds": rp.GradientCertLoss(ball=BALL, alpha=1.0),
    "gradient": rp.losses.L2Penalty(),
    "Hessian": rp.losses.HessianPenalty(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_records_are_those_of_their_logits(name: str) -> None:
    model, x, y = Recorded(), torch.tensor(X, dtype=torch.float32), torch.tensor(Y)
    found = []
    for trained in (model, model.net):
        model.zero_grad()
        torch.manual_seed(1)
        value = LOSSES[name](trained, x, y)
        value.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((value.detach(), *gradients))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert len(found[0]) > 2


@pytest.mark.parametrize("outputs", [1, 3])
def test_records_are_trained_as_their_logits_are(outputs: int) -> None:
    x, y = torch.tensor(X, dtype=torch.float32), torch.tensor(Y).clamp(max=1 if outputs == 1 else 2)
    weights = []
    for wrapped in (True, False):
        model = Recorded()
        model.net[2] = nn.Linear(8, outputs, bias=False)
        nn.init.ones_(model.net[2].weight)
        trained = model if wrapped else model.net
        task: Any = "binary" if outputs == 1 else None
        rp.train(trained, x, y, epochs=1, seed=0, task=task)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss: Any = nn.CrossEntropyLoss() if outputs == 3 else _mixed("interval:ibp")
        rp.fit(trained, [(x, y)], loss, epochs=1, optimizer=optimizer, progress=False)
        weights.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    assert torch.equal(*weights)
    scores = rp.Scores(x=x, y=y, ball=BALL, attack="rp:fgsm")
    assert scores(model) == scores(model.net)


def test_wrappers_of_a_loss_are_kept_from_batch_to_batch() -> None:
    loss = rp.MixedLoss(worst="interval:ibp", gamma=0.5, ball=BALL, schedule=rp.Ramp(start=0, end=0))
    model, x, y = Recorded(), torch.tensor(X, dtype=torch.float32), torch.tensor(Y)
    loss(model, x, y)
    first = loss._wrapped
    loss(model, x, y)
    assert first is not None
    assert loss._wrapped is first  # so that its graph is found again
    loss(Recorded(), x, y)
    assert loss._wrapped is not first


def test_properties_of_records_are_those_of_their_logits() -> None:
    unsafe = [rp.Halfspaces(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([100.0]))]
    assert rp.verify_property(Recorded(), torch.zeros(4), torch.ones(4) / 10, unsafe, timeout=10).answer == "unsat"


@pytest.mark.parametrize("task", ["regression", "labels"])
def test_records_with_logits_are_compared_in_every_task(task: Any) -> None:
    model = Recorded()
    x = torch.tensor(X, dtype=torch.float32)
    y = None if task == "regression" else (model.net(x) > 0).long()
    found, plain = (
        rp.compare(m, x, y, BALL, ["rp:fgsm", "interval:ibp"], task=task, seed=0) for m in (model, model.net)
    )
    assert found.bracket == plain.bracket
    assert found.bracket.complete


@pytest.mark.usefixtures("unchecked")
def test_what_has_no_one_meaning_is_refused_with_what_to_write() -> None:
    model = network()
    data = TensorDataset(torch.tensor(X, dtype=torch.float32), torch.tensor(Y))
    with pytest.raises(rp.ArgumentError, match=r"DataLoader\(data, batch_size=128, shuffle=True\)"):
        rp.fit(model, data, rp.recipe("standard"), epochs=1, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(rp.ArgumentError, match="Train the network inside it"):
        rp.train(SimpleNamespace(model=model), X, Y, epochs=1, seed=0)
