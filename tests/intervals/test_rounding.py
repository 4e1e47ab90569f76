"""Outward rounding: bounds of float32 hold for exact values and for float32 evaluations in any order."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import Interval, rounding, trace
from robust_plugins.intervals.products import product


def _cancelling(g: torch.Generator, rows: int, terms: int) -> tuple[Tensor, Tensor]:
    """Factors whose products nearly cancel in their sum, over many magnitudes."""
    x = torch.randn(rows, terms, generator=g) * 10 ** (4 * torch.rand(rows, terms, generator=g) - 2)
    w = torch.randn(rows, terms, generator=g)
    w[:, -1] = -((x[:, :-1] * w[:, :-1]).double().sum(1) / x[:, -1].double()).float()
    return x, w


def _evaluations(x: Tensor, w: Tensor, g: torch.Generator) -> list[Tensor]:
    """Row-wise dot products in float32, in several orders, and exactly (to float64)."""
    order = torch.randperm(x.shape[1], generator=g)
    p, q = x[:, order], w[:, order]
    running = torch.zeros(len(x))
    for k in range(x.shape[1]):
        running = running + p[:, k] * q[:, k]
    pairs = F.pad(p * q, (0, x.shape[1] % 2)).view(len(x), -1, 2).sum(2).sum(1)
    return [running.double(), pairs.double(), (p * q).sum(1).double(), torch.einsum("ri,ri->r", p, q).double(),
            (x.double() * w.double()).sum(1)]  # fmt: skip


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("ri,ri->r", a, b)


def _failures(outward: bool, kind: str) -> tuple[int, int]:
    g = torch.Generator().manual_seed(0)
    failures = cases = 0
    for terms in (3, 17, 128):
        x, w = _cancelling(g, 2000, terms)
        eps = 1e-7 * x.abs() * torch.rand(x.shape, generator=g) * (torch.rand(len(x), 1, generator=g) < 0.5)
        a = Interval.point(x) if kind == "points" else Interval(x - eps, x + eps)
        b = Interval.point(w) if kind != "both" else Interval(w - 1e-7 * w.abs(), w + 1e-7 * w.abs())
        with rounding.outward(outward):
            bound = product(_dot, a, b, terms=terms)
        low, up = bound.lower.double(), bound.upper.double()
        for t in (a.lower, x, a.upper):
            for value in _evaluations(t, w, g):
                failures += int(((value < low) | (value > up)).sum())
                cases += len(x)
    return failures, cases


@pytest.mark.parametrize("kind", ["points", "box", "both"])
def test_products_hold_in_any_order(kind: str) -> None:
    failures, cases = _failures(True, kind)
    assert cases >= 50_000
    assert failures == 0
    assert _failures(False, kind)[0] > 0, "the cases must be hard enough to fail without outward rounding"


NETS = {
    "mlp": (nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 4)), (20,)),
    "cnn": (
        nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 2),
            nn.Softplus(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3), nn.Softmax(1),
        ),
        (1, 6, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("eps", [0.0, 1e-7, 1e-3])
def test_networks_hold_in_float32_and_float64(name: str, eps: float) -> None:
    torch.manual_seed(1)
    model, shape = NETS[name]
    model = model.float().eval()
    wide = copy.deepcopy(model).double()
    x, grad = torch.randn(50, *shape), torch.randn(50, 4 if name == "mlp" else 3)
    box = Interval(x - eps, x + eps)
    network = trace(model, x)
    with torch.no_grad():
        values = network.forward(box, rounding="outward")
        found = network.backward(values, Interval(grad, grad.clone()), weights="sum", rounding="outward")
    for t in (box.lower, x, box.upper):
        t = torch.minimum(torch.maximum(t, box.lower), box.upper)
        for net in (model, wide):
            z = t.to(next(net.parameters())).requires_grad_()
            out = net(z)
            slopes = torch.autograd.grad(out, [z, *net.parameters()], grad.to(z))
            truth = {"output": out, "input": slopes[0]}
            truth |= {n: s for (n, _), s in zip(net.named_parameters(), slopes[1:], strict=True)}
            bounds = {"output": values[-1], "input": found.input, **found.parameters}
            for key, value in truth.items():
                assert bool(bounds[key].to(torch.float64).contains(value.double()).all()), key


def test_precisions_that_are_not_covered_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.zeros(1, 2, dtype=dtype)
        network = trace(model.to(dtype), x)
        with pytest.raises(ArgumentError, match=r"float32 and torch\.float64"):
            network.forward(Interval.point(x), rounding="outward")
    x = torch.zeros(1, 2)
    network = trace(model.float(), x)
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ArgumentError, match="reduced precision"):
            network.forward(Interval.point(x), rounding="outward")
    finally:
        torch.set_float32_matmul_precision("highest")


def test_another_mode_is_refused(unchecked: None) -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ArgumentError, match="'nearest' or 'outward'"):
        trace(nn.Sequential(nn.Linear(2, 2)), x).forward(Interval.point(x), rounding="up")


def test_it_is_off_by_default_and_ends_with_its_block() -> None:
    assert not rounding.active()
    with rounding.outward():
        assert rounding.active()
        with rounding.outward(False):
            assert not rounding.active()
    assert not rounding.active()


class _Capsule(nn.Module):
    """A length by hand: the root of a sum of squares, which is zero for an input of zeros."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("weight", torch.ones(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        squares = {
            "sum": lambda: (x**2).sum(1, keepdim=True),
            "mean": lambda: (x * x).mean(1, keepdim=True),
            "product": lambda: x.abs() * (x.exp() * x.abs()),
            "matrix": lambda: x.square() @ self.weight,
            "linear": lambda: F.linear(x.abs(), self.weight.T),
            "shifted": lambda: x.abs() + x.square() + 0.0,
            "divided": lambda: (x * x).sum(1, keepdim=True) / 4,
        }[self.kind]()
        return torch.cat([squares.sqrt(), x], 1)


