"""Optimizers and schedulers that `fit` works with, and those that it refuses, with what to do."""

from __future__ import annotations

import pytest
import torch
from support.digits import batched, network
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

import robust_plugins as rp


def _fit(digits: rp.Dataset, model: nn.Module, optimizer: object, *, epochs: int = 1, **parameters: object) -> object:
    return rp.fit(model, batched(digits, samples=128), rp.recipe("standard"), epochs=epochs, optimizer=optimizer,
                  progress=False, **parameters)  # fmt: skip


def test_a_plateau_is_told_the_mean_loss_of_the_epoch(digits: rp.Dataset) -> None:
    model = network(digits, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=100.0, threshold_mode="abs")
    told: list[float] = []
    step = scheduler.step

    def stepped(metrics: float) -> None:
        told.append(metrics)
        step(metrics)

    scheduler.step = stepped
    record = _fit(digits, model, optimizer, epochs=4, scheduler=scheduler)
    assert told == [epoch.loss for epoch in record.epochs]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)  # no epoch beats the first by so much


def test_a_plateau_resumes(digits: rp.Dataset, tmp_path: object) -> None:
    def run(folder: object, epochs: int) -> list[Tensor]:
        model = network(digits, (8,))
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=0.5)
        _fit(digits, model, optimizer, epochs=epochs, scheduler=scheduler, checkpoint=folder)
        return list(model.parameters())

    expected = run(None, 4)
    run(tmp_path, 2)
    assert all(torch.equal(a, b) for a, b in zip(run(tmp_path, 4), expected, strict=True))


@pytest.mark.usefixtures("unchecked")
def test_schedulers_that_cannot_be_stepped_once_an_epoch(digits: rp.Dataset) -> None:
    model = network(digits, (8,))
    optimizer, other = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    for scheduler, said in (
        (lr_scheduler.ReduceLROnPlateau(optimizer, mode="max"), "mode='min'"),
        (lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20), "total_steps=epochs"),
        (lr_scheduler.StepLR(other, 1), r"StepLR\(optimizer, ...\)"),
        (lambda: None, r"LRScheduler, or None"),
        (lr_scheduler.StepLR, r"StepLR\(optimizer, step_size=10\)"),
    ):
        with pytest.raises(rp.ArgumentError, match=f"`scheduler` .*{said}"):
            _fit(digits, model, optimizer, epochs=2, scheduler=scheduler)
    for scheduler in (
        lr_scheduler.ReduceLROnPlateau(optimizer, mode="min"), lr_scheduler.StepLR(optimizer, step_size=10),
        lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=2),
    ):  # fmt: skip
        _fit(digits, model, optimizer, epochs=2, scheduler=scheduler)


@pytest.mark.usefixtures("unchecked")
def test_optimizers_that_cannot_train_the_model(digits: rp.Dataset) -> None:
    model, other = network(digits, (8,)), network(digits, (8,))
    averaged = AveragedModel(model)
    for subject, optimizer, said in (
        (model, torch.optim.LBFGS(model.parameters()), "`optimizer` is LBFGS.*torch.optim.Adam or torch.optim.SGD"),
        (model, torch.optim.Adam(other.parameters()), "`optimizer` is holding none of the model's parameters"),
        (averaged, torch.optim.Adam(model.parameters()), "`optimizer` is holding none"),
        (model, None, r"`optimizer` is None.*torch.optim.Adam\(model.parameters\(\)\)"),
        (model, model.parameters(), "`optimizer`"),
        (lambda x: x, torch.optim.Adam(model.parameters()), "`model` is function"),
        (nn.Flatten(), torch.optim.Adam(model.parameters()), "`model` is a Flatten without parameters"),
    ):
        with pytest.raises(rp.ArgumentError, match=said):
            _fit(digits, subject, optimizer)
    frozen = network(digits, (8,)).requires_grad_(False)
    with pytest.raises(rp.ArgumentError, match=r"model.requires_grad_\(True\)"):
        _fit(digits, frozen, torch.optim.SGD(frozen.parameters(), lr=0.1))
    frozen.requires_grad_(True)
    for subject, optimizer in (
        (frozen, torch.optim.SGD(frozen.parameters(), lr=0.1)), (model, torch.optim.Adam(model.parameters())),
        (model, torch.optim.SGD(model.parameters(), lr=0.1)),
        (model, torch.optim.SGD([*model.parameters(), nn.Parameter(torch.ones(1))], lr=0.1)),
    ):  # fmt: skip
        _fit(digits, subject, optimizer)


def test_a_loss_without_gradients(digits: rp.Dataset) -> None:
    model = network(digits, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for loss in (lambda model, x, y: model(x).detach().mean(), lambda model, x, y: torch.tensor(1.0)):
        with pytest.raises(rp.ArgumentError, match="`loss` is without gradients"):
            rp.fit(model, batched(digits, samples=64), loss, epochs=1, optimizer=optimizer, progress=False)
