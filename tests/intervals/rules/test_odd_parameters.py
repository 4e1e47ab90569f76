"""Activations with every parameter that torch takes: bounded soundly in both precisions and roundings, or refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import robust_plugins as rp
from robust_plugins.intervals import Interval, trace
from robust_plugins.intervals.layers import Clamp, Step
from robust_plugins.intervals.rules.elementwise import activation_of

numbers = st.sampled_from([-40.0, -3.0, -1.0, -0.1, -1e-3, 0.0, 1e-3, 0.1, 0.5, 0.9, 1.0, 1.7, 6.0, 50.0])
positive = st.sampled_from([1e-2, 0.3, 1.0, 2.0, 7.0, 100.0])


@st.composite
def activations(draw: st.DrawFn) -> nn.Module:
    kind = draw(st.integers(0, 8))
    a, b = draw(numbers), draw(numbers)
    if kind == 0:
        return nn.LeakyReLU(a)
    if kind == 1:
        return nn.ELU(a)
    if kind in (2, 3):
        return nn.Softplus(draw(positive), a)
    if kind == 4:
        infinite = draw(st.sampled_from([None, None, "low", "high", "both"]))
        low = -torch.inf if infinite in ("low", "both") else min(a, b)
        return nn.Hardtanh(low, torch.inf if infinite in ("high", "both") else max(a, b) + 0.1)
    if kind == 5:
        return Clamp(a, b)
    if kind == 6:
        return Clamp(*draw(st.sampled_from([(a, None), (None, a), (-torch.inf, a), (a, torch.inf)])))
    if kind == 7:
        return Step(a, closed=draw(st.booleans()))
    return draw(st.sampled_from([nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.ReLU6()]))


@settings(max_examples=150)
@given(
    layer=activations(), dtype=st.sampled_from([torch.float32, torch.float64]), outward=st.booleans(),
    center=st.floats(-4, 4), radius=st.sampled_from([1e-7, 1e-4, 0.01, 0.3, 2.0, 30.0]),
    at=st.booleans(),
)  # fmt: skip
def test_values_and_slopes_lie_in_their_bounds(
    layer: nn.Module, dtype: torch.dtype, outward: bool, center: float, radius: float, at: bool
) -> None:
    record = activation_of(layer)
    assert record is not None
    points = [p for p in (*record.extrema, *record.turns, *record.kinks, record.jump[0]) if abs(p) < 1e4]
    if at and points:  # where something happens
        center = points[0] + 0.3 * radius
    x = torch.tensor([[center]], dtype=dtype)
    box = Interval(x - radius, x + radius)
    t = torch.linspace(0, 1, 801, dtype=dtype).unsqueeze(1)
    z = torch.cat([box.lower + t * box.width, box.lower, box.upper])
    for point in points:
        near = torch.tensor([[point]], dtype=dtype)
        for _ in range(4):
            z = torch.cat([z, near])
            near = torch.nextafter(near, torch.full_like(near, torch.inf))
        near = torch.tensor([[point]], dtype=dtype)
        for _ in range(4):
            near = torch.nextafter(near, torch.full_like(near, -torch.inf))
            z = torch.cat([z, near])
    z = z[(z >= box.lower).all(1) & (z <= box.upper).all(1)].requires_grad_()
    out = layer(z)
    slopes = torch.autograd.grad(out.sum(), z)[0] if out.requires_grad else torch.zeros_like(z)
    network = trace(nn.Sequential(layer), x)
    mode = "outward" if outward else "nearest"
    values = network.forward(box, rounding=mode)
    found, gradient = values[-1], network.backward(values, Interval.point(torch.ones_like(x)), rounding=mode).input
    slack = 0.0 if outward else 8 * torch.finfo(dtype).eps * (1 + float(out.detach().abs().max()))
    assert bool(found.contains(out.detach(), tolerance=slack).all())
    assert bool(gradient.contains(slopes, tolerance=1e-5 if dtype == torch.float32 else 1e-12).all())
    if record.relaxable and not outward:
        (a, b), (c, d) = record.lines(box)
        slack = 64 * torch.finfo(dtype).eps * (1 + radius + abs(center)) * (1 + float(slopes.abs().max()))
        assert bool((a * z + b <= out + slack).all())
        assert bool((c * z + d >= out - slack).all())


@pytest.mark.parametrize("beta", [-1.0, 0.0, -1e-9, float("nan")])
def test_softplus_that_is_not_convex_is_refused(beta: float) -> None:
    model = nn.Sequential(nn.Softplus(), nn.Linear(2, 2))
    x = torch.rand(3, 2)
    trace(model, x).forward(Interval.point(x))
    model[0].beta = beta
    with pytest.raises(rp.UnsupportedModelError, match="beta must be above 0"):
        trace(model, x).forward(Interval.point(x))


@pytest.mark.parametrize("outward", [False, True])
@pytest.mark.parametrize("threshold", [0.1, 1.0])
def test_the_jump_of_softplus_is_where_torch_has_it(threshold: float, outward: bool) -> None:
    """At x = threshold in float32 the value falls from log(1 + e^x) to x."""
    layer, x = nn.Softplus(threshold=threshold), torch.tensor([[threshold]])
    box = Interval(x - 1e-3, x + 1e-3)
    found = trace(nn.Sequential(layer), x).forward(box, rounding="outward" if outward else "nearest")[-1]
    z = x + torch.linspace(-1e-3, 1e-3, 2001).unsqueeze(1)
    z = z.clamp(box.lower, box.upper)
    assert bool(found.contains(layer(z), tolerance=0 if outward else 1e-6).all())
    assert float(found.lower) < threshold + 1e-4
    assert float(found.upper) > float(nn.functional.softplus(x)) - 1e-4


def test_ends_in_the_wrong_order_are_refused() -> None:
    model, x = nn.Sequential(nn.Hardtanh()), torch.zeros(1, 2)
    model[0].min_val = 3.0
    with pytest.raises(rp.UnsupportedModelError, match=r"min_val|cannot be (run|traced)"):
        trace(model, x).forward(Interval.point(x))


def test_pools_that_do_not_average_are_refused() -> None:
    x = torch.rand(2, 1, 4, 4)
    with pytest.raises(rp.UnsupportedModelError, match="divisor_override=-3"):
        trace(nn.Sequential(nn.AvgPool2d(2, divisor_override=-3)), x)
    found = trace(nn.Sequential(nn.AvgPool2d(2, divisor_override=3)), x).forward(Interval(x, x + 1))[-1]
    assert torch.allclose(found.width, torch.full((2, 1, 2, 2), 4 / 3))
