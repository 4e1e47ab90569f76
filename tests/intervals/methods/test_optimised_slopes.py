"""Bounds with optimised slopes hold for whatever slopes, and are never looser than CROWN's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.drawn_graphs import Drawn
from support.interval_checker import Case, make_case, observed, violations
from support.interval_examples import EXAMPLES, Constants
from support.length import length
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import Interval, crown, trace
from robust_plugins.intervals.methods import optimised_slopes
from robust_plugins.intervals.methods.ascent import Ascent
from robust_plugins.intervals.methods.compact import Compact
from robust_plugins.intervals.methods.graph_dual import GraphDual
from robust_plugins.intervals.methods.optimised_slopes import optimised
from robust_plugins.intervals.methods.unfolding import TooLargeError, Unfolding

AMPLE, SCARCE = 2**30, 300
"""Bytes for the compact network; so few that it is never built."""


def ascent(steps: int) -> Ascent:
    return Ascent(steps=steps, learning_rate=0.1, decay=0.98)


def bounds(case: Case, *, steps: int = 5, memory: int = AMPLE) -> tuple[Interval, Interval]:
    """The output's bounds, flat, by CROWN and with optimised slopes, which are checked to be no looser."""
    with torch.no_grad():
        network = trace(case.model, case.x.lower)
        values = crown(network, case.x)
        known = values[-1].map(lambda t: t.reshape(len(t), -1))
        eye = torch.eye(known.shape[1], dtype=torch.float64).expand(len(case.x), -1, -1)
        found = optimised(network, values, known, eye, ascent=ascent(steps), memory=memory)
    assert bool(((found.lower >= known.lower) & (found.upper <= known.upper)).all())
    return known, found


def seen(case: Case, **how: int) -> Interval:
    return observed(case, gradients=False, **how)["output"].map(lambda t: t.reshape(len(t), -1))


def holds(found: Interval, hull: Interval) -> bool:
    return violations({"output": found}, {"output": hull}) == []


