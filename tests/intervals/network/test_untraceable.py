"""Each way in which tracing fails has its message, and what it advises helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.intervals import Interval, trace


class Model(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.run, self.out, self.size = forward, nn.Linear(3, 2), 3

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def _holds(model: nn.Module) -> None:
    x = torch.linspace(-1, 1, 12).view(4, 3)
    found = trace(model, x).forward(Interval.point(x))[-1].lower
    with torch.no_grad():
        torch.testing.assert_close(found, model.eval()(x.clone()))


def _asserted(m: Any, x: Tensor) -> Tensor:
    assert x.shape[1] == m.size
    assert x.dim() == 2
    return m.out(x.double() if x.dtype == torch.float16 else x)


CASES: dict[str, tuple[Callable[[Any, Tensor], Any], str, Callable[[Any, Tensor], Any]]] = {
    "data": (
        lambda m, x: m.out(x) if x.sum() > 0 else -m.out(x),
        r"depends on data.*\(h > 0\)\.float\(\) \* a \+ \(h <= 0\)\.float\(\) \* b",
        lambda m, x: (x > 0).float() * x + (x <= 0).float() * (2 * x),
    ),
    "batch size": (
        lambda m, x: m.out(x) if x.shape[0] > 1 else x,
        "depends on the batch size.*treat all batches alike",
        _asserted,
    ),
    "computes with the batch size": (lambda m, x: x / len(x.shape) / x.size(0), "leave the batch size out", _asserted),
    "layer made in forward": (
        lambda m, x: nn.Linear(3, 3)(x),
        r"Linear is made in forward.*make it in __init__",
        lambda m, x: m.out(nn.ReLU()(x)),
    ),
    "numpy": (lambda m, x: torch.from_numpy(np.exp(x.numpy())), "calls numpy; use the function of torch",
              lambda m, x: torch.tanh(x)),
    "item": (
        lambda m, x: x * x.amax().item(), "makes plain numbers.*compute with the tensor itself",
        lambda m, x: x * x.sum(1, keepdim=True),
    ),
    "a decision by item": (
        lambda m, x: x * (x.amax().item() > 5), "makes plain numbers|depends on data",
        lambda m, x: x * (x > 5).float(),
    ),
    "a number": (
        lambda m, x: sum(x[:, i : i + 1] for i in range(x.shape[1])), "keep sizes as attributes",
        lambda m, x: sum(x[:, i : i + 1] for i in range(m.size)),
    ),
    "loop": (lambda m, x: torch.stack([m.out(row) for row in x]), r"loops over a tensor.*x\[:, 0\]",
             lambda m, x: x[:, 0:1] + x[:, 1:2]),
    "unknown function": (lambda m, x: torch.digamma(x), "digamma in the model.*register_interval_rules",
                         lambda m, x: torch.tanh(x)),
    "several outputs": (lambda m, x: (x, m.out(x)), "wrap it to return its logits", lambda m, x: m.out(x)),
    "random": (lambda m, x: m.out(x) + 1e-9 * torch.randn(2), "draws random numbers.*self.training",
               lambda m, x: m.out(x) + (torch.randn(2) if m.training else 0)),
    "half": (lambda m, x: m.out(x.to(torch.float16).float()), "float16 of float32, which rounds.*one dtype",
             lambda m, x: m.out(x.to(torch.float32))),
    "its raised error": (lambda m, x: {}["missing"], "its forward raised KeyError", _asserted),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_messages_say_what_to_do_and_that_helps(name: str) -> None:
    failing, message, advised = CASES[name]
    with pytest.raises(rp.UnsupportedModelError, match=message):
        trace(Model(failing), torch.linspace(-1, 1, 12).view(4, 3))
    _holds(Model(advised))


CASTS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.half(), lambda x: x.bfloat16(), lambda x: x.int(), lambda x: x.long(), lambda x: x.bool(),
    lambda x: x.to(torch.float16),
    lambda x: x.to(int), lambda x: x.type_as(torch.ones(1, dtype=torch.float16)), lambda x: x.type(torch.int8),
    lambda x: x.to(torch.ones(1, dtype=torch.bfloat16)), lambda x: x.double(),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(CASTS)))
def test_casts_are_refused_by_name(index: int) -> None:
    with pytest.raises(rp.UnsupportedModelError, match=r"in the model \(Model\)"):
        trace(Model(lambda m, x: m.out(CASTS[index](x).float())), torch.rand(4, 3))


def test_casts_that_change_nothing_are_the_identity() -> None:
    _holds(Model(lambda m, x: m.out(x.float().to(x).type_as(x) + (x > 0).half().to(x.dtype))))


def test_truth_values_do_not_add_up() -> None:
    with pytest.raises(rp.UnsupportedModelError, match=r"truth values.*\(h > 0\)\.float\(\)"):
        trace(Model(lambda m, x: ((x > 0) + (x > -0.5)) * x), torch.rand(4, 3))
    _holds(Model(lambda m, x: ((x > 0).float() + (x > -0.5).float()) * x))


class _Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor, scale: float = 2.0) -> Tensor:
        return x + scale * y


class _Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = _Two(), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, self.other)


def test_models_of_other_kinds_are_named() -> None:
    x = torch.rand(4, 3)
    with pytest.raises(rp.UnsupportedModelError, match=r"does not take one input.*wrap it"):
        trace(_Two(), x)
    _holds(_Wrapped())
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(model)
    with pytest.raises(rp.UnsupportedModelError, match=r"is TorchScript.*the module that it was made from"):
        trace(scripted, x)
    _holds(model)


@pytest.mark.filterwarnings("ignore")
def test_quantised_models_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    with pytest.raises(rp.UnsupportedModelError, match=r"0 \(Linear\) is quantised.*the float model"):
        trace(quantised, torch.rand(4, 3))
    _holds(model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: (m.compile(), m)[1]])
def test_wrapped_models_are_traced(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.rand(4, 3)
    expected = model(x).detach()
    found = trace(wrap(model), x).forward(Interval.point(x))[-1].lower
    torch.testing.assert_close(found, expected)
