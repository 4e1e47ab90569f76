"""Functions of entries, and of pairs of entries, in every spelling: bounded soundly, or refused with what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.interval_checker import Case, bounds_of, make_case, observed, violations
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.intervals import Interval, trace
from robust_plugins.intervals.layers import Multiply, Power
from robust_plugins.intervals.rules.registry import BUILTIN


class Of(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.first, self.last = function, nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.function(self.first(x))
        last: Tensor = self.last(h)
        return last


LIMITS = torch.tensor([-0.2, 0.1, 0.0, -1.0])

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "activations": lambda h: F.selu(h) - F.celu(h, 0.5) + F.mish(h) * F.hardswish(h) + F.softsign(h),
    "shrinkages": lambda h: F.tanhshrink(h) + F.softshrink(h, 0.2) - h.hardshrink(0.3) + F.threshold(h, 0.1, -0.2),
    "leaky": lambda h: F.prelu(h, torch.tensor([-0.4, 0.2, 1.7, 0.0], dtype=h.dtype)) + F.rrelu(h),
    "exponentials": lambda h: torch.exp(h) - (-h).exp() + 2**h + torch.special.expit(h) + F.logsigmoid(h),
    "logarithms": lambda h: torch.log(1.5 + torch.sin(h)) + torch.log1p(h.abs()),
    "roots": lambda h: torch.sqrt(h * h + 0.5) + (h.square() + 1) ** 0.5 - torch.rsqrt(1 + h**2),
    "free powers": lambda h: (h.abs() + 0.3) ** h.tanh() + torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=h.dtype) ** h,
    "given powers": lambda h: (h.square() + 0.2).pow(torch.tensor([0.5, -1.0, 2.0, 1.3], dtype=h.dtype)),
    "gates": lambda h: torch.cat((F.glu(h), nn.GLU(1)(h.view(-1, 2, 2)).flatten(1)), 1),
    "limits": lambda h: torch.clamp(h, min=LIMITS.to(h), max=(LIMITS + 0.5).to(h)) - h.clamp(max=LIMITS[0].to(h)),
    "free limits": lambda h: torch.clamp(h, min=h.sin() - 0.3, max=h.relu()) + h.clamp_min(0) - torch.clamp_max(h, 0.2),
    "powers": lambda h: h**2 + h.pow(3) - torch.pow(h, 4) + (2 + h.tanh()) ** -1.5,
    "waves": lambda h: h.sin() * torch.cos(h) + torch.erf(h) + h.atan(),
    "quotients": lambda h: h / (2 + torch.tanh(h)) + 1 / (1 + h * h) + torch.reciprocal(h.exp() + 1),
    "extremes": lambda h: torch.maximum(h, torch.zeros_like(h)) + torch.max(h, -h) - h.minimum(h.sin()),
    "constants": lambda h: torch.minimum(torch.tensor([0.1, -0.2, 0.0, 1.0], dtype=h.dtype), h),
    "between": lambda h: (
        torch.lerp(h, h.sin(), 0.3)
        + torch.lerp(LIMITS.to(h), h, h.sigmoid())
        - h.lerp(LIMITS.to(h), (LIMITS - 3).to(h))
    ),
    "scaled and moved": lambda h: (
        torch.addcmul(torch.ones(4).to(h), LIMITS.to(h), h) + torch.addcdiv(h, h, (LIMITS - 3).to(h), value=2.0)
    ),
    "combined": lambda h: torch.addcmul(h, h.relu(), h.tanh(), value=0.5) + torch.addcdiv(h, h, 1 + h.square()),
    "steps": lambda h: torch.floor(3 * h) / 3 + torch.sign(h) + h.round(),
    "abs": lambda h: abs(h - 0.2),
}  # fmt: skip


def _case(name: str, eps: float) -> Case:
    return make_case(Of(FUNCTIONS[name]), (3,), eps=eps, gamma=0, seed=1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_bounded_and_wider_for_wider_sets(name: str) -> None:
    found = []
    for eps in (1e-4, 0.4):
        case = _case(name, eps)
        hull = observed(case, samples=16, ascents=12)
        for relax in (False, True):
            bounds = bounds_of(case, relax=relax)
            assert violations(bounds, hull) == [], (eps, relax)
            found.append(bounds["output"].width)
    assert bool((found[2] >= found[0]).all() and (found[3] >= found[1]).all())


def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case("quotients", 0.4)
    hull = observed(case, samples=40, ascents=20)
    rules = BUILTIN.entry(Multiply)
    monkeypatch.setattr(rules, "forward", lambda layer, x, y: Interval(x.lower * y.lower, x.lower * y.lower))
    assert violations(bounds_of(case, gradients=False), hull)


def test_a_product_of_a_value_with_itself_is_a_square() -> None:
    network = trace(nn.Sequential(nn.Identity(), Of(lambda h: h * h)), torch.rand(3, 3))
    assert any(isinstance(layer, Power) for layer in network.layers)
    assert not any(isinstance(layer, Multiply) for layer in network.layers)


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "log": (lambda h: torch.log(h), "log needs values above 0.*clamp"),
    "quotient": (lambda h: 1 / h, "a divisor other than 0.*clamp"),
    "power": (lambda h: h**0.7, "needs values not below 0"),
    "exponent": (lambda h: h**h, "log needs values above 0.*clamp"),
    "base": (lambda h: (-2.0) ** h, "pow.*base"),
    "drawn": (lambda h: F.rrelu(h, training=True), "rrelu.*training=self.training"),
    "rounding mode": (lambda h: torch.div(h, 2, rounding_mode="floor"), "div.*torch.floor"),
    "decimals": (lambda h: torch.round(h, decimals=2), "round.*whole numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_defined_is_refused(name: str) -> None:
    function, message = REFUSED[name]
    torch.manual_seed(0)
    model, x = Of(function).double(), torch.randn(2, 3, dtype=torch.float64)
    with pytest.raises(rp.UnsupportedModelError, match=message):
        trace(model, x).forward(Interval(x - 10, x + 10))


def test_the_hints_help() -> None:
    x = torch.randn(2, 3, dtype=torch.float64)
    for mended in (
        lambda h: torch.log(h.clamp(min=0.1)),
        lambda h: torch.floor(h / 2),
        lambda h: h[:, :2].repeat(1, 2),
    ):
        trace(Of(mended).double(), x).forward(Interval(x - 10, x + 10))


def test_a_gate_is_nearly_as_tight_as_what_is_sampled() -> None:
    """Certified range through sampled range: 3 to 4 with constants, below 1.25 with McCormick's planes."""
    torch.manual_seed(0)

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.gate, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            last: Tensor = self.last(self.value(x) * torch.sigmoid(self.gate(x)))
            return last

    case = make_case(Gate(), (8,), eps=0.1, gamma=0, seed=0, batch=8)
    sampled = observed(case, samples=400, ascents=60, gradients=False)["output"]
    found = bounds_of(case, relax=True, gradients=False)["output"]
    assert float((found.width / sampled.width).mean()) < 1.25
