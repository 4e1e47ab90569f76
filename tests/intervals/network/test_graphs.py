"""Random graphs from the supported layers: nothing that the network computes lies outside its bounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.drawn_graphs import Drawn
from support.interval_checker import bounds_of, make_case, observed, violations
from support.length import length
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError, UnknownNameError, UnsupportedModelError
from robust_plugins.intervals import Interval, crown, trace


@settings(max_examples=20)
@given(
    image=st.booleans(),
    choices=st.lists(st.integers(0, 599), min_size=1, max_size=5),
    eps=st.sampled_from([0.01, 0.2, 1.0]),
    gamma=st.sampled_from([0.0, 0.02, 0.3]),
    seed=st.integers(0, 10**6),
)
def test_random_networks_stay_in_their_bounds(
    image: bool, choices: list[int], eps: float, gamma: float, seed: int
) -> None:
    model = Drawn(image, choices)
    model(torch.zeros(1, *model.shape))
    case = make_case(model, model.shape, eps=eps, gamma=gamma, seed=seed)
    hull = observed(case, seed=seed, samples=12, ascents=8)
    assert violations(bounds_of(case), hull) == []
    assert violations(bounds_of(case, relax=True), hull) == []


@pytest.mark.slow
@settings(max_examples=length(14, 110))
@given(
    image=st.booleans(),
    choices=st.lists(st.integers(0, 599), min_size=2, max_size=7),
    eps=st.floats(1e-4, 2.0),
    gamma=st.sampled_from([0.0, 0.005, 0.05, 0.5]),
    seed=st.integers(0, 10**6),
)
def test_more_and_deeper_networks(image: bool, choices: list[int], eps: float, gamma: float, seed: int) -> None:
    model = Drawn(image, choices)
    model(torch.zeros(1, *model.shape))
    case = make_case(model, model.shape, eps=eps, gamma=gamma, seed=seed, batch=16)
    hull = observed(case, seed=seed, samples=60, ascents=10)
    assert violations(bounds_of(case), hull) == []
    assert violations(bounds_of(case, relax=True), hull) == []


def test_known_bounds_are_used_and_only_tighten() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    network, box = trace(model, x), Interval(x - 0.1, x + 0.1)
    plain = network.forward(box)
    inner = Interval(plain[1].center - plain[1].radius / 2, plain[1].upper + 1)
    told = network.forward(box, known={1: inner})
    assert torch.equal(told[1].lower, inner.lower)
    assert torch.equal(told[1].upper, plain[1].upper)
    assert bool((told[-1].width <= plain[-1].width + 1e-12).all())
    assert bool((told[-1].width < plain[-1].width).any())


def test_the_graph_is_cached_and_follows_the_model() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    x = torch.zeros(1, 2)
    first = trace(model, x)
    assert trace(model, x).nodes is first.nodes
    with torch.no_grad():
        model[0].weight.fill_(1), model[0].bias.fill_(3)
    assert trace(model, x).forward(Interval.point(x))[-1].lower.tolist() == [[3, 3]]
    model[1] = nn.Tanh()
    assert isinstance(trace(model, x).layers[2], nn.Tanh)


def test_modes_are_restored_and_shared_weights_add_up() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(2, 2)
            self.drop, self.other = nn.Dropout(), self.one

        def forward(self, x: Tensor) -> Tensor:
            return self.other(self.drop(torch.tanh(self.one(x))))

    model = Shared().double().train()
    x = torch.randn(3, 2, dtype=torch.float64)
    network = trace(model, x)
    assert model.training
    assert model.drop.training
    model.eval()
    grad = torch.randn(3, 2, dtype=torch.float64)
    expected = torch.autograd.grad(model(x), list(model.parameters()), grad)
    found = network.backward(network.forward(Interval.point(x)), Interval.point(grad), weights="sum").parameters
    for name, value in zip(("one.weight", "one.bias"), expected, strict=True):
        torch.testing.assert_close(found[name].lower, value)


class _Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class _LogGamma(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.lgamma(x)


class _InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.0
        return y.relu_() + y


class _AcrossTheBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class _Number(nn.Module):
    """Its graph would keep the number that the parameter was when it was traced."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(x, self.slope.item())


