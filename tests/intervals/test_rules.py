"""Every rule: sound, exact on points, wider for wider sets; and each of them broken on purpose is caught."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from interval_checker import MUTATIONS, Case, bounds_of, make_case, observed, truth, violations
from interval_examples import EXAMPLES
from torch import nn

from robust_plugins.errors import RobustPluginsError
from robust_plugins.intervals import Interval
from robust_plugins.intervals.layers import Input
from robust_plugins.intervals.rules import LinearBound, rules_for, supported

# torch itself warns of this padding, once per process.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")

NAMES = [f"{kind.__name__}-{index}" for index, (kind, _, _) in enumerate(EXAMPLES)]
examples = pytest.mark.parametrize(("kind", "layer", "shape"), EXAMPLES, ids=NAMES)


def _case(layer: nn.Module, shape: tuple[int, ...], seed: int = 0, *, eps: float = 1.0) -> Case:
    # Whole modules are traced into; a wrapper keeps the layer a layer.
    return make_case(nn.Sequential(copy.deepcopy(layer)), shape, eps=eps, gamma=0.5, seed=seed)


def test_every_type_with_rules_has_an_example() -> None:
    assert set(supported()) == {kind for kind, _, _ in EXAMPLES} | {Input}


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
def test_broken_rules_are_caught(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case, hull = _searched(index)
    rules, sound = supported()[EXAMPLES[index][0]], bounds_of(case)
    monkeypatch.setattr("robust_plugins.intervals.tracing._check", lambda *_: None)
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
def test_broken_relaxations_are_caught(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, layer, shape = EXAMPLES[index]
    rules, case = supported()[kind], _case(layer, shape, eps=2.0)
    relax = rules.relaxation
    if relax is None:
        pytest.skip("relaxed by its constant interval")

    def swapped(layer: nn.Module, x: Interval) -> tuple[LinearBound, LinearBound]:
        low, up = relax(layer, x)
        return up, low

    def shrunk(layer: nn.Module, x: Interval) -> tuple[LinearBound, LinearBound]:
        low, up = relax(layer, x)
        gap = 0.3 * (up.offset - low.offset).abs().amax() + 0.05
        return LinearBound(low.transpose, low.offset + gap), LinearBound(up.transpose, up.offset - gap)

    hull = observed(case, gradients=False, samples=60, ascents=20)
    for broken in (swapped, shrunk):
        with monkeypatch.context() as patch:
            patch.setattr(rules, "relaxation", broken)
            bounds = bounds_of(case, relax=True, gradients=False)
        assert violations(bounds, hull), broken.__name__


def test_a_subclass_with_its_own_forward_has_no_rules() -> None:
    class Half(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / 2

    class Named(nn.Linear):
        pass

    assert rules_for(Half(2, 2)) is None
    assert rules_for(Named(2, 2)) is supported()[nn.Linear]


def _equal(a: Interval, b: Interval) -> bool:
    return torch.equal(a.lower, b.lower) and torch.equal(a.upper, b.upper)
