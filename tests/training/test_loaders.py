"""Batches as people have them: without a length, of other precisions, in dictionaries, of one sample."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.digits import EPS, network
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import robust_plugins as rp
from robust_plugins.losses.refused import refused_inputs


class Stream(IterableDataset):
    """The samples one after another, and nobody knows how many."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(self.x, self.y, strict=True))


def _fit(model: nn.Module, loader: object, loss: object, *, epochs: int = 1, **parameters: object) -> rp.TrainingRecord:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return rp.fit(model, loader, loss, epochs=epochs, optimizer=optimizer, **({"progress": False} | parameters))


def _ball(digits: rp.Dataset) -> rp.Ball:
    return rp.Linf(eps=EPS, clip=digits.clip)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_stream_of_unknown_length(accumulate: int, digits: rp.Dataset) -> None:
    """Ramps stand still in the first epoch, in which its batches are counted; else it is as with a length."""
    x, y = digits.x_train[:200], digits.y_train[:200]
    loss = rp.recipe("ibp", ball=_ball(digits), epochs=3, schedule=rp.Ramp(start=1, end=3, shape="linear"))
    loaders = (DataLoader(Stream(x, y), batch_size=64), DataLoader(TensorDataset(x, y), batch_size=64))
    records = []
    for loader in loaders:
        model = network(digits, (8,))
        with pytest.warns(UserWarning, match="fewer than") if loader is loaders[1] else _nothing():
            records.append(_fit(model, loader, copy.deepcopy(loss), epochs=4, accumulate=accumulate, clip_gradient=5.0))
    assert [epoch.eps for epoch in records[0].epochs] == [epoch.eps for epoch in records[1].epochs]
    assert [epoch.loss for epoch in records[0].epochs] == [epoch.loss for epoch in records[1].epochs]
    assert records[0].final.eps == EPS


def _nothing() -> object:
    from contextlib import nullcontext

    return nullcontext()


def test_a_stream_resumes_with_its_count(digits: rp.Dataset, tmp_path: Path) -> None:
    """Without the number of batches of the epoch before, the ramp would stand still for another one."""
    x, y = digits.x_train[:200], digits.y_train[:200]

    def run(folder: Path, epochs: int) -> tuple[rp.TrainingRecord, list[Tensor]]:
        model = network(digits, (8,))
        loss = rp.recipe("ibp", ball=_ball(digits), epochs=3, schedule=rp.Ramp(start=1, end=3, shape="linear"))
        loader = DataLoader(Stream(x, y), batch_size=64)
        with pytest.warns(UserWarning, match="not over") if epochs < 3 else _nothing():
            record = _fit(model, loader, loss, epochs=epochs, checkpoint=folder)
        return record, list(model.parameters())

    whole, expected = run(tmp_path / "whole", 3)
    run(tmp_path / "parts", 1)
    run(tmp_path / "parts", 2)
    found, parameters = run(tmp_path / "parts", 3)
    assert [epoch.eps for epoch in found.epochs] == [epoch.eps for epoch in whole.epochs]
    assert all(torch.equal(a, b) for a, b in zip(parameters, expected, strict=True))


def test_a_stream_that_runs_dry(digits: rp.Dataset) -> None:
    class Once:
        def __init__(self) -> None:
            self.batches = iter([(digits.x_train[:8], digits.y_train[:8])])

        def __iter__(self) -> object:
            return self.batches

    with pytest.raises(rp.ArgumentError, match="`loader` is without a batch in epoch 2"):
        _fit(network(digits, (8,)), Once(), rp.recipe("standard"), epochs=2)


@pytest.mark.usefixtures("unchecked")
def test_what_is_said_of_a_generator_and_of_dictionaries_helps(digits: rp.Dataset) -> None:
    x, y = digits.x_train[:8], digits.y_train[:8]
    rows = [{"image": x, "label": y}] * 2
    model, standard = network(digits, (8,)), rp.recipe("standard")
    with pytest.raises(rp.ArgumentError, match="make a list of its batches"):
        _fit(model, iter([(x, y)]), standard)
    with pytest.raises(rp.ArgumentError, match=r"giving dict.*\[\(b\[\"image\"\], b\[\"label\"\]\) for b in loader\]"):
        _fit(model, rows, standard)
    for batches in (list(iter([(x, y)])), [(b["image"], b["label"]) for b in rows]):
        assert len(_fit(model, batches, standard).epochs) == 1
    pick = DataLoader(rows, batch_size=1, collate_fn=lambda found: (found[0]["image"], found[0]["label"]))
    assert len(_fit(model, pick, standard).epochs) == 1


