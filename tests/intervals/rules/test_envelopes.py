"""Lines below and above functions of every shape: on the right side at any width, and the best in the middle."""

from __future__ import annotations

import pytest
import torch
from support.interval_examples import EXAMPLES
from torch import Tensor, nn

from robust_plugins.intervals import Interval, rounding
from robust_plugins.intervals.layers import Pointwise, Power
from robust_plugins.intervals.rules import envelopes
from robust_plugins.intervals.rules.elementwise import Activation, activation_of
from robust_plugins.intervals.rules.functions import FUNCTIONS

LAYERS = [layer.eval() for _, layer, _ in EXAMPLES if activation_of(layer) is not None]
LAYERS += [nn.Hardsigmoid(), *(Pointwise(name) for name in FUNCTIONS)]
LAYERS += [Power(p) for p in (-3.0, -2.0, -1.5, -1.0, 0.0, 0.5, 1.0, 1.5, 5.0)]
NAMES = [f"{layer}{vars(layer).get('name', vars(layer).get('exponent', ''))}" for layer in LAYERS]
layers = pytest.mark.parametrize("layer", LAYERS, ids=NAMES)
NARROW, WIDE = 1e-8, 1e5


def _record(layer: nn.Module) -> Activation:
    found = activation_of(layer)
    assert found is not None
    return found


def _intervals(record: Activation, dtype: torch.dtype, count: int = 300) -> Interval:
    """Intervals of all widths, around everything that happens to the function."""
    g = torch.Generator().manual_seed(0)
    t = torch.rand((3, count), generator=g, dtype=torch.float64)
    width = NARROW * (WIDE / NARROW) ** t[0]
    points = [p for p in (*record.turns, *record.kinks, *record.extrema, record.jump[0]) if abs(p) < 1e3] or [0.0]
    at = torch.tensor(points, dtype=torch.float64)[torch.arange(count) % len(points)]
    center = torch.where(t[1] < 0.5, at, 3 * torch.randn(count, generator=g, dtype=torch.float64))
    z = Interval((center - t[2] * width).to(dtype), (center + (1 - t[2]) * width).to(dtype))
    if record.defined is not None:
        fine = record.defined(z)
        z = Interval(z.lower[fine], z.upper[fine])
    fine = record.f(z.lower).isfinite() & record.f(z.upper).isfinite()
    return Interval(z.lower[fine], z.upper[fine])


def _points(z: Interval, record: Activation) -> Tensor:
    share = torch.cat([torch.linspace(0, 1, 301), torch.logspace(-7, -1, 40), 1 - torch.logspace(-7, -1, 40)])
    inside = z.lower + share.to(z.dtype).unsqueeze(1) * z.width
    near = [torch.minimum(z.lower.clamp(min=p), z.upper)[None] for p in (*record.turns, *record.kinks, *record.extrema)]
    return torch.cat([inside.clamp(z.lower, z.upper), z.lower[None], z.upper[None], *near])


def _excess(layer: nn.Module, z: Interval) -> Tensor:
    """How far the function leaves its lines, evaluated in double precision."""
    record = _record(layer)
    (a, b), (c, d) = ((s.double(), t.double()) for s, t in record.lines(z))
    points = _points(z, record)
    values, points = layer(points).double(), points.double()
    return torch.maximum((a * points + b - values).amax(0), (values - c * points - d).amax(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@layers
def test_lines_are_on_their_sides_and_outward_strictly(layer: nn.Module, dtype: torch.dtype) -> None:
    record = _record(layer)
    z = _intervals(record, dtype)
    size = 1 + z.magnitude.double() + torch.maximum(layer(z.lower).abs(), layer(z.upper).abs()).double()
    assert bool((_excess(layer, z) <= 32 * torch.finfo(dtype).eps * size).all())
    with rounding.outward():
        assert bool((_excess(layer, z) <= 0).all())


def _best(values: Tensor, points: Tensor) -> Tensor:
    """The least value in the middle of a line above the points: the highest chord over it."""
    half = len(points) // 2
    m = points[half]
    left, right = points[: half + 1].unsqueeze(1), points[half:].unsqueeze(0)
    low, high = values[: half + 1].unsqueeze(1), values[half:].unsqueeze(0)
    share = torch.where(right > left, (m - left) / torch.where(right > left, right - left, 1), 0.0)
    return (low + share * (high - low)).amax((0, 1))


@layers
def test_lines_are_the_best_in_the_middle(layer: nn.Module) -> None:
    """No line through the middle can be nearer than the highest chord over it, which the lines reach."""
    record = _record(layer)
    if not record.relaxable or record.jump[1]:
        pytest.skip("bounded by constants, or by lines with the size of a jump between them")
    z = _intervals(record, torch.float64, 40)
    points = torch.linspace(0, 1, 401, dtype=torch.float64).unsqueeze(1) * z.width + z.lower
    values, m = layer(points), points[200]
    (a, b), (c, d) = record.lines(z)
    slack = 2e-3 * (values.amax(0) - values.amin(0)) + 1e-12 * (1 + z.magnitude)
    wide = z.width < 30  # of wider ones the grid sees too little
    if record.flat is not None:
        wide = wide & ~record.flat(z)
    assert bool((c * m + d <= _best(values, points) + slack)[wide].all())
    assert bool((a * m + b >= -_best(-values, points) - slack)[wide].all())


def test_a_line_without_its_intercepts_search_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Tanh()
    z = _intervals(_record(layer), torch.float64)
    monkeypatch.setattr(envelopes._Concave, "rise", lambda of, slope, near, *_: of.f(near) - slope * near)
    assert not bool((_excess(layer, z) <= 1e-6 * (1 + z.magnitude)).all())


@pytest.mark.parametrize("outward", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layer", [nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.SiLU()], ids=str)
def test_parallel_lines_hold(layer: nn.Module, dtype: torch.dtype, outward: bool) -> None:
    record = _record(layer)
    z = _intervals(record, dtype)
    with rounding.outward(outward):
        (a, b), (c, d) = ((s.double(), t.double()) for s, t in record.parallel_lines(z))
    points = _points(z, record)
    values, points = layer(points.double()), points.double()
    excess = torch.maximum((a * points + b - values).amax(0), (values - c * points - d).amax(0))
    room = 0.0 if outward else 64 * torch.finfo(dtype).eps
    assert (excess <= room * (1 + z.magnitude.double())).all()
