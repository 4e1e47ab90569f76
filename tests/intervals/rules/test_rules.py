"""Every rule: sound, exact on points, wider for wider sets; and each of them broken on purpose is caught."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from support.interval_checker import MUTATIONS, Case, bounds_of, make_case, observed, truth, violations
from support.interval_examples import EXAMPLES
from torch import Tensor, nn

from robust_plugins.errors import RobustPluginsError
from robust_plugins.intervals import Interval, Relaxation, trace
from robust_plugins.intervals.layers import Input
from robust_plugins.intervals.methods import substitution
from robust_plugins.intervals.rules.registry import BUILTIN, LinearBound, rules_for

# torch itself warns of this padding, once per process.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")

NAMES = [f"{kind.__name__}-{index}" for index, (kind, _, _) in enumerate(EXAMPLES)]
examples = pytest.mark.parametrize(("kind", "layer", "shape"), EXAMPLES, ids=NAMES)


def _case(layer: nn.Module, shape: tuple[int, ...], seed: int = 0, *, eps: float = 1.0) -> Case:
    # Whole modules are traced into; a wrapper keeps the layer a layer.
    return make_case(nn.Sequential(copy.deepcopy(layer)), shape, eps=eps, gamma=0.5, seed=seed)


def test_every_type_with_rules_has_an_example() -> None:
    assert set(BUILTIN) == {kind for kind, _, _ in EXAMPLES} | {Input}


@cache
def _searched(index: int) -> tuple[Case, dict[str, Interval]]:
    """The example's case, and what a search over it sees; shared by the tests of sound and of broken rules."""
    _, layer, shape = EXAMPLES[index]
    case = _case(layer, shape)
    return case, observed(case, samples=10, ascents=40)


indices = pytest.mark.parametrize("index", range(len(EXAMPLES)), ids=NAMES)


@indices
def test_bounds_hold(index: int) -> None:
    case, hull = _searched(index)
    assert violations(bounds_of(case), hull) == []


@indices
def test_relaxed_bounds_hold(index: int) -> None:
    case, hull = _searched(index)
    assert violations(bounds_of(case, relax=True, gradients=False), hull) == []


@examples
def test_points_give_what_automatic_differentiation_gives(
    kind: type[nn.Module], layer: nn.Module, shape: tuple[int, ...]
) -> None:
    case = make_case(nn.Sequential(copy.deepcopy(layer)), shape, eps=0, gamma=0, seed=3, grad=0)
    bounds, values = bounds_of(case), truth(case, {"x": case.x.lower, "grad": case.grad.lower})
    assert set(bounds) == set(values)
    for name, interval in bounds.items():
        assert interval.is_point
        torch.testing.assert_close(interval.lower, values[name].detach(), rtol=1e-12, atol=1e-12)


@examples
def test_wider_sets_give_wider_bounds(kind: type[nn.Module], layer: nn.Module, shape: tuple[int, ...]) -> None:
    wide = _case(layer, shape)
    g = torch.Generator().manual_seed(1)

    def inner(box: Interval) -> Interval:
        cut = torch.rand((2, *box.shape), generator=g, dtype=torch.float64) * 0.4
        return Interval(box.lower + cut[0] * box.width, box.upper - cut[1] * box.width)

    narrow = Case(wide.model, inner(wide.x), inner(wide.grad), {n: inner(w) for n, w in wide.weights.items()})
    outer = bounds_of(wide)
    for name, interval in bounds_of(narrow).items():
        assert bool((interval.lower >= outer[name].lower - 1e-12).all()), name
        assert bool((interval.upper <= outer[name].upper + 1e-12).all()), name


