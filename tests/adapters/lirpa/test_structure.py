"""Whatever a model is made of: a change of it is seen, and no change is none."""

from __future__ import annotations

import copy
import types
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import robust_plugins as rp
from robust_plugins.adapters.lirpa import IBP
from robust_plugins.adapters.lirpa.structure import structure

SCALE = 1.0
TABLE = {"scale": [1.0]}
X = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
settings_module = types.ModuleType("settings_of_a_user")
settings_module.FACTOR = 1.0  # type: ignore[attr-defined]


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 1.0


class Config:
    scale = 1.0


def scaled(x: Tensor) -> Tensor:
    return x * SCALE * TABLE["scale"][0]


def closing(factor: float) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        return x * factor

    return function


class Model(nn.Module):
    temperature = 1.0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act, self.last = nn.Linear(4, 6), nn.LeakyReLU(0.1), nn.Linear(6, 3)
        self.flag, self.slope, self.nested = False, 0.01, [[1.0], {"a": (1, [2.0])}]
        self.space, self.slotted, self.queue = SimpleNamespace(a=1.0), Slotted(), deque([1.0])
        self.function, self.part, self.constant = closing(1.0), partial(F.leaky_relu, negative_slope=0.1), torch.ones(6)
        self.hidden = [nn.Linear(6, 6), nn.LeakyReLU(0.1)]
        self.register_buffer("offset", torch.zeros(6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.last(scaled(self.act(self.first(x)))) * Config.scale
        return z / self.temperature * settings_module.FACTOR


def set_global(_: Model) -> None:
    globals()["SCALE"] = 3.0


CHANGES: dict[str, Callable[[Model], object]] = {
    "attribute": lambda m: setattr(m, "slope", 10.0),
    "flag": lambda m: setattr(m, "flag", True),
    "new attribute": lambda m: setattr(m, "new", 1),
    "entry of a nested list": lambda m: m.nested[0].__setitem__(0, 2.0),  # type: ignore[attr-defined]
    "entry of a tuple's list": lambda m: m.nested[1]["a"][1].append(1.0),  # type: ignore[index]
    "namespace": lambda m: setattr(m.space, "a", 2.0),
    "slot": lambda m: setattr(m.slotted, "value", 2.0),
    "queue": lambda m: m.queue.append(2.0),
    "closure": lambda m: setattr(m.function.__closure__[0], "cell_contents", 2.0),  # type: ignore[attr-defined]
    "other closure": lambda m: setattr(m, "function", closing(1.0)),
    "partial": lambda m: setattr(m, "part", partial(F.leaky_relu, negative_slope=0.2)),
    "constant, in place": lambda m: m.constant.mul_(2),
    "buffer that is not saved": lambda m: m.offset.add_(1),  # type: ignore[operator]
    "slope of an activation": lambda m: setattr(m.act, "negative_slope", 0.2),
    "slope of an activation in a list": lambda m: setattr(m.hidden[1], "negative_slope", 0.2),
    "weights in a list": lambda m: m.hidden[0].weight.data.mul_(2),  # type: ignore[union-attr, operator]
    "class attribute": lambda _: setattr(Model, "temperature", 2.0),
    "attribute of another class": lambda _: setattr(Config, "scale", 2.0),
    "value of a module": lambda _: setattr(settings_module, "FACTOR", 2.0),
    "global": set_global,
    "entry of a global": lambda _: TABLE["scale"].__setitem__(0, 2.0),
    "forward": lambda m: setattr(m, "forward", lambda x: m.last(m.first(x))),
    "forward of a layer": lambda m: setattr(m.act, "forward", lambda x: x * 2),
    "forward of a class": lambda _: setattr(nn.LeakyReLU, "forward", lambda self, x: x * 2),
    "hook": lambda m: m.act.register_forward_hook(lambda *_: None),
    "hook before": lambda m: m.act.register_forward_pre_hook(lambda *_: None),
    "layer": lambda m: setattr(m, "act", nn.ReLU()),
    "function of the class": lambda _: setattr(Model, "helper", lambda self: 1),
    "shape": lambda m: setattr(m, "first", nn.Linear(4, 6, bias=False)),
    "type of a parameter": lambda m: m.last.double(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SCALE", 1.0)
    monkeypatch.setitem(TABLE, "scale", [1.0])
    monkeypatch.setattr(Config, "scale", 1.0)
    monkeypatch.setattr(settings_module, "FACTOR", 1.0)
    monkeypatch.setattr(Model, "temperature", 1.0)
    monkeypatch.setattr(Model, "helper", None, raising=False)
    monkeypatch.setattr(nn.LeakyReLU, "forward", nn.LeakyReLU.forward)
    model = Model()
    kept = structure(model, torch.float32).kept()
    assert kept.matches(structure(model, torch.float32))  # no change is none
    CHANGES[name](model)
    assert not kept.matches(structure(model, torch.float32))


def test_weights_are_no_structure() -> None:
    model = Model()
    kept = structure(model, torch.float32).kept()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model.last.weight = nn.Parameter(torch.ones(3, 6))
    assert kept.matches(structure(model, torch.float32))


def test_hooks_on_all_modules_are_seen() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    kept = structure(model, torch.float32).kept()
    assert kept.complete
    handle = register_module_forward_hook(lambda *_: None)
    try:
        now = structure(model, torch.float32)
    finally:
        handle.remove()
    assert not kept.matches(now)
    assert not now.complete


def test_a_layer_of_torch_with_code_of_a_user_is_compared_with_its_graph() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    model[1].forward = closing(2.0)  # type: ignore[method-assign]
    assert not structure(model, torch.float32).complete


BUILT_IN: dict[str, tuple[Callable[[], nn.Module], str, object]] = {
    "negative_slope": (lambda: nn.LeakyReLU(0.1), "negative_slope", 0.5),
    "eps": (lambda: nn.BatchNorm1d(4), "eps", 0.5),
    "padding": (lambda: nn.Conv2d(1, 1, 3), "padding", (1, 1)),
    "dilation": (lambda: nn.Conv2d(1, 1, 3), "dilation", (2, 2)),
    "ceil_mode": (lambda: nn.MaxPool2d(2), "ceil_mode", True),
    "stride": (lambda: nn.AvgPool2d(2), "stride", 1),
    "count_include_pad": (lambda: nn.AvgPool2d(2, padding=1), "count_include_pad", False),
    "dim": (lambda: nn.Softmax(1), "dim", -1),
    "start_dim": (lambda: nn.Flatten(), "start_dim", 2),
    "inplace": (lambda: nn.ReLU(), "inplace", True),
    "beta": (lambda: nn.Softplus(), "beta", 2.0),
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_attributes_of_layers_are_seen(name: str) -> None:
    made, attribute, value = BUILT_IN[name]
    model = nn.Sequential(made())
    kept = structure(model, torch.float32).kept()
    setattr(model[0], attribute, value)
    assert not kept.matches(structure(model, torch.float32))


class Sloped(nn.Module):
    """Everything positive at the sample: the slope below zero shows in the ball alone."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2, 2)
        with torch.no_grad():
            self.last.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
            self.last.bias.copy_(torch.tensor([0.1, 0.0]))
        self.k = [0.01]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.leaky_relu(x, self.k[0]))


def test_a_change_that_no_sample_shows_is_seen() -> None:
    model, x = Sloped(), torch.full((1, 2), 0.05)
    ball, y = rp.Linf(eps=0.1, clip=None), torch.tensor([0])
    assert IBP()(model, x, y, ball).certified.all()
    model.k[0] = 0.9
    widths = [IBP().bounds(m, x, ball).width for m in (model, copy.deepcopy(model))]
    assert all(torch.equal(a, b) for a, b in pairwise(widths))
