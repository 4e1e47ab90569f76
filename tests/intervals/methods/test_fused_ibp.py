"""Interval propagation in one step: the bounds and gradients of the engine's layer by layer."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from robust_plugins.intervals import Interval, trace
from robust_plugins.intervals.methods import fused_ibp
from robust_plugins.intervals.methods.fused_ibp import propagate


def dense(seed: int, widths: list[int], activations: list[bool], bias: bool) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after, relu in zip([6, *widths], widths, activations, strict=False):
        layers += [nn.Linear(before, after, bias=bias), *([nn.ReLU()] if relu else []), nn.Dropout()]
    return nn.Sequential(*layers).double().eval()


def images(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 4, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), nn.ReLU(),
        nn.Conv2d(4, 6, 2, groups=2, dilation=2), nn.Flatten(), nn.ReLU(), nn.Linear(24, 5), nn.Unflatten(1, (5, 1)),
        nn.Linear(1, 3), nn.ReLU(),
    )  # fmt: skip


def box(x: Tensor, eps: float = 0.2) -> Interval:
    return Interval((x - eps).clamp(0, 1), (x + eps).clamp(0, 1))


def compare(model: nn.Module, x: Tensor, *, tolerance: float = 1e-12, until: int | None = None) -> None:
    """Bounds, and gradients by all weights and the input, of a random function of both ends."""
    x = x.detach().requires_grad_()
    network = trace(model, x)
    last = len(network.nodes) - 1 if until is None else until
    found, expected = propagate(network, box(x), until=last), network.forward(box(x), until=last)[-1]
    assert found is not None
    scale = max(1.0, float(expected.magnitude.detach().max()))
    for a, b in ((found.lower, expected.lower), (found.upper, expected.upper)):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)
    ways = torch.randn_like(found.lower), torch.randn_like(found.upper)
    leaves = [x, *(p for name, p in model.named_parameters() if any(p is t.lower for values in
              network.parameters[: last + 1] for t in values.values() if t is not None))]  # fmt: skip

    def slopes(z: Interval) -> tuple[Tensor, ...]:
        return torch.autograd.grad((z.lower * ways[0] + z.upper * ways[1]).sum(), leaves)

    for a, b in zip(slopes(found), slopes(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=100 * tolerance * scale)


@given(
    seed=st.integers(0, 10**6),
    widths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    activations=st.lists(st.booleans(), min_size=4, max_size=4),
    bias=st.booleans(),
    batch=st.integers(1, 4),
)
def test_dense_chains(seed: int, widths: list[int], activations: list[bool], bias: bool, batch: int) -> None:
    model = dense(seed, widths, activations, bias)
    compare(model, torch.rand(batch, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions(channels: int, dtype: torch.dtype, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    model, x = images(channels).to(dtype), torch.rand(3, channels, 8, 5, dtype=dtype).to(memory_format=layout)
    for until in (1, 2, 3, 5, 9):
        compare(model, x, tolerance=1e-5 if dtype is torch.float32 else 1e-12, until=until)


def _sampled_points_are_inside() -> bool:
    torch.manual_seed(0)
    model, x = images(2).double(), torch.rand(4, 2, 8, 5, dtype=torch.float64)
    network, region = trace(model, x), box(x)
    found = propagate(network, region, until=len(network.nodes) - 1)
    points = region.lower + torch.rand(300, *x.shape, dtype=x.dtype).round() * region.width
    with torch.no_grad():
        return all(bool(found.contains(model(p), tolerance=1e-9).all()) for p in points)


def test_points_of_the_box_are_inside_and_a_planted_error_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _sampled_points_are_inside()
    honest = fused_ibp._relu

    def narrow(center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, c, r = honest(center, radius)
        return low, c, 0.3 * r

    monkeypatch.setattr(fused_ibp, "_relu", narrow)
    assert not _sampled_points_are_inside()


def test_gradients_of_gradients() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 3)
    model = nn.Sequential(first, nn.ReLU(), first, nn.ReLU(), second, nn.ReLU()).double()  # one layer twice
    x = torch.rand(2, 4, dtype=torch.float64)

    def ends(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        network = trace(model, x)
        found = propagate(network, box(x), until=len(network.nodes) - 1)
        return found.lower.square(), found.upper.square()

    inputs = (x.requires_grad_(), *model.parameters())
    assert torch.autograd.gradcheck(ends, inputs)
    assert torch.autograd.gradgradcheck(ends, inputs)


def test_frozen_weights_and_no_gradients_at_all() -> None:
    torch.manual_seed(0)
    model, x = images(1), torch.rand(2, 1, 8, 5)
    network = trace(model, x)
    expected = propagate(network, box(x), until=9)
    model[0].requires_grad_(False)
    expected.lower.sum().backward()
    assert model[0].weight.grad is None
    assert model[5].weight.grad is not None
    with torch.no_grad():
        assert torch.equal(propagate(network, box(x), until=9).lower, expected.lower)
    with torch.inference_mode():
        propagate(network, box(x), until=9)


def test_weights_changed_before_the_way_back_are_noticed() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), torch.rand(2, 3)
    found = propagate(trace(model, x), box(x), until=3)
    with torch.no_grad():
        model[2].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.lower.sum().backward()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x).relu()


@pytest.mark.parametrize(
    "model",
    [
        Residual(),
        nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)),
        nn.Sequential(nn.ReLU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 3, padding="same"), nn.Flatten()),
        nn.Sequential(nn.Flatten()),
    ],
)  # fmt: skip
def test_what_is_no_chain_is_left_to_the_engine(model: nn.Module) -> None:
    x = torch.rand(2, 4)
    network = trace(model, x)
    assert propagate(network, box(x), until=len(network.nodes) - 1) is None


def test_intervals_of_weights_are_left_to_the_engine() -> None:
    model, x = nn.Sequential(nn.Linear(4, 2)), torch.rand(2, 4)
    weight = model[0].weight.detach()
    network = trace(model, x, weights={"0.weight": Interval(weight - 0.1, weight + 0.1)})
    assert propagate(network, box(x), until=1) is None
    point = trace(copy.deepcopy(model), x)
    assert propagate(point, Interval.point(x), until=1) is None
