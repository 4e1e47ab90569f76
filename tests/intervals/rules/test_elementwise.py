"""Records of elementwise functions: ranges and slopes exact on every interval, lines on the right side."""

from __future__ import annotations

import pytest
import torch
from support.interval_examples import EXAMPLES
from torch import Tensor, nn

from robust_plugins.intervals import Interval
from robust_plugins.intervals.rules.elementwise import Activation, activation_of

LAYERS = [layer.eval() for _, layer, _ in EXAMPLES if activation_of(layer) is not None]
layers = pytest.mark.parametrize("layer", LAYERS, ids=str)


def _record(layer: nn.Module) -> Activation:
    found = activation_of(layer)
    assert found is not None
    return found


def _intervals(scale: float = 3.0) -> Interval:
    g = torch.Generator().manual_seed(0)
    center = scale * torch.randn(400, generator=g, dtype=torch.float64)
    width = 10 ** (4 * torch.rand(400, generator=g, dtype=torch.float64) - 3)
    return Interval(center - width, center + width)


def _grid(z: Interval, points: int = 4001) -> Tensor:
    t = torch.linspace(0, 1, points, dtype=torch.float64).unsqueeze(1)
    return z.lower + t * z.width


def _slope(layer: nn.Module, z: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    out = layer(z)
    return torch.autograd.grad(out.sum(), z)[0] if out.requires_grad else torch.zeros_like(z)


@layers
def test_ranges_and_slopes_are_exact(layer: nn.Module) -> None:
    record, z = _record(layer), _intervals()
    grid = _grid(z)
    for found, values in ((record.range(z), layer(grid)), (record.slopes(z), _slope(layer, grid))):
        low, up = values.amin(0), values.amax(0)
        assert bool(found.contains(low, tolerance=1e-12).all() and found.contains(up, tolerance=1e-12).all())
        # The grid misses an extreme by at most a step times the steepest slope; jumps may hide between two points.
        near = (found.lower - low).abs() + (found.upper - up).abs() <= 1e-3 * (1e-3 + z.width)
        assert float(near.double().mean()) > 0.98


@layers
def test_lines_lie_on_their_sides_and_are_no_looser_than_constants_in_the_middle(layer: nn.Module) -> None:
    record, z = _record(layer), _intervals()
    if not record.relaxable:
        pytest.skip("bounded by constants")
    (a, b), (c, d) = record.lines(z)
    grid = _grid(z)
    values = layer(grid)
    tolerance = 1e-9 * (1 + values.abs())
    assert bool((a * grid + b <= values + tolerance).all())
    assert bool((c * grid + d >= values - tolerance).all())
    if record.jump[1] > 1e-6:
        return  # a line cannot follow a jump
    box, middle = record.range(z), z.center
    gap = (c * middle + d) - (a * middle + b)
    assert float((gap <= box.width + 1e-9).double().mean()) > 0.97


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.Sigmoid()], ids=lambda layer: type(layer).__name__)
def test_lines_across_a_turn_approach_the_function_as_fast_as_it_straightens(layer: nn.Module) -> None:
    """On an interval of width w around the turn an S-shaped function leaves a line by some w^3, and not by w^2."""
    width = torch.tensor([1e-1, 1e-2, 1e-3, 1e-4], dtype=torch.float64)
    (a, b), (c, d) = _record(layer).lines(Interval(-0.4 * width, 0.6 * width))
    middle = 0.1 * width
    gap = (c * middle + d) - (a * middle + b)
    assert (gap <= width**3).all()


def test_other_layers_have_no_record() -> None:
    assert activation_of(nn.Linear(1, 1)) is None
    assert activation_of(nn.LayerNorm(1)) is None
