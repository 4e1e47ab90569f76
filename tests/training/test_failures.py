"""Training stops at what is not finite, and says where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.digits import EPS, batched, network
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robust_plugins as rp


def test_nan_stops_and_keeps_the_last_good_checkpoint(digits: rp.Dataset, tmp_path: Path) -> None:
    model = network(digits, (16,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = rp.recipe("standard")
    calls = 0

    def poisoned(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return loss(model, x * torch.nan if calls == 7 else x, y)

    with pytest.raises(rp.TrainingError, match="nan in epoch 2, batch 3"):
        rp.fit(model, batched(digits, samples=256), poisoned, epochs=3, optimizer=optimizer, checkpoint=tmp_path,
               progress=False)  # fmt: skip
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert len(state["record"]["epochs"]) == 1
    assert all(value.isfinite().all() for value in state["model"].values())
    assert model.training  # as it was found


def test_weights_that_are_not_finite_are_not_saved(digits: rp.Dataset, tmp_path: Path) -> None:
    model = network(digits, (16,))
    optimizer = torch.optim.SGD(model.parameters(), lr=float("inf"))
    with pytest.raises(rp.TrainingError, match="a weight is not finite in epoch 1"):
        rp.fit(model, batched(digits, samples=64), rp.recipe("standard"), epochs=1, optimizer=optimizer,
               checkpoint=tmp_path, progress=False)  # fmt: skip
    assert not (tmp_path / "last.pt").exists()


@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "sabr", "mtl-ibp", "cc-ibp", "exp-ibp"])
def test_bounds_that_refuse_what_is_not_finite_name_the_batch_too(
    name: str, digits: rp.Dataset, tmp_path: Path
) -> None:
    ball = rp.Linf(eps=EPS, clip=digits.clip)
    loss = rp.recipe(name, ball=ball, epochs=1, schedule=rp.Ramp(start=0, end=0))
    model, loader = network(digits, (16,)), batched(digits, samples=256)
    with pytest.raises(rp.TrainingError, match="a weight is not finite in epoch 1, batch 2") as caught:
        rp.fit(model, loader, loss, epochs=1, optimizer=torch.optim.SGD(model.parameters(), lr=float("inf")),
               checkpoint=tmp_path, progress=False)  # fmt: skip
    assert isinstance(caught.value.__cause__, rp.RobustPluginsError)
    data = digits.x_train[:256].clone()
    data[100] = torch.nan
    batches = DataLoader(TensorDataset(data, digits.y_train[:256]), batch_size=64)
    model = network(digits, (16,))
    with pytest.raises(rp.TrainingError, match=r"an input is not finite in epoch 1, batch 2.*clean the data"):
        rp.fit(model, batches, loss, epochs=1, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), progress=False)


@pytest.mark.parametrize(("accumulate", "clip", "place"), [
    (1, None, "batch 2"), (1, 5.0, "batch 2"), (3, None, "batches 1 to 3"), (3, 5.0, "batches 1 to 3"),
])  # fmt: skip
def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_lost(
    accumulate: int, clip: float | None, place: str, digits: rp.Dataset
) -> None:
    model, calls = network(digits, (16,)), 0

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        zero = (model(x) * 0).sum()
        return zero.sqrt() if calls == 2 else zero + sum(p.sum() for p in model.parameters())

    with pytest.raises(rp.TrainingError, match=f"the gradient is not finite in epoch 1, {place}"):
        rp.fit(model, batched(digits, samples=256), loss, epochs=1, accumulate=accumulate, clip_gradient=clip,
               optimizer=torch.optim.SGD(model.parameters(), lr=0.1), progress=False)  # fmt: skip
    assert all(bool(p.isfinite().all()) for p in model.parameters())
