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