def hidden(depth: int = 3, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers = [layer for _ in range(depth - 1) for layer in (nn.Linear(6, 6), activation())]
    return nn.Sequential(nn.Linear(4, 6), activation(), *layers, nn.Linear(6, 3))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_every_layer_behind_a_relu(index: int) -> None:
    _, layer, shape = EXAMPLES[index]
    model = layer if isinstance(layer, Constants) else nn.Sequential(nn.ReLU(), layer)
    case = make_case(model, shape, eps=0.9, gamma=0.0, seed=index)
    _, found = bounds(case, steps=3)
    assert holds(found, seen(case, samples=10, ascents=5))


@settings(max_examples=5)
@given(
    image=st.booleans(),
    choices=st.lists(st.integers(0, 599), min_size=1, max_size=5),
    eps=st.sampled_from([1e-4, 0.05, 0.3, 1.0]),
    memory=st.sampled_from([AMPLE, 20_000, SCARCE]),
    seed=st.integers(0, 10**6),
)
def test_random_networks(image: bool, choices: list[int], eps: float, memory: int, seed: int) -> None:
    model = Drawn(image, choices)
    model(torch.zeros(1, *model.shape))
    case = make_case(model, model.shape, eps=eps, gamma=0.0, seed=seed)
    _, found = bounds(case, steps=3, memory=memory)
    assert holds(found, seen(case, samples=10, ascents=6))


@pytest.mark.slow
@settings(max_examples=length(60, 300))
@given(
    image=st.booleans(),
    choices=st.lists(st.integers(0, 599), min_size=2, max_size=8),
    eps=st.floats(1e-4, 2.0),
    memory=st.sampled_from([AMPLE, 20_000, SCARCE]),
    steps=st.integers(0, 20),
    seed=st.integers(0, 10**6),
)
def test_more_networks(image: bool, choices: list[int], eps: float, memory: int, steps: int, seed: int) -> None:
    model = Drawn(image, choices)
    model(torch.zeros(1, *model.shape))
    case = make_case(model, model.shape, eps=eps, gamma=0.0, seed=seed)
    _, found = bounds(case, memory=memory, steps=steps)
    assert holds(found, seen(case, samples=60, ascents=20))


def unfolded(case: Case, steps: int = 0) -> tuple[Compact, Tensor, Tensor, Unfolding]:
    """The first sample's compact network, and rows and constants of both signs of every output."""
    with torch.no_grad():
        values = crown(trace(case.model, case.x.lower), case.x)
        one = Unfolding(trace(case.model, case.x.lower), [v[:1] for v in values], ascent(steps), AMPLE)
    rows, const = one.columns[len(values) - 1].rows(one.compact)
    return one.compact, torch.cat([rows, -rows], 1), torch.cat([const, -const]), one


@pytest.mark.parametrize("activation", [nn.ReLU, lambda: nn.LeakyReLU(0.2), lambda: nn.Hardtanh(-0.5, 0.8), nn.Tanh])
def test_any_slopes_are_sound(activation: Callable[[], nn.Module]) -> None:
    case = make_case(hidden(activation=activation), (4,), eps=0.4, gamma=0.0, seed=5)
    compact, rows, const, _ = unfolded(case)
    hull = seen(case, samples=200, ascents=40)[:1]
    for seed in range(10):
        share = torch.rand((len(compact.offset), rows.shape[1]), generator=torch.Generator().manual_seed(seed))
        value = compact.bound(rows, const, compact.least + share.double() * (compact.most - compact.least)).value
        assert holds(Interval(value[:3], -value[3:]).map(lambda t: t.unsqueeze(0)), hull)


@pytest.mark.parametrize("fault", ["slopes below 0", "no intercept", "flat chord", "no offset"])
def test_planted_faults_are_found(fault: str) -> None:
    case = make_case(hidden(2), (4,), eps=0.4, gamma=0.0, seed=5)
    compact, rows, const, _ = unfolded(case)
    slopes = compact.usual_slopes().repeat(1, rows.shape[1])
    if fault == "slopes below 0":
        slopes = slopes - 0.5 * compact.free
    elif fault == "no intercept":
        compact.intercept = 0 * compact.intercept
    elif fault == "flat chord":
        compact.chord = 0.3 * compact.chord
    else:
        compact.offset = 0 * compact.offset
    value = compact.bound(rows, const, slopes).value
    found = Interval(value[:3], -value[3:]).map(lambda t: t.unsqueeze(0))
    assert not holds(found, seen(case, samples=200, ascents=60)[:1])


def test_the_gradient_is_that_of_automatic_and_of_finite_differences() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 6), nn.LeakyReLU(),
                          nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))  # fmt: skip
    case = make_case(model, (1, 6, 6), eps=0.5, gamma=0.0, seed=1)
    compact, rows, const, _ = unfolded(case)
    shape = (len(compact.offset), rows.shape[1])
    share = torch.rand(shape, generator=torch.Generator().manual_seed(0)).double()
    slopes = (compact.least + share * (compact.most - compact.least)).requires_grad_()
    value, derivative = compact.evaluate(rows, const, slopes.detach())
    again = compact.differentiable_bound(rows, const, slopes)
    torch.testing.assert_close(value, again.detach())
    (expected,) = torch.autograd.grad(again.sum(), slopes)
    found = derivative(None)
    torch.testing.assert_close(found, expected * compact.free)
    assert int((found.abs() > 1e-6).sum()) > 10
    torch.testing.assert_close(derivative(torch.tensor([4, 1])), found[:, [4, 1]])
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double() * compact.free * 1e-6
    moved = [compact.bound(rows, const, slopes.detach() + s * direction).value for s in (1, -1)]
    torch.testing.assert_close((moved[0] - moved[1]) / 2, (found * direction).sum(0), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("activation", [nn.ReLU, lambda: nn.LeakyReLU(0.2), nn.Tanh, nn.Sigmoid])
def test_without_steps_it_is_crown(activation: Callable[[], nn.Module]) -> None:
    case = make_case(hidden(activation=activation), (4,), eps=0.2, gamma=0.0, seed=2)
    known, _ = bounds(case, steps=0)
    with torch.no_grad():
        network = trace(case.model, case.x.lower)
        values = crown(network, case.x)
    for i in range(len(case.x)):
        one = Unfolding(network, [v[i : i + 1] for v in values], ascent(0), AMPLE)
        dual = GraphDual(network, [v[i : i + 1] for v in values], memory=AMPLE)
        rows = torch.cat([torch.eye(3), -torch.eye(3)], 0).double()
        expected = torch.cat([known.lower[i], -known.upper[i]])
        torch.testing.assert_close(one.bound(len(values) - 1, rows), expected)
        slopes = dual.usual_slopes().repeat(1, 6)
        torch.testing.assert_close(dual.evaluate(rows.t(), torch.zeros(6).double(), slopes)[0], expected)


def test_optimised_slopes_see_what_crown_does_not() -> None:
    """`relu(x) + relu(-x) + (x + 10) / 2 - 5` is never negative: slopes with the difference -1/2 show it."""
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    for memory in (AMPLE, SCARCE):
        case = make_case(model, (1,), eps=1.0, gamma=0.0, seed=0, batch=1)
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[1.0], [-1.0], [1.0]]))
            model[0].bias.copy_(torch.tensor([0.0, 0.0, 10.0]))
            model[2].weight.copy_(torch.tensor([[1.0, 1.0, 0.5]]))
            model[2].bias.fill_(-5.0)
        case.x = Interval(*(torch.tensor([[end]], dtype=torch.float64) for end in (-1.0, 2.0)))
        known, found = bounds(case, steps=100, memory=memory)
        assert float(known.lower) == -0.5
        assert -1e-2 < float(found.lower) <= 0


