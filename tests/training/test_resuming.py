"""Checkpoints: an interrupted training ends with the same bits, another one's is refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy
import pytest
import torch
from support.digits import EPS, batched, network
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import robust_plugins as rp


class _InterruptedError(Exception):
    pass


def _start(
    digits: rp.Dataset, folder: Path | None, *, epochs: int, own_generator: bool, stop: int | None = None
) -> tuple[rp.TrainingRecord | None, list[Tensor]]:
    model = network(digits, (16,), dropout=0.2)
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(5) if own_generator else None
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.2)
    ball = rp.Linf(eps=EPS, clip=digits.clip)
    mixed = rp.recipe("mtl-ibp", ball=ball, epochs=5, steps=2, schedule=rp.Ramp(start=0, end=4))
    calls = 0

    class Loss:
        step = staticmethod(mixed.step)

        def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise _InterruptedError
            return mixed(model, x, y)

    record = None
    try:
        record = rp.fit(model, batched(digits, samples=256, generator=generator), Loss(), epochs=epochs,
                        optimizer=optimizer, scheduler=scheduler, checkpoint=folder, clip_gradient=5.0,
                        accumulate=3, progress=False)  # fmt: skip
    except _InterruptedError:
        assert stop is not None
    return record, [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("stop", [7, 11])  # the scheduler's step is between their epochs
def test_an_interrupted_run_ends_with_the_same_bits(
    own_generator: bool, stop: int, digits: rp.Dataset, tmp_path: Path
) -> None:
    whole, expected = _start(digits, None, epochs=5, own_generator=own_generator)
    _start(digits, tmp_path, epochs=5, own_generator=own_generator, stop=stop)  # in an epoch of four batches
    torch.rand(10)  # another process would not have these random states either
    resumed, found = _start(digits, tmp_path, epochs=5, own_generator=own_generator)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [(e.epoch, e.loss, e.worst, e.eps, e.gamma) for e in resumed.epochs] == [
        (e.epoch, e.loss, e.worst, e.eps, e.gamma) for e in whole.epochs
    ]
    again, unchanged = _start(digits, tmp_path, epochs=5, own_generator=own_generator)
    assert again == resumed
    assert all(torch.equal(a, b) for a, b in zip(unchanged, expected, strict=True))


def test_another_training_s_checkpoint_is_refused_and_changes_nothing(digits: rp.Dataset, tmp_path: Path) -> None:
    ball = rp.Linf(eps=EPS, clip=digits.clip)

    def run(
        folder: Path, *, width: int = 16, kind: type = torch.optim.Adam, recipe: str = "madry", decay: bool = False,
        fresh: bool = False,
    ) -> nn.Module:  # fmt: skip
        model = network(digits, (width,))
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = kind(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1) if decay else None
        loss, state = rp.recipe(recipe, ball=ball), torch.get_rng_state()
        try:
            rp.fit(model, batched(digits, samples=64), loss, epochs=1, optimizer=optimizer, scheduler=scheduler,
                   checkpoint=folder, progress=False)  # fmt: skip
        except rp.ArgumentError:
            assert torch.equal(torch.get_rng_state(), state)
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
            raise
        return model

    run(tmp_path / "a")
    run(tmp_path / "a")
    for what, other in {
        "model": {"width": 8}, "optimizer": {"kind": torch.optim.SGD}, "loss": {"recipe": "madry(steps=3)"},
        "scheduler": {"decay": True},
    }.items():  # fmt: skip
        with pytest.raises(rp.ArgumentError, match=f"its {what} is .*Name another folder"):
            run(tmp_path / "a", **other)
    (tmp_path / "a" / "last.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(rp.ArgumentError, match="cannot be read"):
        run(tmp_path / "a")
    torch.save({"weights": torch.ones(1)}, tmp_path / "a" / "last.pt")
    with pytest.raises(rp.ArgumentError, match="no checkpoint of this package"):
        run(tmp_path / "a")


@pytest.mark.parametrize("where", ["sampler", "batch_sampler", "own"])
def test_generators_of_samplers_are_part_of_a_checkpoint(where: str, digits: rp.Dataset, tmp_path: Path) -> None:
    data = TensorDataset(digits.x_train[:256], digits.y_train[:256])

    def loader() -> object:
        generator = torch.Generator().manual_seed(5)
        sampler = RandomSampler(data, generator=generator)
        if where == "sampler":
            return DataLoader(data, batch_size=64, sampler=sampler)
        batches = BatchSampler(sampler, 64, drop_last=False)
        if where == "batch_sampler":
            return DataLoader(data, batch_sampler=batches)

        class Own:
            def __init__(self) -> None:
                self.generator = generator

            def __len__(self) -> int:
                return 4

            def __iter__(self) -> object:
                return iter([data[rows] for rows in batches])

        return Own()

    def run(folder: Path | None, *, stop: int | None = None) -> list[Tensor]:
        model, calls = network(digits, (16,)), 0

        def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise _InterruptedError
            return nn.functional.cross_entropy(model(x), y)

        try:
            rp.fit(model, loader(), loss, epochs=3, optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
                   checkpoint=folder, progress=False)  # fmt: skip
        except _InterruptedError:
            assert stop is not None
        return [p.detach().clone() for p in model.parameters()]

    expected = run(None)
    run(tmp_path, stop=6)
    torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(run(tmp_path), expected, strict=True))


@pytest.mark.usefixtures("unchecked")  # the type checker draws random numbers
def test_all_random_states_go_on(digits: rp.Dataset, tmp_path: Path) -> None:
    def run(folder: Path | None, *, stop: int | None = None) -> list[float]:
        seen: list[float] = []
        model = network(digits, (4,))
        torch.manual_seed(1)
        random.seed(1)
        numpy.random.seed(1)  # noqa: NPY002 (the global state is what is tested, here and below)

        def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            if len(seen) == stop:
                raise _InterruptedError
            seen.append(torch.rand(()).item() + random.random() + numpy.random.rand())  # noqa: NPY002
            return nn.functional.cross_entropy(model(x), y)

        try:
            rp.fit(model, batched(digits, samples=128), loss, epochs=3, checkpoint=folder, progress=False,
                   optimizer=torch.optim.SGD(model.parameters(), lr=0.1))  # fmt: skip
        except _InterruptedError:
            assert stop is not None
        return seen

    expected = run(None)
    first = run(tmp_path, stop=3)[:2]  # the second epoch is begun anew, by a process with other states
    assert first + run(tmp_path) == expected
