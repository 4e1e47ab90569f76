"""Where `bounds` does without a copy of the model, the adapter leaves model, inputs and random states alone itself."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch
from support.lirpa_cases import BALL, cnn, each, images, mlp, points
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.adapters.lirpa import IBP
from robust_plugins.adapters.lirpa.structure import plain
from robust_plugins.decisions.trusted import leaving_alone


@each
def test_nothing_is_written_with_a_specification(certifier: rp.Certifier) -> None:
    model, x = cnn().train(), images()
    spec = rp.margin_spec(torch.tensor([0, 1, 2, 0]), 3)
    held = [*model.parameters(), *model.buffers(), x, spec]
    before = [(t.data_ptr(), t._version, t.requires_grad, t.clone()) for t in held]
    drawn = torch.get_rng_state()
    certifier.bounds(model, x, BALL, spec)
    certifier.lower_bounds(model, x, BALL, spec)
    for tensor, (pointer, version, flag, values) in zip(held, before, strict=True):
        assert (tensor.data_ptr(), tensor._version, tensor.requires_grad) == (pointer, version, flag)
        assert torch.equal(tensor, values)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(module.training for module in model.modules())


def test_a_backend_that_writes_into_weights_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(), points()
    IBP().bounds(model, x, BALL)
    linear = sys.modules["auto_LiRPA.operators.linear"].BoundLinear
    real = linear.interval_propagate

    def writing(self: nn.Module, *intervals: tuple[Tensor, Tensor], **others: object) -> object:
        with torch.no_grad():
            intervals[1][0].mul_(1.0)
        return real(self, *intervals, **others)

    monkeypatch.setattr(linear, "interval_propagate", writing)
    with pytest.raises(rp.ComponentError, match="changed the weights"):
        IBP().bounds(model, x, BALL)


class Own(nn.Module):
    """Code of a user's own, which may write anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.calls = mlp(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x)


def test_models_with_code_of_their_own_are_copied_and_put_back() -> None:
    model = Own()
    assert not plain(model)
    IBP().bounds(model, points(), BALL)
    assert model.calls == 0
    hooked = mlp()
    assert plain(hooked)
    hooked[1].register_forward_hook(lambda *_: None)
    assert not plain(hooked)
    patched = mlp()
    patched[1].forward = lambda x: x  # type: ignore[method-assign]
    assert not plain(patched)


def test_classes_of_anybody_else_are_always_checked() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Zeroing(IBP):
        def propagate(self, model: nn.Module, *others: object) -> rp.Interval:  # type: ignore[override]
            with torch.no_grad():
                next(model.parameters()).zero_()
            return super().propagate(model, *others)  # type: ignore[arg-type]

    with pytest.raises(rp.ComponentError, match="none of this package's"):
        leaving_alone(plain)(Zeroing)
    model = mlp()
    before = model[1].weight.clone()
    with pytest.raises(rp.ComponentError, match="changed the model"):
        Zeroing().bounds(model, points(), BALL)
    assert torch.equal(model[1].weight, before)


@each
def test_a_specification_of_other_classes_is_named(certifier: rp.Certifier) -> None:
    certifier.bounds(mlp(), points(), BALL)
    with pytest.raises(rp.ArgumentError, match="spec"):
        certifier.bounds(mlp(), points(), BALL, torch.rand(4, 2, 7))
    images_out = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(rp.ArgumentError, match="model"):
        certifier.bounds(images_out, points(), BALL, torch.rand(4, 2, 3))