@pytest.mark.parametrize("kind", ["sum", "mean", "product", "matrix", "linear", "shifted", "divided"])
def test_rounding_makes_no_sum_of_squares_negative_so_that_roots_are_bounded(kind: str) -> None:
    x = torch.tensor([[0.0, 1e-30, -1e-3], [0.0, 0.0, 0.0]])
    for dtype in (torch.float32, torch.float64):
        model, points = _Capsule(kind).to(dtype), x.to(dtype)
        for name in ("interval:ibp", "interval:crown"):
            found = rp.certifier(name, outward=True).bounds(model, points, rp.Linf(eps=1e-3, clip=None))
            for factor in (-1.0, 0.0, 1.0):
                assert bool(found.contains(model(points + factor * 1e-3)).all())
            assert bool((found.lower[:, 0] >= 0).all())


def test_products_that_underflow_keep_their_sign() -> None:
    tiny = torch.tensor([1e-30])
    with rounding.outward():
        for found in (
            Interval(-tiny, tiny) * Interval(tiny, 2 * tiny),
            Interval(tiny, 2 * tiny) * Interval.point(-tiny),
            product(torch.mul, Interval(-tiny, tiny), Interval(tiny, 2 * tiny), terms=1),
        ):
            assert float(found.lower) < 0
        assert float((Interval(tiny, 2 * tiny) * Interval(tiny, 3 * tiny)).lower) == 0


def _crossed() -> int:
    """How many differences and sums of float32 numbers are not rounded outward, by their exact values."""
    generator, found = torch.Generator().manual_seed(0), 0
    for by in (torch.rand(20000, generator=generator), 0.3, 1e-9):
        number = torch.randn(20000, generator=generator)
        exact, number64 = torch.as_tensor(by, dtype=torch.float64), number.double()
        with rounding.outward():
            low, up = rounding.lessened(number, by), rounding.increased(number, by)
        found += int((low.double() > number64 - exact).sum() + (up.double() < number64 + exact).sum())
    return found


def test_differences_and_sums_are_rounded_outward() -> None:
    assert _crossed() == 0


def test_without_their_room_they_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "lessened", lambda number, by: number - by)
    monkeypatch.setattr(rounding, "increased", lambda number, by: number + by)
    assert _crossed() > 1000
