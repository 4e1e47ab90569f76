"""The training loop: resumes to the same bits, stops at NaN, and every recipe learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robust_plugins as rp

EPS = 0.05


@pytest.fixture(scope="module")
def digits() -> rp.Dataset:
    return rp.dataset("digits")


def _loader(data: rp.Dataset, *, samples: int | None = None, generator: torch.Generator | None = None) -> DataLoader:
    data = TensorDataset(data.x_train[:samples], data.y_train[:samples])
    return DataLoader(data, batch_size=64, shuffle=True, generator=generator)


def _model(data: rp.Dataset, widths: tuple[int, ...] = (64, 64), *, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    model = rp.model("mlp", input_shape=data.input_shape, classes=data.classes, widths=widths)
    return nn.Sequential(*model[:-1], nn.Dropout(dropout), model[-1]) if dropout else model


FLOORS = {
    # clean, attacked, certified accuracy at eps 0.05 after 12 epochs
    "standard": (0.93, 0.70, 0.0),
    "goodfellow": (0.91, 0.79, 0.0),
    "madry": (0.91, 0.81, 0.0),
    "fast": (0.91, 0.80, 0.0),
    "trades": (0.91, 0.82, 0.0),
    "mart": (0.91, 0.82, 0.0),
    "ibp": (0.90, 0.78, 0.64),
    "crown-ibp": (0.90, 0.78, 0.62),
    "sabr": (0.91, 0.80, 0.48),
    "mtl-ibp": (0.90, 0.79, 0.60),
    "cc-ibp": (0.91, 0.80, 0.52),
    "exp-ibp": (0.91, 0.80, 0.44),
}


@pytest.mark.parametrize("name", FLOORS)
def test_every_recipe_learns(name: str, digits: rp.Dataset) -> None:
    """And what it certifies is certified by another engine too, and contradicted by no attack."""
    ball = rp.Linf(eps=EPS, clip=digits.clip)
    parameters: dict[str, object] = {} if name == "standard" else {"ball": ball}
    if FLOORS[name][2]:
        parameters |= {"epochs": 12, "schedule": rp.Ramp(start=1, end=8)}
    model = _model(digits)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    rp.fit(model, _loader(digits), rp.recipe(name, **parameters), epochs=12, optimizer=optimizer, progress=False)
    x, y = digits.x_test, digits.y_test
    scores = rp.Scores(x=x, y=y, ball=ball)(model)
    for score, floor in zip(scores.values(), FLOORS[name], strict=True):
        assert score >= floor, scores
    if not FLOORS[name][2]:
        return
    proofs = [rp.certifier(c)(model, x, y, ball) for c in ("interval:ibp", "lirpa:ibp")]
    assert proofs[0].verdicts == proofs[1].verdicts
    torch.testing.assert_close(proofs[0].margin, proofs[1].margin, rtol=1e-4, atol=1e-4)
    strong = rp.attack("art:pgd", steps=20)(model, x, y, ball, seed=1)
    assert not (strong.success & proofs[0].certified).any()


class _InterruptedError(Exception):
    pass


def _start(
    digits: rp.Dataset, folder: Path | None, *, epochs: int, own_generator: bool, stop: int | None = None
) -> tuple[rp.TrainingRecord | None, list[Tensor]]:
    model = _model(digits, (16,), dropout=0.2)
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
        record = rp.fit(model, _loader(digits, samples=256, generator=generator), Loss(), epochs=epochs,
                        optimizer=optimizer, scheduler=scheduler, checkpoint=folder, clip_gradient=5.0,
                        accumulate=3, progress=False)  # fmt: skip
    except _InterruptedError:
        assert stop is not None
    return record, [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("own_generator", [False, True])
def test_an_interrupted_run_ends_with_the_same_bits(own_generator: bool, digits: rp.Dataset, tmp_path: Path) -> None:
    whole, expected = _start(digits, None, epochs=5, own_generator=own_generator)
    _start(digits, tmp_path, epochs=5, own_generator=own_generator, stop=11)  # in the third epoch of four batches
    torch.rand(10)  # another process would not have these random states either
    resumed, found = _start(digits, tmp_path, epochs=5, own_generator=own_generator)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [(e.epoch, e.loss, e.worst, e.eps, e.gamma) for e in resumed.epochs] == [
        (e.epoch, e.loss, e.worst, e.eps, e.gamma) for e in whole.epochs
    ]
    again, unchanged = _start(digits, tmp_path, epochs=5, own_generator=own_generator)
    assert again == resumed
    assert all(torch.equal(a, b) for a, b in zip(unchanged, expected, strict=True))


def test_nan_stops_and_keeps_the_last_good_checkpoint(digits: rp.Dataset, tmp_path: Path) -> None:
    model = _model(digits, (16,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = rp.recipe("standard")
    calls = 0

    def poisoned(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return loss(model, x * torch.nan if calls == 7 else x, y)

    with pytest.raises(rp.TrainingError, match="nan in epoch 2, batch 3"):
        rp.fit(model, _loader(digits, samples=256), poisoned, epochs=3, optimizer=optimizer, checkpoint=tmp_path,
               progress=False)  # fmt: skip
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert len(state["record"]["epochs"]) == 1
    assert all(value.isfinite().all() for value in state["model"].values())
    assert model.training  # as it was found


def test_weights_that_are_not_finite_are_not_saved(digits: rp.Dataset, tmp_path: Path) -> None:
    model = _model(digits, (16,))
    optimizer = torch.optim.SGD(model.parameters(), lr=float("inf"))
    with pytest.raises(rp.TrainingError, match="a weight is not finite in epoch 1"):
        rp.fit(model, _loader(digits, samples=64), rp.recipe("standard"), epochs=1, optimizer=optimizer,
               checkpoint=tmp_path, progress=False)  # fmt: skip
    assert not (tmp_path / "last.pt").exists()


def test_clipping_and_accumulation(digits: rp.Dataset) -> None:
    """Two batches of 32 are one of 64; a clipped step of plain gradient descent is as long as it may be."""
    moved = []
    for size, accumulate in ((64, 1), (32, 2)):
        model = _model(digits, (16,))
        before = [p.detach().clone() for p in model.parameters()]
        loader = DataLoader(TensorDataset(digits.x_train[:64], digits.y_train[:64]), batch_size=size)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        rp.fit(model, loader, rp.recipe("standard"), epochs=1, optimizer=optimizer, clip_gradient=0.01,
               accumulate=accumulate, progress=False)  # fmt: skip
        moved.append(torch.cat([(p - b).flatten() for p, b in zip(model.parameters(), before, strict=True)]).detach())
    assert moved[0].norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-3, atol=1e-6)


def test_the_table(digits: rp.Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    model, ball = _model(digits, (16,)), rp.Linf(eps=EPS, clip=digits.clip)
    scores = rp.Scores(x=digits.x_test[:50], y=digits.y_test[:50], ball=ball, batch_size=20)
    record = rp.fit(model, _loader(digits, samples=128), rp.recipe("goodfellow", ball=ball), epochs=2, evaluate=scores,
                    optimizer=torch.optim.Adam(model.parameters()))  # fmt: skip
    assert record.final.scores == scores(model)
    assert record.final.scores == rp.Scores(x=scores.x, y=scores.y, ball=ball)(model)
    lines = str(record).splitlines()
    assert lines[0].split() == ["epoch", "loss", "clean", "worst", "eps", "gamma", "seconds", "clean", "art:pgd",
                                "interval:ibp"]  # fmt: skip
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[0] for line in lines[1:]] == ["1", "2"]
    assert capsys.readouterr().err.splitlines() == lines
    assert rp.TrainingRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_wrong_numbers(digits: rp.Dataset) -> None:
    model = _model(digits, (16,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for wrong in ({"epochs": 0}, {"epochs": 1, "accumulate": 0}, {"epochs": 1, "clip_gradient": 0.0}):
        with pytest.raises(rp.ArgumentError):
            rp.fit(model, _loader(digits, samples=64), rp.recipe("standard"), optimizer=optimizer, **wrong)
