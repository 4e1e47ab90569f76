"""Models of which is known what their graphs depend on: nothing that can change it escapes the fingerprint."""

from __future__ import annotations

import builtins
import copy
import math
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.intervals import Interval, trace
from robust_plugins.intervals.network import known, tracing
from robust_plugins.intervals.network.fingerprint import fingerprint

FACTOR = 1.5
TABLE: list[Any] = [1.0, {"deep": 2.0}]
activation = F.relu


def helper(x: Tensor, slope: float = 0.1) -> Tensor:
    return F.leaky_relu(x, slope)


def other_helper(x: Tensor, slope: float = 0.1) -> Tensor:
    return F.leaky_relu(x, 3 * slope)


class Base(nn.Module):
    gain = 1.0

    def tail(self, x: Tensor) -> Tensor:
        return x * self.gain


class Block(Base):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shared = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.again = self.shared
        self.layers = nn.ModuleList([nn.Tanh(), nn.LeakyReLU(0.1)])
        self.named = nn.ModuleDict({"one": nn.Identity()})
        self.slope, self.nested, self.norm, self.flag = 0.1, [1.0, {"deep": [2.0]}], None, False
        self.w, self.bias = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))
        self.w2 = self.w
        self.register_buffer("mean", torch.zeros(3))

    @property
    def share(self) -> float:
        return 0.5

    @staticmethod
    def twice(x: Tensor) -> Tensor:
        return x * 2

    def forward(self, x: Tensor) -> Tensor:
        x = helper(self.a(x - self.mean)) * FACTOR * TABLE[1]["deep"] - math.sqrt(4.0)
        for layer in self.layers:
            x = layer(x) * self.share
        x = self.shared(x) + self.again(x) * self.nested[1]["deep"][0] + self.bias
        x = self.twice(activation(x) if not self.flag else torch.sigmoid(x)) * self.w + x * self.w2
        x = self.named["one"](F.leaky_relu(self.b(x), self.slope))
        return self.tail(x if self.norm is None else x + self.norm)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.last = nn.Linear(3, 3), Block(), nn.Sequential(nn.Tanh(), nn.Linear(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.flatten(self.block(torch.relu(self.first(x)).view(-1, 3)), 1))


class Elsewhere(Block):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def _code(function: Any) -> types.CodeType:
    found: types.CodeType = function.__code__
    return found


CHANGES: dict[str, Callable[[Model, pytest.MonkeyPatch], object]] = {
    "attribute": lambda m, _: setattr(m.block, "slope", 5.0),
    "flag": lambda m, _: setattr(m.block, "flag", True),
    "nested entry": lambda m, _: m.block.nested[1]["deep"].__setitem__(0, 7.0),
    "attribute that was None": lambda m, _: setattr(m.block, "norm", 4.0),
    "class attribute": lambda m, p: p.setattr(Base, "gain", 3.0),
    "attribute before the class's": lambda m, p: setattr(m.block, "gain", 3.0),
    "class attribute nearer by": lambda m, p: p.setattr(Block, "gain", -3.0, raising=False),
    "method": lambda m, p: p.setattr(Base, "tail", lambda self, x: x * 4),
    "method's code": lambda m, p: p.setattr(Base.tail, "__code__", _code(lambda self, x: x * 4)),
    "property": lambda m, p: p.setattr(Block, "share", property(lambda self: 0.25)),
    "static method": lambda m, p: p.setattr(Block, "twice", staticmethod(lambda x: x * 5)),
    "forward of the class": lambda m, p: p.setattr(Model, "forward", lambda self, x: self.last(self.first(x))),
    "forward of the model": lambda m, _: setattr(m, "forward", lambda x: m.last(m.first(x))),
    "forward of a layer": lambda m, _: setattr(m.first, "forward", lambda x: x * 3),
    "class": lambda m, _: setattr(m.block, "__class__", Elsewhere),
    "global number": lambda m, p: p.setitem(globals(), "FACTOR", -2.0),
    "entry in a global list": lambda m, p: p.setitem(TABLE[1], "deep", -2.0),  # type: ignore[arg-type]
    "global function": lambda m, p: p.setitem(globals(), "helper", other_helper),
    "global function's default": lambda m, p: p.setattr(helper, "__defaults__", (2.0,)),
    "global function's code": lambda m, p: p.setattr(helper, "__code__", other_helper.__code__),
    "global function of torch": lambda m, p: p.setitem(globals(), "activation", F.tanh),
    "global module": lambda m, p: p.setitem(globals(), "F", types.SimpleNamespace(leaky_relu=lambda x, s: x * 3)),
    "function of a module": lambda m, p: p.setattr(F, "leaky_relu", lambda x, negative_slope=0.0, inplace=False: x * 3),
    "function of math": lambda m, p: p.setattr(math, "sqrt", lambda x: 9.0),
    "module that shadows a builtin": lambda m, p: p.setitem(globals(), "super", lambda: None),
    "layer's attribute": lambda m, _: setattr(m.block.layers[1], "negative_slope", 6.0),
    "layer of a list": lambda m, _: m.block.layers.__setitem__(0, nn.Sigmoid()),
    "layer of a dictionary": lambda m, _: m.block.named.__setitem__("one", nn.Tanh()),
    "one more layer": lambda m, _: m.block.layers.append(nn.Sigmoid()),
    "shared layer that is two": lambda m, _: setattr(m.block, "again", nn.Linear(3, 3).double()),
    "shared parameter that is two": lambda m, _: setattr(
        m.block, "w2", nn.Parameter(torch.tensor([3.0, -4.0, 5.0], dtype=torch.float64))
    ),
    "parameter": lambda m, _: setattr(m.first, "weight", nn.Parameter(-2 * m.first.weight.detach())),
    "parameter in place": lambda m, _: m.block.w.data.mul_(-3),
    "buffer in place": lambda m, _: m.block.mean.add_(2),
    "hook": lambda m, _: m.block.layers[0].register_forward_hook(lambda _, args, out: out * 3),
    "hook of a block": lambda m, _: m.block.register_forward_pre_hook(lambda _, args: (args[0] - 2,)),
    "parametrisation": lambda m, _: (
        nn.utils.parametrizations.weight_norm(m.first)
        .parametrizations.weight[0]
        .register_forward_hook(lambda _, args, out: out * 2)
    ),
}


def _holds(model: nn.Module, x: Tensor) -> bool:
    found = trace(model, x).forward(Interval.point(x))[-1]
    with torch.no_grad():
        return bool(found.contains(model(x), tolerance=1e-9).all())


def _made() -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    return Model().double().eval(), torch.rand(4, 3, dtype=torch.float64)


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_outputs_changes_the_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _made()
    before = model(x).detach()
    assert fingerprint(model) is not None, "the test is about models whose graphs are kept"
    assert _holds(model, x)
    CHANGES[name](model, monkeypatch)
    if name not in ("module that shadows a builtin",):
        with torch.no_grad():
            assert not torch.allclose(model(x), before), "the change changes nothing"
    assert _holds(model, x)


def test_kept_graphs_would_be_wrong_without_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above could not fail."""
    monkeypatch.setattr(tracing, "fingerprint", lambda _: ("the same",))
    wrong = 0
    for change in CHANGES.values():
        model, x = _made()
        with monkeypatch.context() as patch:
            _holds(model, x)
            change(model, patch)
            try:
                wrong += not _holds(model, x)
            except Exception:
                wrong += 1
    assert wrong >= len(CHANGES) - 10  # parameters, buffers and layers are looked up at every call


def test_graphs_are_kept_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _made()
    _holds(model, x)
    monkeypatch.setattr(tracing, "_traced", lambda *_: pytest.fail("traced again"))
    assert _holds(model, x)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    assert _holds(model, x)
    assert fingerprint(copy.deepcopy(model)) == fingerprint(model)


class Reading(nn.Module):
    """Calls what it is given."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)
        for name, value in attributes.items():
            setattr(self, name, value)


def _forward(function: Callable[[Any, Tensor], Any], **attributes: Any) -> nn.Module:
    kind = type("Own", (Reading,), {"forward": function})
    found: nn.Module = kind(**attributes)
    return found


SETTINGS = types.SimpleNamespace(slope=0.1)
LAYERS = [nn.Linear(3, 3)]


def _closing() -> Callable[[Any, Tensor], Tensor]:
    factor = 2.0
    return lambda self, x: self.lin(x) * factor


def _importing(self: Any, x: Tensor) -> Tensor:
    from os import environ

    return self.lin(x) * len(environ)


def _switching(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return self.lin(x)


def _counting(self: Any, x: Tensor) -> Tensor:
    self.calls = 1
    return self.lin(x)


def _passing(self: Any, x: Tensor) -> Tensor:
    module = torch
    return module.relu(self.lin(x))


UNKNOWN: dict[str, Callable[[], nn.Module]] = {
    "closure": lambda: _forward(_closing()),
    "import": lambda: _forward(_importing),
    "context": lambda: _forward(_switching),
    "attribute that is set": lambda: _forward(_counting),
    "module that is passed on": lambda: _forward(_passing),
    "global object": lambda: _forward(lambda self, x: self.lin(x) * SETTINGS.slope),
    "global layer": lambda: _forward(lambda self, x: LAYERS[0](x)),
    "global state of torch": lambda: _forward(lambda self, x: self.lin(x) * (2 if torch.is_grad_enabled() else 3)),
    "random numbers": lambda: _forward(lambda self, x: self.lin(x) + torch.rand(3)),
    "getattr": lambda: _forward(lambda self, x: getattr(self, "li" + "n")(x)),
    "dictionary of attributes": lambda: _forward(lambda self, x: self.__dict__["k"] * self.lin(x), k=1.0),
    "method that writes": lambda: _forward(lambda self, x: self.lin(x) + self.k.append(1), k=[]),
    "function in an attribute": lambda: _forward(lambda self, x: self.k(self.lin(x)), k=lambda h: h * 2),
    "tensor in an attribute": lambda: _forward(lambda self, x: self.k * self.lin(x), k=torch.ones(3)),
    "object in an attribute": lambda: _forward(lambda self, x: self.k.slope * self.lin(x), k=SETTINGS),
    "long list": lambda: _forward(lambda self, x: self.lin(x) * self.k[0], k=[1.0] * 2000),
    "list that holds itself": lambda: _forward(lambda self, x: self.lin(x), k=_knot()),
    "attribute of a weight": lambda: _forward(lambda self, x: self.lin(x) * self.lin.weight.k, k=1.0),
    "flag of a weight": lambda: _forward(lambda self, x: self.lin(x) * (2 if self.lin.weight.requires_grad else 3)),
    "values of a weight": lambda: _forward(lambda self, x: self.lin(x) * self.lin.weight.data.sum().item()),
    "version": lambda: _forward(lambda self, x: self.lin(x) * self.lin.weight._version),
    "class of a layer": lambda: _forward(lambda self, x: self.lin(x) * type(self.lin).k),
    "layer with other attributes": lambda: type("Own", (nn.Linear,), {"k": 1.0})(3, 3),
    "own way to look up": lambda: type("Own", (Reading,), {"__getattr__": lambda s, n: nn.Module.__getattr__(s, n)})(),
    "own way to call": lambda: type("Own", (Reading,), {"__call__": lambda self, x: self.lin(x) * 2})(),
    "own children": lambda: type("Own", (Reading,), {"children": lambda self: [self.lin]})(),
    "slots": lambda: type("Own", (Reading,), {"__slots__": ("k",), "forward": lambda self, x: self.lin(x) * self.k})(),
    "descriptor": lambda: type("Own", (Reading,), {"k": _Dial(), "forward": lambda self, x: self.lin(x) * self.k})(),
    "generator": lambda: _forward(lambda self, x: sum(layer(x) for layer in [self.lin])),
}


class _Dial:
    def __get__(self, *_: object) -> float:
        return 2.0


def _knot() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize("name", UNKNOWN)
def test_code_that_can_read_anything_has_no_fingerprint(name: str) -> None:
    model = UNKNOWN[name]()
    if name == "attribute of a weight":
        model.lin.weight.k = 2.0  # type: ignore[union-attr, assignment]
    assert fingerprint(model) is None


def test_attributes_that_classes_are_given_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """`k` of the second layer is looked up in its class, and in nobody's attributes."""
    model = _forward(lambda self, x: self.other(x) * self.other.k, other=nn.Linear(3, 3), k=1.0)
    assert fingerprint(model) is not None
    for where in (nn.Linear, nn.Module, Tensor):
        with monkeypatch.context() as patch:
            patch.setattr(where, "k", 2.0, raising=False)
            assert fingerprint(model) is None, where


@pytest.mark.parametrize(
    ("where", "name"),
    [(Tensor, "view"), (torch, "relu"), (F, "relu"), (nn.ModuleList, "__iter__"), (nn.Module, "__call__"),
     (builtins, "len"), (torch, "sigmoid")],
)  # fmt: skip
def test_what_is_replaced_in_torch_and_python_is_seen(where: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _forward(lambda self, x: F.relu(torch.sigmoid(self.act(x.view(len(x.shape), 1)))), act=nn.ModuleList())
    before, original = fingerprint(model), getattr(where, name)
    assert before is not None
    monkeypatch.setattr(where, name, lambda *args, **kwargs: original(*args, **kwargs))
    assert fingerprint(model) is None


def test_functions_that_are_replaced_before_are_not_known() -> None:
    def wrapped(x: Tensor) -> Tensor:
        return x

    wrapped.__module__ = "torch.nn.functional"
    assert not known.of_torch(wrapped)
    assert known.of_torch(F.relu)
    assert F.relu in known.FUNCTIONS
    assert F.relu_ not in known.FUNCTIONS


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("scale", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.where(self.mask, self.lin(x), 0.0)
        return torch.cat((x, x.new_ones((x.shape[0], 1)) * self.scale), 1)


def test_values_that_were_looked_at_are_looked_at_again() -> None:
    torch.manual_seed(0)
    model, x = Masked().double(), torch.rand(4, 3, dtype=torch.float64)
    assert fingerprint(model) is not None
    assert _holds(model, x)
    model.mask.data.logical_not_()
    assert _holds(model, x)
    model.scale.data.fill_(3.0)
    assert _holds(model, x)
