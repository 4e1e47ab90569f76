"""Checkpoints belong to one training: reopened they give its bounds, and any other training is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_trainings import data, network, train
from torch import nn

import robust_plugins as rp
from robust_plugins.errors import ArgumentError
from robust_plugins.poisoning.abstract.loop import TrainingState

pytestmark = pytest.mark.filterwarnings("ignore:update .*decide no sample")
DOMAINS: dict[str, dict[str, Any]] = {
    "box": {},
    "zonotope": {"domain": "zonotope", "optimizer": rp.SGD(lr=0.2, weight_decay=0.1)},
    "momentum": {"optimizer": rp.SGD(lr=0.1, momentum=0.9, weight_decay=9.0)},
}


def _with_buffer(value: float) -> nn.Module:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()
            self.register_buffer("scale", torch.tensor(value).double())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.body(x * self.scale)
            return found

    return Scaled()


def _with(activation: nn.Module) -> nn.Module:
    model = network()
    assert isinstance(model, nn.Sequential)
    model[1] = activation
    return model


VALIDATION = data(20, 20)[0]
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "initial weights": ({"model": network(seed=1)}, "`model` is with other parameters or buffers"),
    "data of a finished epoch": ({"batches": [(x + 1, y) for x, y in data()]}, "`batches` is others than before"),
    "labels": ({"batches": [(x, 1 - y) for x, y in data()]}, "`batches` is others than before"),
    "fewer batches": ({"batches": data()[:2]}, "`batches` is others than before the interruption: only 2"),
    "more batches": ({"batches": data(35)}, "`batches` is others than before the interruption: .*"),
    "the order": ({"batches": data()[::-1]}, "`batches` is others than before"),
    "fewer epochs": ({"epochs": 1}, "`epochs` is 1; accepted: at least 2"),
    "the budget": ({"budget": rp.PoisoningBudget(points=2, eps=0.01)}, "`budget`"),
    "a mask": ({"budget": rp.PoisoningBudget(points=1, eps=0.01, columns=[True, True, False])}, "`budget`"),
    "the loss": ({"loss": "mse", "model": network(1)}, "`loss`|`model`|`batches`"),
    "the optimizer": ({"optimizer": rp.SGD(lr=0.2, momentum=0.5)}, "`optimizer`"),
    "clipping": ({"clip_gradient": 5.0}, "`clip_gradient`"),
    "clipping by norm": ({"clip_gradient": rp.NormClip(5.0)}, "`clip_gradient`"),
    "the domain": ({"domain": "zonotope"}, "`domain`"),
    "the rounding": ({"rounding": "outward"}, "`rounding`"),
    "the relaxation": ({"relaxation": "none"}, "`relaxation`"),
    "what is trained": ({"parameters": ["0.weight"]}, "`parameters`"),
    "stopping": ({"stop_when_vacuous": True}, "`stop_when_vacuous`"),
    "validation": ({"validation": VALIDATION}, "`validation`"),
    "an activation": ({"model": _with(nn.LeakyReLU(0.3))}, "`model`"),
    "a layer's number": ({"model": _with(nn.LeakyReLU(0.0))}, "`model`"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("epochs", [2, 3])
def test_another_training_is_refused(name: str, epochs: int, tmp_path: Path) -> None:
    """Otherwise the bounds of the checkpoint would be returned for a training that they do not hold for."""
    train(network(), data(), epochs=2, checkpoint=tmp_path)
    how, said = OTHERS[name]
    how = {"epochs": epochs, "model": network(), "batches": data(), "budget": None} | how
    with pytest.raises(ArgumentError, match=said):
        train(how.pop("model"), how.pop("batches"), how.pop("budget"), checkpoint=tmp_path, **how)


def test_other_buffers_and_other_forwards_are_refused(tmp_path: Path) -> None:
    train(_with_buffer(1.0), data(), checkpoint=tmp_path)
    with pytest.raises(ArgumentError, match="`model` is with other parameters or buffers"):
        train(_with_buffer(2.0), data(), checkpoint=tmp_path)

    class Patched(nn.Module):
        sign = 1.0

        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.body(x) * self.sign
            return found

    train(Patched(), data(), checkpoint=tmp_path / "patched")
    other = Patched()
    other.sign = 2.0
    with pytest.raises(ArgumentError, match="`model` is one with other outputs on the first batch"):
        train(other, data(), checkpoint=tmp_path / "patched")


@pytest.mark.parametrize("domain", DOMAINS)
def test_resuming_after_every_epoch_and_reopening(domain: str, tmp_path: Path) -> None:
    how = {"validation": VALIDATION} | DOMAINS[domain]
    whole = train(network(), data(), epochs=3, **how)
    for epochs in (1, 2, 3, 3):
        run = train(network(), data(), epochs=epochs, checkpoint=tmp_path, **how)
    x, y = data(60, 60)[0]
    for name, p in whole.parameters.items():
        assert torch.equal(p.lower, run.parameters[name].lower)
        assert torch.equal(p.upper, run.parameters[name].upper)
    # A domain that is lost when the checkpoint is reopened would answer with the box alone.
    assert (run.domain is None) == (whole.domain is None)
    assert torch.equal(whole.logits(x).lower, run.logits(x).lower)
    assert whole.certified_accuracy(x, y) == run.certified_accuracy(x, y)
    assert [e.certified for e in whole.history] == [e.certified for e in run.history]
    for a, b in zip(whole.nominal.parameters(), run.nominal.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_lost_identity_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the mends the first bounds come back for the other training, and miss it."""
    monkeypatch.setattr("robust_plugins.poisoning.abstract.loop._digest_of_model", lambda model: "")
    first = train(network(), data(), checkpoint=tmp_path)
    monkeypatch.setattr(TrainingState, "begin", lambda self, x: None)
    again = train(network(seed=1), data(), checkpoint=tmp_path)
    assert torch.equal(again.parameters["0.weight"].lower, first.parameters["0.weight"].lower)
    monkeypatch.undo()
    true = train(network(seed=1), data())
    assert not bool(again.parameters["0.weight"].contains(true.nominal[0].weight).all())  # type: ignore[index]