@indices
@pytest.mark.slow
def test_broken_rules_are_caught(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case, hull = _searched(index)
    rules, sound = BUILTIN.entry(EXAMPLES[index][0]), bounds_of(case)
    monkeypatch.setattr("robust_plugins.intervals.network.tracing._check", lambda *_: None)
    unnoticed = []
    for field in ("forward", "backward", "weights"):
        for name, mutate in MUTATIONS.items():
            if getattr(rules, field) is None:
                continue
            with monkeypatch.context() as patch:
                patch.setattr(rules, field, _broken(getattr(rules, field), mutate))
                try:
                    bounds = bounds_of(case)
                except RobustPluginsError:
                    continue  # a crossed interval that a later rule refuses is caught as well
            # Some are no mutation of this layer: dropout has no gate to forget.
            changed = any(not _equal(bounds[n], sound[n]) for n in sound)
            if changed and not violations(bounds, hull):
                unnoticed.append(f"{name} in the {field} rule")
    assert unnoticed == []


def _broken(rule: Any, mutate: Any) -> Any:
    def broken(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result, last = rule(layer, *args, **kwargs), args[-1]
        if isinstance(result, dict):
            return {k: mutate(v, last) for k, v in result.items()}
        return tuple(mutate(r, last) for r in result) if isinstance(result, tuple) else mutate(result, last)

    return broken


@indices
@pytest.mark.slow
def test_broken_relaxations_are_caught(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, layer, shape = EXAMPLES[index]
    rules, case = BUILTIN.entry(kind), _case(layer, shape, eps=2.0)
    relax = rules.relaxation
    if relax is None:
        pytest.skip("relaxed by its constant interval")

    def swapped(layer: nn.Module, *inputs: Interval, **parameters: Any) -> tuple[LinearBound, LinearBound]:
        low, up = relax(layer, *inputs, **parameters)
        return up, low

    def shrunk(layer: nn.Module, *inputs: Interval, **parameters: Any) -> tuple[LinearBound, LinearBound]:
        low, up = relax(layer, *inputs, **parameters)
        gap = 0.3 * (up.offset - low.offset).abs().amax() + 0.05
        return LinearBound(low.transpose, low.offset + gap), LinearBound(up.transpose, up.offset - gap)

    hull = observed(case, gradients=False, samples=60, ascents=20)
    for broken in (swapped, shrunk):
        with monkeypatch.context() as patch:
            patch.setattr(rules, "relaxation", broken)
            try:
                bounds = bounds_of(case, relax=True, gradients=False)
            except RobustPluginsError:
                continue  # bounds that are disjoint from interval propagation's are refused
        assert violations(bounds, hull), broken.__name__


def test_a_subclass_with_its_own_forward_has_no_rules() -> None:
    class Half(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / 2

    class Named(nn.Linear):
        pass

    assert rules_for(Half(2, 2)) is None
    assert rules_for(Named(2, 2)) is BUILTIN.entry(nn.Linear)


def _equal(a: Interval, b: Interval) -> bool:
    return torch.equal(a.lower, b.lower) and torch.equal(a.upper, b.upper)


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
@pytest.mark.parametrize("options", [
    {}, {"stride": 2}, {"stride": (2, 1), "padding": (1, 2)}, {"dilation": 2, "padding": 1}, {"padding": "same"},
    {"stride": 3, "padding": 1, "dilation": (1, 2)},
])  # fmt: skip
def test_gradients_by_the_input_of_a_convolution_in_single_precision(channels: int, options: dict[str, Any]) -> None:
    """They hold those of automatic differentiation for every gradient of the interval, and are exact for a point."""
    torch.manual_seed(0)
    model = nn.Conv2d(channels, 6, (4, 3), **options)
    x = torch.rand(2, channels, 9, 10)
    network = trace(model, x)
    values = network.forward(Interval.point(x))
    out = model(x)
    low = torch.randn_like(out)
    up = low + torch.rand_like(out)

    def slopes(grad: Tensor) -> Tensor:
        z = x.clone().requires_grad_()
        return torch.autograd.grad(model(z), z, grad)[0]

    point = network.backward(values, Interval.point(low)).input
    torch.testing.assert_close(point.lower, slopes(low), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(point.upper, slopes(low), rtol=1e-4, atol=1e-5)
    found = network.backward(values, Interval(low, up)).input
    for share in (0.0, 1.0, 0.3, torch.rand_like(out), torch.rand_like(out).round()):
        assert found.contains(slopes(low + share * (up - low)), tolerance=1e-5).all()
    # The ends are attained, each by a gradient of its own: nothing tighter would be sound.
    entry = (0, 0, 4, 4)
    z = x.clone().requires_grad_()
    weights = torch.autograd.functional.jacobian(model, z)[(slice(None),) * 4 + entry]
    for end, choice in ((found.upper, weights > 0), (found.lower, weights < 0)):
        reached = slopes(torch.where(choice, up, low))[entry]
        torch.testing.assert_close(end[entry], reached, rtol=1e-4, atol=1e-5)


def test_lower_bounds_alone_are_those_of_both_on_a_graph_with_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).relu()
            return self.last((self.second(h).tanh() + h + x).relu())

    model, x = Residual().double(), torch.rand(3, 4, dtype=torch.float64)
    network = trace(model, x)
    values = network.forward(Interval(x - 0.3, x + 0.3))
    spec = torch.randn(3, 5, 3, dtype=torch.float64)
    relaxation = Relaxation(network, values)
    both, alone = relaxation.bounds(len(values) - 1, spec), relaxation.lower(len(values) - 1, spec)
    torch.testing.assert_close(alone, both.lower, rtol=0, atol=1e-12)
    points = x + 0.3 * (2 * torch.rand(2000, *x.shape, dtype=x.dtype) - 1).sign()
    with torch.no_grad():
        reached = torch.stack([(spec @ model(p).unsqueeze(2)).squeeze(2) for p in points]).amin(0)
    assert (reached >= alone - 1e-12).all()
    monkeypatch.setattr(substitution, "parts", lambda a: (a, torch.zeros_like(a)))  # the lower line throughout
    planted = Relaxation(network, values).lower(len(values) - 1, spec)
    assert not (reached >= planted - 1e-12).all()
