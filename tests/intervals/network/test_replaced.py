"""What is replaced in torch, in Python or in a class after a model's graph was kept: the graph is made again."""

from __future__ import annotations

import copy
import copyreg
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import robust_plugins as rp
from robust_plugins.intervals import Interval, trace
from robust_plugins.intervals.network import tracing
from robust_plugins.intervals.network.fingerprint import fingerprint


def _leaky(slope: float) -> Callable[[Tensor], Tensor]:
    def activation(x: Tensor, negative_slope: float = slope) -> Tensor:
        return F.leaky_relu(x, negative_slope)

    return activation


def _twice(x: Any, factor: Any = 2.0) -> Tensor:
    found: Tensor = factor * x if isinstance(factor, float) else factor
    return found


mild, steep = _leaky(0.1), _leaky(5.0)
first, second, third = mild, mild, steep
look_up = getattr


class Part(nn.Module):
    def run(self, x: Tensor) -> Tensor:
        return x


def _doubling(base: type[Part]) -> type[Part]:
    class Doubling(base):  # type: ignore[valid-type, misc]
        def run(self, x: Tensor) -> Tensor:
            return super().run(x) * 2  # type: ignore[no-any-return]

    return Doubling


Inner = _doubling(Part)


class Tenfold(Inner):  # type: ignore[valid-type, misc]
    def run(self, x: Tensor) -> Tensor:
        return super().run(x) * 10  # type: ignore[no-any-return]


Outer = _doubling(Tenfold)


class One:
    def shifted(self, x: Tensor) -> Tensor:
        return x + 1


class Two:
    def shifted(self, x: Tensor) -> Tensor:
        return x + 5


class Leading(One, Two, nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.shifted(x)


class Following(One, Two, nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.shifted(x)


class Model(Outer):  # type: ignore[valid-type, misc]
    gain = 2.0
    scaled = staticmethod(_twice)
    one, two, three = staticmethod(mild), staticmethod(mild), staticmethod(steep)

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.act, self.relu, self.k, self.mean = nn.Linear(3, 3), nn.LeakyReLU(0.1), nn.ReLU(), 2.0, 3.0
        self.leading, self.following = Leading(), Following()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.lin(x)) * self.k + self.k if self.act else self.lin(x)
        x = x + first(x) + 2 * second(-x) + 3 * third(x)
        x = x + self.one(x) + 2 * self.two(-x) + 3 * self.three(x)
        x = self.following(self.leading(self.scaled(self.run(x))))
        return self.relu(x) + F.leaky_relu(-x) - F.silu(x)


Change = Callable[[Any, pytest.MonkeyPatch], object]


def _replace(where: Any, name: str, value: Any) -> Change:
    return lambda _, patch: patch.setattr(where, name, value, raising=False)


CHANGES: dict[str, Change] = {
    "a layer's way to be called": _replace(nn.LeakyReLU, "__call__", lambda self, x: x * 3),
    "the inside of it": _replace(nn.LeakyReLU, "_call_impl", lambda self, x: x * 3),
    "the inside of one layer's": lambda m, _: setattr(m.act, "_call_impl", lambda x: x * 3),
    "a layer's attribute": _replace(nn.LeakyReLU, "negative_slope", property(lambda self: 7.0, lambda self, _: None)),
    "a layer's code": _replace(nn.LeakyReLU.forward, "__code__", (lambda self, x: x * 3).__code__),
    "a layer's truth": _replace(nn.LeakyReLU, "__bool__", lambda self: False),
    "a layer's length": _replace(nn.LeakyReLU, "__len__", lambda self: 0),
    "any module's truth": _replace(nn.Module, "__bool__", lambda self: False),
    "any module's attributes": _replace(
        nn.Module, "__getattribute__", lambda self, name: 5.0 if name == "k" else object.__getattribute__(self, name)
    ),
    "a name of a part, for all modules": _replace(nn.Module, "relu", lambda self, x: x * 3),
    "arithmetic": _replace(Tensor, "__add__", lambda x, y: torch.add(x, y) - 1),
    "a function behind a layer": _replace(torch._C._nn, "leaky_relu", lambda x, slope: x * 3),
    "a function's default": _replace(F.leaky_relu, "__defaults__", (3.0, False)),
    "a function's code": _replace(F.silu, "__code__", (lambda input, inplace=False: input * 3).__code__),
    "a global function of the same code": lambda _, p: p.setitem(globals(), "second", steep),
    "a method of the same code": _replace(Model, "two", staticmethod(steep)),
    "how a function is bound": _replace(Model, "scaled", _twice),
    "a method of the same code from another class": _replace(Outer, "run", vars(Inner)["run"]),
}


def _made() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Model().double().eval(), torch.randn(8, 3, dtype=torch.float64)


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_replaced_afterwards_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _made()
    before = fingerprint(model)
    assert before is not None
    trace(model, x)
    again: list[object] = []
    traced = tracing._traced
    with monkeypatch.context() as patch:
        patch.setattr(tracing, "_traced", lambda *args: again.append(None) or traced(*args))
        expected = model(x).detach()
        CHANGES[name](model, patch)
        try:
            assert not torch.allclose(model(x), expected), "the change changes nothing"
        except (TypeError, AttributeError):  # nor can the model be run any longer
            assert name in ("any module's truth",)
        try:
            found = trace(model, x).forward(Interval.point(x))[-1]
            assert found.contains(model(x).detach(), tolerance=1e-9).all()
        except rp.UnsupportedModelError:
            pass
        assert again, "the graph was not made again"
        vars(model.act).pop("_call_impl", None)  # type: ignore[arg-type]
    assert fingerprint(model) == before


def test_bases_in_another_order_are_seen() -> None:
    model, _ = _made()
    before = fingerprint(model)
    try:
        Following.__bases__ = (Two, One, nn.Module)
        assert fingerprint(model) != before
    finally:
        Following.__bases__ = (One, Two, nn.Module)


class Reading(nn.Module):
    gain = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) * look_up(self, "gain")  # type: ignore[no-any-return]


def test_attributes_that_are_looked_up_under_another_name_are_not_known() -> None:
    assert fingerprint(Reading()) is None


def test_modes_of_torch_may_change_every_function() -> None:
    model, _ = _made()
    with TorchFunctionMode():
        assert fingerprint(model) is None
    assert fingerprint(model) is not None


def test_new_attributes_of_modules_and_tensors_that_nobody_reads_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, _ = _made()
    monkeypatch.setattr(Tensor, "of_another_library", 1, raising=False)
    monkeypatch.setattr(nn.Module, "of_another_library", 1, raising=False)
    assert fingerprint(model) is not None


def test_modules_of_older_torch_without_all_kinds_of_hooks_are_read() -> None:
    model, _ = _made()
    del model.lin._backward_pre_hooks  # type: ignore[union-attr]
    assert fingerprint(model) is not None


def test_graphs_are_kept_after_models_and_tensors_were_copied() -> None:
    """The first copy of an object of a class leaves a mark in the class."""
    model, _ = _made()
    before = fingerprint(model)
    copy.deepcopy(model)
    pickle.dumps([nn.Linear(2, 2), nn.Sequential(nn.ReLU()), torch.ones(2)])
    copyreg._slotnames(type(model))  # type: ignore[attr-defined]
    assert before is not None
    assert fingerprint(model) == before


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")  # torch's, of that one version
def test_graphs_are_kept_after_something_was_compiled() -> None:
    """Compiling follows where modules are made, by other ways to make them."""
    model, x = _made()
    torch.compile(model, backend="eager")(x)
    model, _ = _made()
    assert fingerprint(model) is not None
