"""Results with networks in files: weights and no code, put into a network that is like the one that was trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import robust_plugins as rp
from robust_plugins.harness.weights import Weights

X, Y = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)).double(), torch.arange(40) % 2
TRAINING: dict[str, Any] = {"loss": "cross_entropy", "optimizer": rp.SGD(lr=0.1), "epochs": 2, "progress": False}
BUDGET = rp.PoisoningBudget(points=2, eps=0.01)


def network(seed: int = 0, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 2)).double()


class Turned(nn.Sequential):
    """The same layers, in another order in forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, activation, last = self
        return -last(activation(first(x)))


class Recorded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.net(x))


@pytest.mark.parametrize("domain", ["box", "zonotope"])
def test_queries_of_a_run_from_a_file_are_the_same_to_the_bit(domain: Any, tmp_path: Path) -> None:
    run = rp.abstract_gradient_training(network(), [(X, Y)], BUDGET, domain=domain, validation=(X, Y), **TRAINING)
    again = rp.PoisoningRun.load(run.save(tmp_path / "run.npz"), network(seed=1))
    for ball in (None, rp.Linf(eps=0.01, clip=(0, 1)), rp.L2(eps=0.01, clip=(0, 1))):
        found, expected = again.logits(X, ball=ball), run.logits(X, ball=ball)
        assert torch.equal(found.lower, expected.lower)
        assert torch.equal(found.upper, expected.upper)
    assert again.worst_loss(X, Y) == run.worst_loss(X, Y)
    assert (again.history, again.budget, again.rounding) == (run.history, run.budget, run.rounding)
    assert (again.domain is None) == (domain == "box")
    assert [p.requires_grad for p in again.nominal.parameters()] == [True] * 4
    assert not again.nominal.training


def test_a_network_that_is_another_one_is_refused(tmp_path: Path) -> None:
    path = rp.abstract_gradient_training(network(), [(X, Y)], BUDGET, **TRAINING).save(tmp_path / "run.npz")
    torch.manual_seed(0)
    turned = Turned(*network())
    for model, cause in (
        (None, r"PoisoningRun\.load\(path, model\)"),
        (network(activation=nn.Tanh), "one of other layers"),
        (network().float(), "'0.weight' is torch.float32"),
        (nn.Linear(3, 2).double(), "one of other layers"),
        (turned, "of other layers"),
        (nn.Sequential(Turned(*network())), "one of other layers"),
    ):
        with pytest.raises(rp.ArgumentError, match=cause):
            rp.PoisoningRun.load(path, model)
    hooked = network()
    hooked.register_forward_hook(lambda module, args, out: out + 1e-6)
    with pytest.raises(rp.ArgumentError, match="computes something else with the same weights"):
        rp.PoisoningRun.load(path, hooked)
    rp.PoisoningRun.load(path, network(seed=3))  # as the messages say


def test_where_there_is_no_network_none_is_asked_for(tmp_path: Path) -> None:
    model, x = network().float(), torch.rand(5, 3)
    found = rp.attack("rp:fgsm")(model, x, model(x).argmax(1), rp.Linf(eps=0.1, clip=None), seed=0)
    path = found.save(tmp_path / "attack.npz")
    with pytest.raises(rp.ArgumentError, match=r"holds no network. Leave it out"):
        rp.AttackResult.load(path, model)
    assert torch.equal(rp.AttackResult.load(path).x_adv, found.x_adv)


def test_records_with_logits_are_trained_abstractly_and_kept(tmp_path: Path) -> None:
    batches = [(X, Y)]
    plain = rp.abstract_gradient_training(network(), batches, BUDGET, **TRAINING)
    run = rp.abstract_gradient_training(Recorded(), batches, BUDGET, **TRAINING)
    assert [f"net.{name}" for name in plain.parameters] == list(run.parameters)
    for name, expected in plain.parameters.items():
        found = run.parameters[f"net.{name}"]
        assert torch.equal(found.lower, expected.lower)
        assert torch.equal(found.upper, expected.upper)
    assert torch.equal(run.nominal(X), plain.nominal(X))  # the logits themselves
    assert run.certified_accuracy(X, Y) == plain.certified_accuracy(X, Y)
    again = rp.PoisoningRun.load(run.save(tmp_path / "run.npz"), Recorded())
    assert torch.equal(again.logits(X).lower, run.logits(X).lower)
    assert isinstance(Recorded()(X), SimpleNamespace)  # the user's own is as it was
    bracket = rp.poisoning_bracket(
        Recorded(), batches, BUDGET, validation=(X, Y), attacks=["poison:random(count=2)", "poison:loss-ascent"],
        **TRAINING,
    )  # fmt: skip
    assert bracket.crossings == ()
    assert bracket.width.empirical <= bracket.width.certified


def test_runs_take_arrays_data_sets_and_loaders() -> None:
    run = rp.abstract_gradient_training(network(), [(X.numpy(), Y.numpy())], BUDGET, **TRAINING)
    data = torch.utils.data.TensorDataset(X, Y)
    loader = torch.utils.data.DataLoader(data, batch_size=7)
    expected = run.certified_prediction(X)
    for given in (X.numpy(), X.numpy().astype("float32"), data, loader):
        found = run.certified_prediction(given)
        assert torch.equal(found, expected)
    for pair in ((X.numpy(), Y.numpy()), (X, Y.tolist()), (data, None), (loader, None)):
        assert run.certified_accuracy(*pair) == run.certified_accuracy(X, Y)
        assert run.worst_loss(*pair) == run.worst_loss(X, Y)
    assert torch.equal(run.excludes(X.numpy(), 1), run.excludes(X, 1))
    assert torch.equal(run.logits(X.numpy()).upper, run.logits(X).upper)
    with pytest.raises(rp.ArgumentError, match="Only a TensorDataset or a DataLoader has them itself"):
        run.certified_accuracy(X, None)


def test_what_has_no_shape_is_not_kept(tmp_path: Path) -> None:
    run = rp.abstract_gradient_training(network(), [(X, Y)], BUDGET, **TRAINING)
    assert run.input_shape == (3,)
    bare = rp.PoisoningRun(run.nominal, run.parameters, run.history, run.budget, run.loss)
    with pytest.raises(rp.ArgumentError, match=r"input_shape=tuple\(x\.shape\[1:\]\)"):
        bare.save(tmp_path / "run.npz")
    assert not list(tmp_path.iterdir())
    assert not Weights.of(run.nominal, (3,)).tensors["0.weight"].requires_grad
