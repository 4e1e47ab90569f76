"""Small models, each with one thing that a user may change between two calls, and the change."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FACTOR = 1.0
"""A global variable that a forward reads."""


def leaky(self: Any, h: Tensor) -> Tensor:
    return F.leaky_relu(h, 0.1)


class Small(nn.Module):
    """Two layers, and in between what `middle` computes."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor] = leaky, **attributes: Any) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 2)
        self.register_buffer("shift", torch.tensor([0.1, -0.2, 0.3]))
        self.middle = middle
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self, self.first(x)))


class Other(Small):
    """For changes of the class itself."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.leaky_relu(2 * self.first(x), 0.3))


class Convolving(nn.Module):
    """A convolution on small images."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.conv, self.last = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).relu().mean((2, 3)) + 0.1)


def with_closure() -> nn.Module:
    factor = 1.0

    def middle(self: Any, h: Tensor) -> Tensor:
        return F.leaky_relu(h * factor, 0.1)

    def turn(value: float) -> None:
        nonlocal factor
        factor = value

    return Small(middle, turn=turn)


def old_weight_norm() -> nn.Module:
    model = Small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and used
        nn.utils.weight_norm(model.first)
    return model


def normalised(kind: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Small()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            kind(model.first)
        return model

    return make


@dataclass(frozen=True)
class Change:
    """How a model is made, and what is then changed. `apply` may use monkeypatch for what is not the model's."""

    name: str
    make: Callable[[], nn.Module]
    apply: Callable[[Any, pytest.MonkeyPatch], object]
    image: bool = False
    same: bool = False
    """It must change nothing, because models are bounded in evaluation mode."""


def _in_place(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.mul_(-1.7).add_(0.2)


def _forward(self: Any, x: Tensor) -> Tensor:
    return self.last(torch.tanh(self.first(x)) * 3)


def _pre(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (3 * inputs[0] + 0.5,)


def _post(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return -2 * output + 0.3


def hooked(register: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Small()
        model.handle = getattr(model.first, register)(_pre if "pre" in register else _post)
        return model

    return make


def _conv_forward(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(input, -2 * weight, bias, padding=1)


CHANGES = (
    Change(
        "attribute", lambda: Small(lambda s, h: F.leaky_relu(h * s.k, 0.1), k=1.0), lambda m, _: setattr(m, "k", -3.0)
    ),
    Change(
        "slope of a function",
        lambda: Small(lambda s, h: F.leaky_relu(h, s.k), k=0.01),
        lambda m, _: setattr(m, "k", 0.9),
    ),
    Change(
        "entry of a nested list",
        lambda: Small(lambda s, h: F.leaky_relu(h * s.k[1][0], 0.1), k=[0.0, [1.0]]),
        lambda m, _: m.k[1].__setitem__(0, -3.0),
    ),
    Change(
        "entry of a dictionary",
        lambda: Small(lambda s, h: F.leaky_relu(h * s.k["a"]["b"], 0.1), k={"a": {"b": 1.0}}),
        lambda m, _: m.k["a"].update(b=-3.0),
    ),
    Change(
        "attribute of an attribute",
        lambda: Small(lambda s, h: F.leaky_relu(h * s.k.gain, 0.1), k=SimpleNamespace(gain=1.0)),
        lambda m, _: setattr(m.k, "gain", -3.0),
    ),
    Change(
        "flag",
        lambda: Small(lambda s, h: F.leaky_relu(h, 0.1) if s.on else -h, on=True),
        lambda m, _: setattr(m, "on", False),
    ),
    Change(
        "temperature", lambda: Small(lambda s, h: F.leaky_relu(h, 0.1) / s.t, t=1.0), lambda m, _: setattr(m, "t", 0.1)
    ),
    Change(
        "plain tensor",
        lambda: Small(lambda s, h: F.leaky_relu(h + s.c, 0.1), c=torch.ones(3)),
        lambda m, _: _in_place(m.c),
    ),
    Change(
        "tensor in a list",
        lambda: Small(lambda s, h: F.leaky_relu(h + s.c[0], 0.1), c=[torch.ones(3)]),
        lambda m, _: m.c.__setitem__(0, torch.tensor([-1.0, 2.0, 0.0])),
    ),
    Change("closure", with_closure, lambda m, _: m.turn(-3.0)),
    Change(
        "global variable",
        lambda: Small(lambda s, h: F.leaky_relu(h * FACTOR, 0.1)),
        lambda m, patch: patch.setitem(globals(), "FACTOR", -3.0),
    ),
    Change(
        "function in an attribute",
        lambda: Small(lambda s, h: s.f(h), f=torch.relu),
        lambda m, _: setattr(m, "f", torch.tanh),
    ),
    Change(
        "parameter of an activation",
        lambda: Small(lambda s, h: s.act(h), act=nn.LeakyReLU(0.01)),
        lambda m, _: setattr(m.act, "negative_slope", 0.9),
    ),
    Change(
        "limits of an activation",
        lambda: Small(lambda s, h: s.act(h), act=nn.Hardtanh(-1.0, 1.0)),
        lambda m, _: setattr(m.act, "max_val", -0.5),
    ),
    Change(
        "replaced module",
        lambda: Small(lambda s, h: s.act(h), act=nn.ReLU()),
        lambda m, _: setattr(m, "act", nn.Tanh()),
    ),
    Change(
        "module list",
        lambda: Small(lambda s, h: s.acts[0](h), acts=nn.ModuleList([nn.ReLU()])),
        lambda m, _: m.acts.__setitem__(0, nn.Tanh()),
    ),
    Change("longer Sequential", lambda: nn.Sequential(Small()), lambda m, _: m.append(nn.Tanh())),
    Change("forward hook", Small, lambda m, _: m.first.register_forward_hook(_post)),
    Change("forward pre-hook", Small, lambda m, _: m.first.register_forward_pre_hook(_pre)),
    Change("hook of the whole model", Small, lambda m, _: m.register_forward_hook(_post)),
    Change("removed forward hook", hooked("register_forward_hook"), lambda m, _: m.handle.remove()),
    Change("removed forward pre-hook", hooked("register_forward_pre_hook"), lambda m, _: m.handle.remove()),
    Change("forward of the instance", Small, lambda m, _: setattr(m, "forward", _forward.__get__(m))),
    Change(
        "forward of a layer",
        Small,
        lambda m, _: setattr(m.first, "forward", lambda x, f=m.first: 3 * F.linear(x, f.weight) - 1),
    ),
    Change("forward of the class", Other, lambda m, patch: patch.setattr(Other, "forward", _forward)),
    Change("class", Small, lambda m, _: setattr(m, "__class__", Other)),
    Change(
        "replaced parameter", Small, lambda m, _: setattr(m.first, "weight", nn.Parameter(-2 * m.first.weight.detach()))
    ),
    Change("removed bias", Small, lambda m, _: setattr(m.first, "bias", None)),
    Change("weight in place", Small, lambda m, _: _in_place(m.first.weight)),
    Change("weight by .data", Small, lambda m, _: setattr(m.first.weight, "data", -2 * m.first.weight.data)),
    Change("load_state_dict", Small, lambda m, _: m.load_state_dict({k: -1.5 * v for k, v in m.state_dict().items()})),
    Change(
        "buffer in place", lambda: Small(lambda s, h: F.leaky_relu(h + s.shift, 0.1)), lambda m, _: _in_place(m.shift)
    ),
    Change(
        "replaced buffer",
        lambda: Small(lambda s, h: F.leaky_relu(h + s.shift, 0.1)),
        lambda m, _: setattr(m, "shift", -3 * m.shift),
    ),
    Change(
        "statistics of a batch norm",
        lambda: nn.Sequential(Small(), nn.BatchNorm1d(2)),
        lambda m, _: _in_place(m[1].running_mean),
    ),
    Change(
        "eps of a batch norm", lambda: nn.Sequential(Small(), nn.BatchNorm1d(2)), lambda m, _: setattr(m[1], "eps", 3.0)
    ),
    Change("old weight_norm", old_weight_norm, lambda m, _: _in_place(m.first.weight_g)),
    Change(
        "weight_norm",
        normalised(nn.utils.parametrizations.weight_norm),
        lambda m, _: _in_place(m.first.parametrizations.weight.original0),
    ),
    Change(
        "orthogonal",
        normalised(nn.utils.parametrizations.orthogonal),
        lambda m, _: _in_place(m.first.parametrizations.weight.original),
    ),
    Change(
        "new parametrisation",
        Small,
        lambda m, _: nn.utils.parametrize.register_parametrization(m.first, "weight", nn.Softplus()),
    ),
    Change(
        "mode",
        lambda: Small(lambda s, h: F.leaky_relu(h, 0.1) if s.training else -h),
        lambda m, _: m.train(),
        same=True,
    ),
    Change("dropout and mode", lambda: nn.Sequential(Small(), nn.Dropout(0.5)), lambda m, _: m.train(), same=True),
    Change("dtype", Small, lambda m, _: m.double()),
    Change("padding", Convolving, lambda m, _: setattr(m.conv, "padding", (0, 0)), image=True),
    Change("stride", Convolving, lambda m, _: setattr(m.conv, "stride", (2, 2)), image=True),
    Change(
        "_conv_forward",
        Convolving,
        lambda m, _: setattr(m.conv, "_conv_forward", _conv_forward.__get__(m.conv)),
        image=True,
    ),
)
