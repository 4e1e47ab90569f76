"""The training loop: resumes to the same bits, stops at NaN, and every recipe learns."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

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


@pytest.mark.parametrize("name", ["ibp", "crown-ibp", "sabr", "mtl-ibp", "cc-ibp", "exp-ibp"])
def test_bounds_that_refuse_what_is_not_finite_name_the_batch_too(
    name: str, digits: rp.Dataset, tmp_path: Path
) -> None:
    ball = rp.Linf(eps=EPS, clip=digits.clip)
    loss = rp.recipe(name, ball=ball, epochs=1, schedule=rp.Ramp(start=0, end=0))
    model, loader = _model(digits, (16,)), _loader(digits, samples=256)
    with pytest.raises(rp.TrainingError, match="a weight is not finite in epoch 1, batch 2") as caught:
        rp.fit(model, loader, loss, epochs=1, optimizer=torch.optim.SGD(model.parameters(), lr=float("inf")),
               checkpoint=tmp_path, progress=False)  # fmt: skip
    assert isinstance(caught.value.__cause__, rp.RobustPluginsError)
    data = digits.x_train[:256].clone()
    data[100] = torch.nan
    batches = DataLoader(TensorDataset(data, digits.y_train[:256]), batch_size=64)
    model = _model(digits, (16,))
    with pytest.raises(rp.TrainingError, match=r"an input is not finite in epoch 1, batch 2.*clean the data"):
        rp.fit(model, batches, loss, epochs=1, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), progress=False)


@pytest.mark.parametrize(("accumulate", "clip", "place"), [
    (1, None, "batch 2"), (1, 5.0, "batch 2"), (3, None, "batches 1 to 3"), (3, 5.0, "batches 1 to 3"),
])  # fmt: skip
def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_lost(
    accumulate: int, clip: float | None, place: str, digits: rp.Dataset
) -> None:
    model, calls = _model(digits, (16,)), 0

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        zero = (model(x) * 0).sum()
        return zero.sqrt() if calls == 2 else zero + sum(p.sum() for p in model.parameters())

    with pytest.raises(rp.TrainingError, match=f"the gradient is not finite in epoch 1, {place}"):
        rp.fit(model, _loader(digits, samples=256), loss, epochs=1, accumulate=accumulate, clip_gradient=clip,
               optimizer=torch.optim.SGD(model.parameters(), lr=0.1), progress=False)  # fmt: skip
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_another_training_s_checkpoint_is_refused_and_changes_nothing(digits: rp.Dataset, tmp_path: Path) -> None:
    ball = rp.Linf(eps=EPS, clip=digits.clip)

    def run(
        folder: Path, *, width: int = 16, kind: type = torch.optim.Adam, recipe: str = "madry", decay: bool = False,
        fresh: bool = False,
    ) -> nn.Module:  # fmt: skip
        model = _model(digits, (width,))
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = kind(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1) if decay else None
        loss, state = rp.recipe(recipe, ball=ball), torch.get_rng_state()
        try:
            rp.fit(model, _loader(digits, samples=64), loss, epochs=1, optimizer=optimizer, scheduler=scheduler,
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
        model, calls = _model(digits, (16,)), 0

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
        model = _model(digits, (4,))
        torch.manual_seed(1)
        random.seed(1)
        numpy.random.seed(1)  # noqa: NPY002 (the global state is what is tested, here and below)

        def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            if len(seen) == stop:
                raise _InterruptedError
            seen.append(torch.rand(()).item() + random.random() + numpy.random.rand())  # noqa: NPY002
            return nn.functional.cross_entropy(model(x), y)

        try:
            rp.fit(model, _loader(digits, samples=128), loss, epochs=3, checkpoint=folder, progress=False,
                   optimizer=torch.optim.SGD(model.parameters(), lr=0.1))  # fmt: skip
        except _InterruptedError:
            assert stop is not None
        return seen

    expected = run(None)
    first = run(tmp_path, stop=3)[:2]  # the second epoch is begun anew, by a process with other states
    assert first + run(tmp_path) == expected


def test_a_ramp_of_few_steps_is_warned_about(digits: rp.Dataset) -> None:
    ball = rp.Linf(eps=EPS, clip=digits.clip)

    def run(name: str, length: int, **parameters: object) -> None:
        model = _model(digits, (8,))
        rp.fit(model, _loader(digits, samples=64 * 10), rp.recipe(name, ball=ball, **parameters), epochs=length,
               optimizer=torch.optim.Adam(model.parameters()), progress=False)  # fmt: skip

    with pytest.warns(UserWarning, match=r"fewer than 20 steps.*constant network"):
        run("ibp", 2, epochs=2)
    run("ibp", 2, epochs=2, schedule=rp.Ramp(start=0, end=0))  # said so
    run("ibp", 2, epochs=2, schedule=rp.Ramp(start=0, end=9))
    run("madry", 1)


def test_modes_are_as_found(digits: rp.Dataset) -> None:
    model = _model(digits, (8,), dropout=0.1).eval()
    seen = []

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seen.append(model.training)
        return nn.functional.cross_entropy(model(x), y)

    rp.fit(model, _loader(digits, samples=64), loss, epochs=1, progress=False,
           optimizer=torch.optim.SGD(model.parameters(), lr=0.1))  # fmt: skip
    assert seen == [True]
    assert not any(module.training for module in model.modules())


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
    assert lines[0].split() == ["epoch", "loss", "clean", "loss", "worst", "loss", "eps", "gamma", "seconds", "clean",
                                "art:pgd", "interval:ibp"]  # fmt: skip
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[0] for line in lines[1:]] == ["1", "2"]
    assert capsys.readouterr().err.splitlines() == lines
    assert rp.TrainingRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


@pytest.mark.usefixtures("unchecked")
def test_wrong_numbers(digits: rp.Dataset) -> None:
    model = _model(digits, (16,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader, standard = _loader(digits, samples=64), rp.recipe("standard")
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


def test_scores_count_what_is_right(digits: rp.Dataset) -> None:
    ball = rp.Linf(eps=EPS, clip=digits.clip)
    x, y = digits.x_test[:40], digits.y_test[:40]
    broken = _model(digits, (8,))
    with torch.no_grad():
        broken[-1].bias[:] = torch.nan
    assert rp.Scores(x=x, y=y, ball=ball)(broken) == {"clean": 0, "art:pgd": 0, "interval:ibp": 0}
    torch.manual_seed(0)
    single = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with torch.no_grad():
        expected = ((single(x) > 0).squeeze(1) == (y > 4)).float().mean().item()
    scores = rp.Scores(x=x, y=(y > 4).long(), ball=rp.Linf(eps=1e-6, clip=digits.clip))(single)
    assert scores == {name: pytest.approx(expected) for name in ("clean", "art:pgd", "interval:ibp")}
    found = [rp.Scores(x=x, y=y, ball=ball, attack="art:pgd(steps=1)", certifier=None, seed=seed) for seed in (0, 1)]
    weak = _model(digits, (8,))
    assert found[0](weak) == found[0](weak)
    for wrong in ({"attack": "art:pdg"}, {"certifier": "interval:ipb"}):
        with pytest.raises(rp.UnknownNameError):
            rp.Scores(x=x, y=y, ball=ball, **wrong)
    with pytest.raises(rp.ArgumentError, match="at least 1"):
        rp.Scores(x=x[:0], y=y[:0], ball=ball)