def test_a_generator_reopens_a_complete_checkpoint(tmp_path: Path) -> None:
    first = train(network(), iter(data()), epochs=1, checkpoint=tmp_path, domain="zonotope")
    again = train(network(), iter(data()), epochs=1, checkpoint=tmp_path, domain="zonotope")
    assert first.width == again.width
    assert again.domain is not None
    with pytest.raises(ArgumentError, match="others than before the interruption"):
        train(network(), iter(data()[::-1]), epochs=1, checkpoint=tmp_path, domain="zonotope")


def test_vacuous_is_said_alike_by_the_run_and_its_history(tmp_path: Path) -> None:
    budget = rp.PoisoningBudget(points=9, eps=2.0)
    for more in ({}, {"stop_when_vacuous": True}):
        with pytest.warns(UserWarning, match="decide no sample"):
            run = train(network(), data(), budget, epochs=3, checkpoint=tmp_path / str(len(more)), **more)
        assert run.vacuous
        assert run.history[-1].vacuous
        again = train(network(), data(), budget, epochs=3, checkpoint=tmp_path / str(len(more)), **more)
        assert again.vacuous
        assert again.history == run.history
    sound = train(network(), data())
    assert not sound.vacuous
    assert not sound.history[-1].vacuous


def test_a_small_batch_that_is_not_decided_gives_nothing_up() -> None:
    """The last batch of 101 samples in batches of 100 has one, whose class may well be open."""
    x, y = (torch.cat(part) for part in zip(*data(60, 60), strict=True))
    close = network()(x).diff(dim=1).abs().flatten().argmin()
    single = (x[close : close + 1], y[close : close + 1])
    run = train(network(), [(x, y), single, (x, y)], rp.PoisoningBudget(points=3, eps=0.1), stop_when_vacuous=True)
    assert not run.vacuous