class _Constant(nn.Module):
    """Its graph would keep the product that there was when it was traced."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, 2 * dict(self.named_parameters())["weight"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_Constant(), "computes with parameters that it does not take from its attributes"),
        (nn.Sequential(nn.ReLU(), _Number()), r"item in 1 \(_Number\) makes plain numbers of a parameter"),
        (nn.Sequential(nn.Linear(3, 3), _Branch()), r"1 \(_Branch\) cannot be traced: control flow"),
        (
            nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.CrossMapLRN2d(2)),
            r"'1' \(CrossMapLRN2d\) has no interval rule.*register_interval",
        ),
        (nn.Sequential(nn.ReLU(), _LogGamma()), r"lgamma in 1 \(_LogGamma\)"),
        (_InPlace(), "changed by an operation in place and used again"),
        (_AcrossTheBatch(), "does not keep the batch|give it its axes|depends on the other"),
        (nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), "couples the samples"),
    ],
)
def test_what_cannot_be_bounded_is_named(model: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        trace(model.eval(), torch.linspace(-1, 1, 6).view(2, 3))


def test_wrong_weights_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    x = torch.zeros(1, 3)
    with pytest.raises(UnknownNameError, match=r"0\.weigth"):
        trace(model, x, weights={"0.weigth": Interval.point(torch.zeros(2, 3))})
    with pytest.raises(ArgumentError, match="weights"):
        trace(model, x, weights={"0.weight": Interval.point(torch.zeros(3, 2))})


@pytest.mark.parametrize("relax", [False, True])
def test_bounds_on_gradients_can_be_trained(relax: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 3, 3)), nn.Conv2d(1, 2, 2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 3),
        nn.SiLU(), nn.Linear(3, 2),
    ).double()  # fmt: skip
    x, grad = torch.randn(2, 9, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    weight = model[1].weight

    def width() -> Tensor:
        network = trace(model, x)
        box = Interval(x - 0.1, x + 0.1)
        values = crown(network, box) if relax else network.forward(box)
        return network.backward(values, Interval.point(grad)).input.width.sum()

    (slope,) = torch.autograd.grad(width(), weight)
    direction = 1e-6 * torch.randn_like(weight)
    with torch.no_grad():
        weight += direction
        up = width()
        weight -= 2 * direction
        down = width()
    # Where lines touch is found by bisection, and a constant for the derivative.
    torch.testing.assert_close((up - down) / 2, (slope * direction).sum(), rtol=2e-3 if relax else 1e-4, atol=1e-12)


class InPlaceAndAgain(nn.Module):
    """Uses a value after changing it; where all of it is positive, as at the probes, that makes no difference."""

    def __init__(self, *, view: bool) -> None:
        super().__init__()
        self.first, self.last, self.view = nn.Linear(3, 4), nn.Linear(4, 2), view

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h.view(-1, 2, 2).relu_() if self.view else h.relu_()
        return self.last(h)


@pytest.mark.parametrize("view", [False, True])
def test_values_used_again_after_a_change_in_place_are_refused(view: bool) -> None:
    model = InPlaceAndAgain(view=view)
    with torch.no_grad():
        model.first.bias.add_(100)
    with pytest.raises(UnsupportedModelError, match=r"changed by an operation in place and used again"):
        trace(model, torch.rand(2, 3))


def test_changes_in_place_that_nobody_else_sees_are_traced() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    assert torch.allclose(trace(model, x).forward(Interval.point(x))[-1].lower, model(x))


def test_intervals_of_weights_that_only_count_through_others_are_refused() -> None:
    """As with weight norm, where the engine would bound the layer at the weight's center and ignore the interval."""
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    x = torch.rand(2, 3)
    name = "0.parametrizations.weight.original1"
    value = model.get_parameter(name).detach()
    with pytest.raises(UnsupportedModelError, match="cannot be an interval"):
        trace(model, x, weights={name: Interval(value - 0.1, value + 0.1)})
    bias = model[0].bias.detach()
    assert (
        not trace(model, x, weights={"0.bias": Interval(bias - 0.1, bias + 0.1)})
        .forward(Interval.point(x))[-1]
        .is_point
    )