def test_numbers_are_converted_to_the_precision_of_the_model(digits: rp.Dataset) -> None:
    x, y = digits.x_train[:64].double(), digits.y_train[:64]
    records = []
    for inputs in (x, x.float()):
        model = network(digits, (8,))
        records.append(_fit(model, [(inputs, y)], rp.recipe("goodfellow", ball=_ball(digits))).final.loss)
    assert records[0] == records[1]
    double = network(digits, (8,)).double()
    assert _fit(double, [(x.float(), y)], rp.recipe("standard")).final.loss == pytest.approx(records[0], rel=0.5)
    target = torch.randn(64, 1, dtype=torch.float64) * 3
    _fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), [(x, target)], rp.MixedLoss(worst=None, gamma=1, ball=None))


@pytest.mark.parametrize("recipe", ["standard", "madry", "ibp", None])
@pytest.mark.filterwarnings("ignore:the ramp")
@pytest.mark.usefixtures("unchecked")
def test_bytes_are_refused_with_what_to_do(recipe: str | None, digits: rp.Dataset) -> None:
    pixels, y = (digits.x_train[:64] * 255).to(torch.uint8), digits.y_train[:64]
    loss: object = lambda model, x, y: nn.functional.cross_entropy(model(x), y)  # noqa: E731
    if recipe is not None:
        loss = rp.recipe(recipe, **({} if recipe == "standard" else {"ball": _ball(digits)}),
                         **({"epochs": 1} if recipe == "ibp" else {}))  # fmt: skip
    model = network(digits, (8,))
    with pytest.raises(rp.ArgumentError, match=r"`x` is of torch.uint8.*x\.float\(\) / 255") as caught:
        _fit(model, [(digits.x_train[:64], y), (pixels, y)], loss)
    assert caught.value.__notes__ == ["in epoch 1, batch 2"]
    _fit(model, [(pixels.float() / 255, y)], loss)


def test_another_precision_outside_of_fit_is_refused_with_what_to_do(digits: rp.Dataset) -> None:
    model, x, y = network(digits, (8,)), digits.x_train[:8].double(), digits.y_train[:8]
    loss = rp.recipe("madry", ball=_ball(digits))
    with pytest.raises(rp.ArgumentError, match=r"x\.to\(torch\.float32\)"):
        loss(model, x, y)
    loss(model, x.to(torch.float32), y)


@pytest.mark.parametrize("recipe", ["standard", "madry", None])
def test_a_last_batch_of_one_under_batch_norm(recipe: str | None, digits: rp.Dataset) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    data = TensorDataset(digits.x_train[:9], digits.y_train[:9])
    loss: object = lambda model, x, y: nn.functional.cross_entropy(model(x), y)  # noqa: E731
    if recipe is not None:
        loss = rp.recipe(recipe, **({} if recipe == "standard" else {"ball": _ball(digits)}))
    with pytest.raises(rp.ArgumentError, match=r"a batch of 1, which batch normalisation.*drop_last=True") as caught:
        _fit(model, DataLoader(data, batch_size=4), loss)
    assert caught.value.__notes__ == ["in epoch 1, batch 3"]
    _fit(model, DataLoader(data, batch_size=4, drop_last=True), loss)

    def frozen(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        model[2].eval()
        return loss(model, x, y)

    _fit(model, DataLoader(data, batch_size=4), frozen)


def test_errors_of_other_kinds_keep_their_words_and_name_the_batch(digits: rp.Dataset) -> None:
    def broken(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise KeyError("mine")

    batch = (digits.x_train[:8], digits.y_train[:8])
    with pytest.raises(KeyError, match="mine") as caught:
        _fit(network(digits, (8,)), [batch], broken)
    assert caught.value.__notes__ == ["in epoch 1, batch 1"]
    model = nn.Linear(3, 2)
    assert refused_inputs(RuntimeError("of its own"), model, torch.rand(2, 3)) is None
    assert refused_inputs(ValueError("of its own"), model, torch.rand(2, 3).double()) is None


@pytest.mark.usefixtures("unchecked")
def test_loaders_that_give_nothing(digits: rp.Dataset) -> None:
    model, standard = network(digits, (8,)), rp.recipe("standard")
    data = TensorDataset(digits.x_train[:8], digits.y_train[:8])
    with pytest.raises(rp.ArgumentError, match="drop_last=True, a batch must not be larger"):
        _fit(model, DataLoader(data, batch_size=64, drop_last=True), standard)
    for nothing in ([], 3, None):
        with pytest.raises(rp.ArgumentError, match="`loader`"):
            _fit(model, nothing, standard)
