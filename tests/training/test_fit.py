"""The training loop: modes, clipping, accumulation, the table, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.digits import EPS, batched, network
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robust_plugins as rp


def test_modes_are_as_found(digits: rp.Dataset) -> None:
    model = network(digits, (8,), dropout=0.1).eval()
    seen = []

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(model.training)
        return nn.functional.cross_entropy(model(x), y)

    rp.fit(model, batched(digits, samples=64), loss, epochs=1, progress=False,
           optimizer=torch.optim.SGD(model.parameters(), lr=0.1))  # fmt: skip
    assert seen == [True]
    assert not any(module.training for module in model.modules())


def test_clipping_and_accumulation(digits: rp.Dataset) -> None:
    """Two batches of 32 are one of 64; a clipped step of plain gradient descent is as long as it may be."""
    moved = []
    for size, accumulate in ((64, 1), (32, 2)):
        model = network(digits, (16,))
        before = [p.detach().clone() for p in model.parameters()]
        loader = DataLoader(TensorDataset(digits.x_train[:64], digits.y_train[:64]), batch_size=size)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        rp.fit(model, loader, rp.recipe("standard"), epochs=1, optimizer=optimizer, clip_gradient=0.01,
               accumulate=accumulate, progress=False)  # fmt: skip
        moved.append(torch.cat([(p - b).flatten() for p, b in zip(model.parameters(), before, strict=True)]).detach())
    assert moved[0].norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-3, atol=1e-6)


def test_the_table(digits: rp.Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    model, ball = network(digits, (16,)), rp.Linf(eps=EPS, clip=digits.clip)
    scores = rp.Scores(x=digits.x_test[:50], y=digits.y_test[:50], ball=ball, batch_size=20)
    record = rp.fit(model, batched(digits, samples=128), rp.recipe("goodfellow", ball=ball), epochs=2, evaluate=scores,
                    optimizer=torch.optim.Adam(model.parameters()))  # fmt: skip
    assert record.final.scores == scores(model)
    assert record.final.scores == rp.Scores(x=scores.x, y=scores.y, ball=ball)(model)
    lines = str(record).splitlines()
    assert lines[0].split() == ["epoch", "loss", "clean", "loss", "worst", "loss", "eps", "gamma", "seconds", "clean",
                                "art:pgd", "interval:ibp"]  # fmt: skip
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[0] for line in lines[1:]] == ["1", "2"]
    assert capsys.readouterr().err.splitlines() == lines
    assert rp.TrainingRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


@pytest.mark.usefixtures("unchecked")
def test_wrong_numbers(digits: rp.Dataset) -> None:
    model = network(digits, (16,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader, standard = batched(digits, samples=64), rp.recipe("standard")
    for wrong in ({"epochs": 0}, {"epochs": 2.5}, {"epochs": 1, "accumulate": 0}, {"epochs": 1, "accumulate": 1.5},
                  {"epochs": 1, "clip_gradient": 0.0}):  # fmt: skip
        with pytest.raises(rp.ArgumentError, match=list(wrong)[-1]):
            rp.fit(model, loader, standard, optimizer=optimizer, **wrong)
    x, y = digits.x_train[:8], digits.y_train[:8]
    for batches in ([(x, y, y)], [{"x": x, "y": y}], [(x.numpy(), y.numpy())], iter([(x, y)]), []):
        with pytest.raises(rp.ArgumentError, match="loader"):
            rp.fit(model, batches, standard, epochs=1, optimizer=optimizer, progress=False)
    for value in (1.0, torch.ones(2)):
        with pytest.raises(rp.ArgumentError, match="loss"):
            rp.fit(model, loader, lambda model, x, y, value=value: value, epochs=1, optimizer=optimizer,
                   progress=False)  # fmt: skip


def test_losses_of_torch_are_of_the_outputs(digits: rp.Dataset, tmp_path: Path) -> None:
    batches = list(batched(digits, samples=128))
    found = []
    for loss in (nn.CrossEntropyLoss(), nn.functional.cross_entropy, rp.recipe("standard")):
        model = network(digits, (8,))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        found.append(rp.fit(model, batches, loss, epochs=1, optimizer=optimizer, progress=False).final.loss)
    assert found[0] == found[1] == found[2]
    model = network(digits, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = {"epochs": 1, "optimizer": optimizer, "checkpoint": tmp_path, "progress": False}
    rp.fit(model, batches, nn.CrossEntropyLoss(), **arguments)
    with pytest.raises(rp.ArgumentError, match="its loss is"):
        rp.fit(model, batches, nn.MultiMarginLoss(), **arguments)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_used_is_said_before_training(digits: rp.Dataset, tmp_path: Path) -> None:
    model = network(digits, (8,))
    batches, before = list(batched(digits, samples=64)), [p.detach().clone() for p in model.parameters()]
    (tmp_path / "file").write_text("")
    for wrong in (
        {"loss": "standard"}, {"evaluate": 3}, {"clip_gradient": "1"}, {"checkpoint": tmp_path / "file"},
        {"checkpoint": tmp_path / "file" / "run"},
    ):  # fmt: skip
        arguments = {"loss": rp.recipe("standard"), "epochs": 1, "progress": False} | wrong
        with pytest.raises(rp.ArgumentError, match=f"`{next(iter(wrong))}`"):
            rp.fit(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **arguments)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    with pytest.raises(rp.ArgumentError, match="`evaluate` is returning None"):
        rp.fit(model, batches, rp.recipe("standard"), epochs=1, evaluate=lambda model: None, progress=False,
               optimizer=torch.optim.SGD(model.parameters(), lr=0.1))  # fmt: skip
