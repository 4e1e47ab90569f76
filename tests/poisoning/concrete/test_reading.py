"""What is given for batches and models: taken where it is clear, refused with what to do where it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.small_trainings import data, network, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robust_plugins as rp
from robust_plugins.errors import ArgumentError, UnsupportedModelError

X, Y = (torch.cat(part) for part in zip(*data(), strict=True))
NAN = X.clone()
NAN[3, 1] = torch.nan


def _either(certified: bool, model: nn.Module, batches: Any) -> None:
    """One of the two sides of a bracket."""
    how: dict[str, Any] = {"loss": "cross_entropy", "optimizer": rp.SGD(lr=0.1), "epochs": 1}
    if certified:
        train(model, batches, **how)
    else:
        rp.RandomPoisoning(count=2)(model, batches, rp.PoisoningBudget(labels=1), **how)


def loader(**how: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=10, **how)


@pytest.mark.parametrize(("batches", "said"), [
    ((X, Y), r"`batches` is with a Tensor of shape \(25, 3\) as batch 1; accepted: pairs \(x, y\). One batch is"),
    ([X, Y], "with a Tensor"), (X, "`batches` is a Tensor of shape"), ({"x": X, "y": Y}, "`batches` is a dict"),
    (TensorDataset(X, Y), "`batches` is a TensorDataset"), ([{"x": X, "y": Y}], "with a dict as batch 1"),
    ([(X, Y, Y)], "with a tuple of 3 as batch 1"), ([(X, Y), X], "as batch 2"), ("batches", "`batches` is a str"),
    ([(X[0], Y)], r"x of shape \(3,\)"), ([(X, Y[:1])], r"x of shape \(25, 3\) and y of shape \(1,\) as batch 1"),
    ([(X, Y[:7])], "one label for each sample"), ([(X, Y[0])], r"y of shape \(\)"),
    ([(NAN, Y)], "features that are not finite as batch 1"), ([(X, Y), (X * torch.inf, Y)], "not finite as batch 2"),
    ([(X[:, :2], Y)], r"samples of shape \(2,\); accepted: what the model takes. It says: mat1 and mat2"),
    ([(X, Y), (X[:, :2], Y)], r"samples of shape \(2,\)"), ([(["a"], [1])], "with a list of 1"),
    ([(X, Y.double())], "`y` is"), ([(X, Y - 1)], "`y` is"), ([(X, torch.eye(2)[Y])], "argmax"),
    (loader(shuffle=True), "a DataLoader with a RandomSampler; accepted: one that does not shuffle"),
    (3, "`batches` is an int"),
])  # fmt: skip
@pytest.mark.parametrize("certified", [True, False])
def test_what_is_no_list_of_batches_is_named(batches: Any, said: str, certified: bool, unchecked: None) -> None:
    with pytest.raises(ArgumentError, match=said):
        _either(certified, network(), batches)


@pytest.mark.parametrize("loss", ["mse", "hinge", "binary_cross_entropy"])
def test_one_label_is_not_spread_over_the_batch(loss: Any) -> None:
    with pytest.raises(ArgumentError, match="one label for each sample"):
        train(network(1), [(X, torch.ones(1).double())], rp.PoisoningBudget(), loss=loss)
    batch = (X, torch.ones(25).double())
    with pytest.raises(ArgumentError, match="`validation` is with x"):
        train(network(1), [batch], rp.PoisoningBudget(), loss=loss, validation=(X, torch.ones(1).double()))


@pytest.mark.parametrize("batches", [
    loader(), loader(shuffle=False, drop_last=False), list(loader()), tuple(data()), iter(data()),
    [(x.numpy(), y.numpy()) for x, y in data()], [(x.numpy(), y.numpy().astype(np.uint8)) for x, y in data()],
    [(x, y.tolist()) for x, y in data()], [[x, y.int()] for x, y in data()],
], ids=lambda b: type(b).__name__)  # fmt: skip
def test_what_is_clear_is_taken(batches: Any, unchecked: None) -> None:
    run = train(network(), batches, epochs=1)
    same = train(network(), data(), epochs=1)
    for name, p in run.parameters.items():
        assert torch.equal(p.lower, same.parameters[name].lower)


def test_arrays_that_cannot_be_written_to_are_taken(unchecked: None) -> None:
    frozen = X.numpy().copy()
    frozen.setflags(write=False)
    run = train(network(), [(frozen, Y.numpy())], validation=(frozen, Y.numpy()), epochs=np.int64(2))
    assert run.width == train(network(), [(X, Y)]).width


class Fresh(list[Any]):
    """Gives other data, more or fewer batches in the second epoch."""

    how = "data"
    epoch = -1

    def __iter__(self) -> Any:
        self.epoch += 1
        batches = list(list.__iter__(self))
        if not self.epoch:
            return iter(batches)
        others = {"data": [(x + 0.1, y) for x, y in batches], "labels": [(x, 1 - y) for x, y in batches]}
        others |= {"order": batches[::-1], "fewer": batches[:2], "more": [*batches, batches[0]]}
        return iter(others[self.how])


@pytest.mark.parametrize("how", ["data", "labels", "order", "fewer", "more"])
def test_epochs_that_differ_are_refused(how: str) -> None:
    """Bounds hold for one order of the data; another one trains other models."""
    batches = Fresh(data())
    batches.how = how
    with pytest.raises(ArgumentError, match="`batches` is others than in the first epoch"):
        train(network(), batches)
    assert train(network(), Fresh(data()), epochs=1).history[-1].updates == 3


def test_data_that_are_overwritten_are_refused() -> None:
    class Refilled(list[Any]):
        epoch = -1

        def __iter__(self) -> Any:
            self.epoch += 1
            for x, _ in list.__iter__(self):
                x.add_(0.1 * (self.epoch > 0))
            return list.__iter__(self)

    with pytest.raises(ArgumentError, match="others than in the first epoch: other data in batch 1"):
        train(network(), Refilled(data()))


def test_counts_above_every_batch_are_said() -> None:
    for budget in (
        rp.PoisoningBudget(points=11, eps=0.01),
        rp.PoisoningBudget(labels=11),
        rp.PoisoningBudget.removal(11),
    ):
        with pytest.warns(UserWarning, match="but no batch holds more than 10 samples"):
            train(network(), data(), budget, clip_gradient=0.01)
    train(network(), data(), rp.PoisoningBudget(points=10, eps=0.001))
    train(network(), data(), rp.PoisoningBudget.addition(11), clip_gradient=0.001)


class Noisy(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.kind = network(), kind
        self.register_buffer("seen", torch.zeros(()).double())

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.body(x)
        if self.kind == "noise":
            return z + torch.randn_like(z)
        if self.kind == "batch":
            return z - z.mean(0)
        if self.kind == "buffer":
            self.seen = self.seen * 0.9 + x.mean()
            return z + self.seen
        return nn.functional.dropout(z, training=self.training)


@pytest.mark.parametrize(("model", "error", "said"), [
    (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), ArgumentError,
     r"`model` is in training mode, where its outputs are others \(BatchNorm1d\); .*call model.eval\(\)"),
    (nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1), nn.Linear(4, 2)), ArgumentError, r"\(Dropout\)"),
    (Noisy("dropout"), ArgumentError, "in training mode"),
    (Noisy("noise").eval(), UnsupportedModelError, "other outputs each time"),
    (Noisy("batch").eval(), UnsupportedModelError, "depend on the other samples"),
    (Noisy("buffer").eval(), UnsupportedModelError, "writes into its buffer 'seen'"),
])  # fmt: skip
@pytest.mark.parametrize("certified", [True, False])
def test_models_that_train_otherwise_are_refused(model: nn.Module, error: Any, said: str, certified: bool) -> None:
    model = model.double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=said):
        _either(certified, model, data())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_modes_that_change_nothing_are_taken() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.0), nn.Linear(4, 2)).double().train()
    train(model, data())
    assert model.training
    normed = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().eval()
    assert train(normed, data()).width > 0


@pytest.mark.parametrize(("model", "said"), [
    (nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), r"`model` is returning the shape \(1,\)"),
    (nn.ReLU(), "`model` is without parameters"), (torch.relu, "torch.nn.Module"),
])  # fmt: skip
def test_models_of_other_kinds_are_named(model: Any, said: str, unchecked: None) -> None:
    with pytest.raises(ArgumentError, match=said):
        train(model.double() if isinstance(model, nn.Module) else model, data())


def test_the_former_name_of_the_clipping_works() -> None:
    with pytest.warns(DeprecationWarning, match="`clip` is now `clip_gradient`"):
        former = train(network(), data(), clip=0.1)
    assert former.width == train(network(), data(), clip_gradient=0.1).width
    with pytest.warns(DeprecationWarning, match="clip"), pytest.raises(ArgumentError, match="`clip` is"):
        train(network(), data(), clip=0.1, clip_gradient=0.1)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu")])
def test_ambient_modes_change_nothing(mode: Any) -> None:
    expected = train(network(), data(), domain="zonotope")
    x, y = data(40, 40)[0]
    with mode():
        run = train(network(), data(), domain="zonotope")
        attacked = rp.LossAscent()(network(), data(), rp.PoisoningBudget(points=1, eps=0.01), loss="cross_entropy",
                                   optimizer=rp.SGD(lr=0.2), epochs=2)  # fmt: skip
        accuracy, logits = run.certified_accuracy(x, y), run.logits(x)
    assert run.width == expected.width
    assert accuracy == expected.certified_accuracy(x, y)
    assert torch.equal(logits.lower, expected.logits(x).lower)
    assert bool(expected.parameters["0.weight"].contains(attacked.parameters["0.weight"][0], tolerance=1e-12).all())


def test_a_run_answers_for_the_training_whatever_becomes_of_its_model() -> None:
    run = train(network(), data(), domain="zonotope")
    x, y = data(40, 40)[0]
    before = run.logits(x), run.certified_accuracy(x, y)
    with torch.no_grad():
        for p in run.nominal.parameters():
            p.zero_()
    run.nominal.register_forward_hook(lambda module, given, out: out + 100)
    assert torch.equal(run.logits(x).lower, before[0].lower)
    assert run.certified_accuracy(x, y) == before[1]


def test_hooks_of_the_model_are_part_of_what_is_trained() -> None:
    model, plain = network(), network()
    model.register_forward_hook(lambda module, given, out: 2 * out)
    run, budget = train(model, data()), rp.PoisoningBudget(points=1, eps=0.01)
    attacked = rp.LossAscent()(model, data(), budget, loss="cross_entropy", optimizer=rp.SGD(lr=0.2), epochs=2)
    for name, found in attacked.parameters.items():
        assert bool(run.parameters[name].contains(found[0], tolerance=1e-12).all())
    trained = dict(run.nominal.named_parameters())["0.weight"]
    assert not torch.allclose(trained, dict(train(plain, data()).nominal.named_parameters())["0.weight"])