def test_more_steps_and_smaller_boxes_are_tighter() -> None:
    case = make_case(hidden(4), (4,), eps=0.3, gamma=0.0, seed=3)
    widths = [bounds(case, steps=steps)[1].width for steps in (0, 5, 40)]
    assert float(widths[0].sum()) > 1.05 * float(widths[1].sum()) > 1.05 * float(widths[2].sum())
    half = Case(case.model, Interval(case.x.center - case.x.radius / 2, case.x.center + case.x.radius / 2), case.grad)
    inner = bounds(half)[1]
    outer = bounds(case)[1]
    assert bool(((inner.lower > outer.lower) & (inner.upper < outer.upper)).all())


def test_rows_that_are_decided_are_left_and_points_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(hidden(), (4,), eps=0.2, gamma=0.0, seed=4)
    with torch.no_grad():
        network = trace(case.model, case.x.lower)
        values = crown(network, case.x)
        spec = torch.eye(3, dtype=torch.float64).expand(2, -1, -1)
        ahead = Interval(torch.full_like(values[-1].lower, 0.5), torch.full_like(values[-1].lower, 1.0))
        settings_ = {"ascent": ascent(3), "memory": AMPLE, "upper": False, "decide": True}
        monkeypatch.setattr(optimised_slopes, "Unfolding", None)  # nothing is to be done
        assert torch.equal(optimised(network, values, ahead, spec, **settings_).lower, ahead.lower)
        with pytest.raises(TypeError):
            optimised(network, values, values[-1] - 100.0, spec, **settings_)
        monkeypatch.undo()
        point = Case(case.model, Interval(case.x.lower, case.x.lower.clone()), case.grad)
        torch.testing.assert_close(bounds(point)[1].lower, case.model(case.x.lower))


def test_what_is_refused() -> None:
    case = make_case(hidden(), (4,), eps=0.2, gamma=0.1, seed=4)
    with torch.no_grad():
        network = trace(case.model, case.x.lower, weights=case.weights)
        one = [v[:1] for v in crown(network, case.x)]
        with pytest.raises(ArgumentError, match="intervals of weights"):
            Unfolding(network, one, ascent(1), AMPLE)
        with pytest.raises(TooLargeError):
            Unfolding(trace(case.model, case.x.lower), one, ascent(1), SCARCE)


@pytest.mark.parametrize("memory", [AMPLE, SCARCE])
def test_between_the_ends_of_a_clamp_nothing_is_rounded_at_their_scale(memory: int) -> None:
    """Values far below the ends: a sum of ReLUs that starts from an end would round like the end."""
    layer = nn.Linear(6, 2, bias=False)
    model, x = nn.Sequential(layer, nn.Hardtanh(-1000.0, 1000.0)), Interval(torch.rand(1, 6), torch.rand(1, 6) + 1)
    with torch.no_grad():
        layer.weight.mul_(1e-4)
        exact, eye = crown(trace(nn.Sequential(layer), x.lower), x)[-1], torch.eye(2).unsqueeze(0)
        loose = Interval(exact.lower - 1, exact.upper + 1)
        network = trace(model, x.lower)
        found = optimised(network, crown(network, x), loose, eye, ascent=ascent(3), memory=memory)
    for end, right in ((found.lower, exact.lower), (found.upper, exact.upper)):
        torch.testing.assert_close(end, right, rtol=1e-5, atol=0.0)
