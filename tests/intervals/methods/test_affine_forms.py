"""Affine forms hold what the network computes, over boxes and over l2 and l1 balls, and keep what a box forgets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.drawn_graphs import Drawn
from support.interval_checker import Case, make_case, observed, violations
from support.interval_examples import EXAMPLES, Constants
from support.length import length
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import Interval, crown, rounding, trace
from robust_plugins.intervals.methods import affine_forms as module
from robust_plugins.intervals.methods.affine_forms import affine_forms


def forms_of(case: Case) -> dict[str, Interval]:
    """The bounds on the output from the box's own form."""
    radius = case.x.radius.flatten(1)
    generators = torch.diag_embed(radius).view(len(radius), -1, *case.x.shape[1:])
    with torch.no_grad():
        network = trace(case.model, case.x.lower, weights=case.weights)
        values, forms = affine_forms(network, case.x.center, generators, box=case.x)
        return {"output": values[-1]} | ({"form": forms[-1].interval()} if forms else {})


def seen(case: Case, **how: int) -> dict[str, Interval]:
    hull = observed(case, gradients=False, **how)
    return {"output": hull["output"], "form": hull["output"]}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("index", range(len(EXAMPLES)))
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_every_layer(index: int, gamma: float) -> None:
    _, layer, shape = EXAMPLES[index]
    model = layer if isinstance(layer, Constants) else nn.Sequential(layer)
    case = make_case(model, shape, eps=0.7, gamma=gamma, seed=index)
    assert violations(forms_of(case), seen(case, samples=24, ascents=8)) == []


@settings(max_examples=20)
@given(
    image=st.booleans(),
    choices=st.lists(st.integers(0, 599), min_size=1, max_size=5),
    eps=st.sampled_from([0.01, 0.2, 1.0]),
    gamma=st.sampled_from([0.0, 0.02, 0.3]),
    seed=st.integers(0, 10**6),
)
def test_random_networks(image: bool, choices: list[int], eps: float, gamma: float, seed: int) -> None:
    model = Drawn(image, choices)
    model(torch.zeros(1, *model.shape))
    case = make_case(model, model.shape, eps=eps, gamma=gamma, seed=seed)
    assert violations(forms_of(case), seen(case, samples=12, ascents=8)) == []


@pytest.mark.slow
@settings(max_examples=length(50, 150))
@given(
    image=st.booleans(),
    choices=st.lists(st.integers(0, 599), min_size=2, max_size=7),
    eps=st.floats(1e-4, 2.0),
    gamma=st.sampled_from([0.0, 0.005, 0.05, 0.5]),
    seed=st.integers(0, 10**6),
)
def test_more_networks(image: bool, choices: list[int], eps: float, gamma: float, seed: int) -> None:
    model = Drawn(image, choices)
    model(torch.zeros(1, *model.shape))
    case = make_case(model, model.shape, eps=eps, gamma=gamma, seed=seed, batch=8)
    assert violations(forms_of(case), seen(case, samples=60, ascents=10)) == []


@pytest.mark.parametrize("ball", [rp.L2(eps=0.6, clip=None), rp.L1(eps=0.9, clip=None)])
def test_smaller_balls_than_boxes(ball: rp.L2 | rp.L1) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    generators = (ball.largest * torch.eye(5, dtype=torch.float64)).unsqueeze(0)
    norm = "l2" if isinstance(ball, rp.L2) else "l1"
    with torch.no_grad():
        network = trace(model, x)
        values, forms = affine_forms(network, x, generators, norm=norm, box=ball.box(x))
        boxed = affine_forms(network, x, generators, box=ball.box(x))[0]
        # The first layer is exact: the dual norm of its rows.
        dual = (ball.largest * model[0].weight).norm(dim=1, p=2 if norm == "l2" else torch.inf)
        assert torch.allclose(forms[1].radius, dual.expand(4, -1), rtol=1e-12)
        for draw in ("uniform", "corner"):
            for z in ball.sample(x, 300, torch.Generator().manual_seed(0), draw=draw):
                assert bool(values[-1].contains(model(z), tolerance=1e-12).all())
    assert bool((values[-1].width < boxed[-1].width).all())


def test_what_the_box_forgets_is_kept() -> None:
    """x - x is 0 for a form; a network of one linear layer after another is exact, as for linear relaxation."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    box = Interval(x - 0.3, x + 0.3)
    with torch.no_grad():
        network = trace(model, x)
        values, _ = affine_forms(network, x, 0.3 * torch.eye(4, dtype=torch.float64).unsqueeze(0), box=box)
        exact = crown(network, box)[-1]
        assert torch.allclose(values[-1].lower, exact.lower, atol=1e-12)
        assert bool((values[-1].width < network.forward(box)[-1].width).all())


@pytest.mark.parametrize("fault", ["no remainder", "half the strip", "deviations dropped"])
def test_planted_faults_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    case = make_case(model, (3,), eps=0.5, gamma=0.2 if fault == "deviations dropped" else 0.0, seed=3)
    hull = seen(case, samples=60, ascents=30)
    assert violations(forms_of(case), hull) == []
    if fault == "deviations dropped":
        monkeypatch.setattr(module, "deviation", lambda p: Interval.point(torch.zeros_like(p.lower)))
    elif fault == "half the strip":
        strip = module.strip

        def narrow(activation: object, z: Interval) -> tuple[Tensor, Tensor, Tensor]:
            slope, low, up = strip(activation, z)
            return slope, low + (up - low) / 4, up - (up - low) / 4

        monkeypatch.setattr(module, "strip", narrow)
    else:
        through = module._through_activation

        def bare(activation: object, z: Interval, before: module.Form) -> module.Form:
            form = through(activation, z, before)
            return module.Form(form.center, form.generators, 0 * form.remainder, form.norm)

        monkeypatch.setattr(module, "_through_activation", bare)
    assert "form" in violations(forms_of(case), hull)


def test_outward_rounding_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    x = torch.zeros(1, 2)
    with rounding.outward(), pytest.raises(ArgumentError, match="affine forms"):
        affine_forms(trace(model, x), x, torch.eye(2).unsqueeze(0))
