"""The conformance checks of the interval rules of a layer: each takes the layer and the shape of one of its inputs.

@pytest.mark.parametrize("check", interval_rule_checks)
def test_my_layer(check):
    check(MyLayer(), (6,))
"""

from __future__ import annotations

import math
from copy import deepcopy
from itertools import pairwise

import torch
from torch import nn

from robust_plugins.balls import Linf
from robust_plugins.decisions.registered import certifier
from robust_plugins.errors import UnsupportedModelError
from robust_plugins.explanations import Explained, explanation_certifier
from robust_plugins.intervals import Interval
from robust_plugins.intervals.rules.registry import rules_for
from robust_plugins.testing.explanations import adversarial_gradients
from robust_plugins.testing.networks import Case
from robust_plugins.testing.soundness import RELATIVE_TOLERANCE, adversarial_points, assert_inside

RADII = (1e-4, 0.02, 0.2, 1.0)
CLASSES = 3


def has_rules(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """The layer's type has a forward rule in force, and the layer computes what it was registered for."""
    rules = rules_for(layer)
    assert rules is not None, f"no rules describe {type(layer).__name__}; is its plugin registered?"
    assert rules.forward is not None, f"{type(layer).__name__} has no forward rule"


def bounds_contain_the_ball(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Values at samples, corners and gradient-ascent points lie inside the bounds, at radii from 1e-4 to 1."""
    case = _case(layer, shape)
    spec = torch.eye(CLASSES).to(case.x).expand(len(case.x), -1, -1)
    for name in ("interval:ibp", "interval:crown"):
        for eps in RADII:
            ball = Linf(eps=eps, clip=None)
            bounds = certifier(name).bounds(case.model, case.x, ball).detach()
            for how, values in adversarial_points(case.model, case.x, ball, spec, samples=60, steps=15):
                assert_inside(bounds, values, f"{name}, {how}, eps {eps:g}")


def point_is_exact(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """The ball of radius 0 gives the values themselves."""
    case = _case(layer, shape)
    bounds = certifier("interval:ibp").bounds(case.model, case.x, Linf(eps=0.0, clip=None)).detach()
    values = case.model(case.x).detach()
    assert_inside(bounds, values, "eps = 0")
    scale = max(1.0, values.abs().max().item())
    assert bounds.width.max() <= 1e-9 * scale, "eps = 0 gives bounds that are not a point"


def wider_balls_give_wider_bounds(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """A larger radius never gives a narrower interval."""
    case = _case(layer, shape)
    found: list[Interval] = [
        certifier("interval:ibp").bounds(case.model, case.x, Linf(eps=eps, clip=None)).detach() for eps in RADII
    ]
    for small, large in pairwise(found):
        slack = 1e-9 * (1 + large.lower.abs() + large.upper.abs())
        assert (large.lower <= small.lower + slack).all(), "a wider set has narrower bounds"
        assert (large.upper >= small.upper - slack).all(), "a wider set has narrower bounds"


def gradients_contain_the_ball(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """With a backward rule, input gradients at points of the ball lie inside its bounds."""
    rules = rules_for(layer)
    if rules is None or rules.backward is None:
        return
    case = _case(layer, shape)
    explained = Explained("logit", case.y, nn.functional.one_hot(case.y, CLASSES).to(case.x))
    for eps in RADII[:3]:
        ball = Linf(eps=eps, clip=None)
        try:
            bounds = explanation_certifier("interval:ibp").bounds(case.model, case.x, case.y, ball, of="logit").detach()
        except UnsupportedModelError as error:
            raise AssertionError(f"its gradient has no bounds although it has a backward rule: {error}") from error
        flat = Interval(bounds.lower.flatten(1), bounds.upper.flatten(1))
        tolerance = 100 * RELATIVE_TOLERANCE[case.x.dtype]  # a second derivative of rounding
        for how, values in adversarial_gradients(case.model, case.x, ball, explained):
            assert_inside(flat, values.flatten(2), f"gradients, {how}, eps {eps:g}", tolerance=tolerance)


def _case(layer: nn.Module, shape: tuple[int, ...]) -> Case:
    """The layer behind a scaling of each entry and before a linear layer, in float64, at inputs around zero."""
    size = math.prod(shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = deepcopy(layer).double().eval()
        first = nn.Linear(size, size).double()
        with torch.no_grad():  # each entry by itself: a layer that mixes them first hides bounds that are too tight
            first.weight.copy_(torch.diag(0.5 + torch.rand(size)))
        x = torch.randn(5, size, dtype=torch.float64)
        with torch.no_grad():
            out = body(first(x).view(5, *shape)).flatten(1).shape[1]
        model = nn.Sequential(
            first, nn.Unflatten(1, shape), body, nn.Flatten(), nn.Linear(out, CLASSES).double()
        ).eval()
        return Case(model, x, torch.arange(5) % CLASSES, Linf(eps=0.1, clip=None))


interval_rule_checks = [
    has_rules,
    bounds_contain_the_ball,
    point_is_exact,
    wider_balls_give_wider_bounds,
    gradients_contain_the_ball,
]
"""For `pytest.mark.parametrize("check", interval_rule_checks)`; each check takes the layer and an input's shape."""
