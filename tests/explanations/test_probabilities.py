"""Bounds on the probabilities of classes: they hold for any number of classes, and use what both kinds of lines say."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from robust_plugins.explanations.bounds import cross_entropy, parallel_lines
from robust_plugins.explanations.bounds.cross_entropy import probabilities
from robust_plugins.explanations.bounds.parallel_lines import with_parallel_lines
from robust_plugins.intervals import Interval, Relaxation, crown, rounding, trace
from robust_plugins.intervals.rules.elementwise import Activation, Line

ACTIVATIONS = [nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ReLU]


def _model(activation: type[nn.Module], classes: int, dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(classes)
        model = nn.Sequential(nn.Linear(6, 12), activation(), nn.Linear(12, 12), activation(), nn.Linear(12, classes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.to(dtype).eval().requires_grad_(False)


def _relaxation(model: nn.Module, x: Tensor, eps: float) -> Relaxation:
    network = trace(model, x)
    return Relaxation(network, crown(network, Interval(x - eps, x + eps), entries="bent"))


def _bounds(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, outward: bool) -> Interval:
    with torch.no_grad(), rounding.outward(outward):
        return probabilities(_relaxation(model, x, eps), y)


def _excess(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, outward: bool) -> float:
    found = _bounds(model, x, y, eps, outward=outward).map(lambda t: t.double())
    g, precise = torch.Generator().manual_seed(1), model.double()
    most = -torch.inf
    for trial in range(200):
        step = 2 * torch.rand(x.shape, generator=g, dtype=torch.float64) - 1
        z = x.double() + eps * (step.sign() if trial % 2 else step)
        z = z.clamp((x - eps).double(), (x + eps).double())
        p = precise(z).softmax(1)
        most = max(most, float(torch.maximum(found.lower - p, p - found.upper).max()))
    return most


@pytest.mark.parametrize("eps", [1e-6, 1e-3, 0.05, 0.5])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("classes", [2, 5])
def test_hold(activation: type[nn.Module], classes: int, eps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(4) % classes
    model = _model(activation, classes, torch.float64)
    assert _excess(model, x, y, eps, outward=False) <= 1e-12
    monkeypatch.setattr(cross_entropy, "PAIRED", 1)  # the way of many classes
    assert _excess(model, x, y, eps, outward=False) <= 1e-12


@pytest.mark.parametrize("eps", [1e-6, 1e-3, 0.05])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_hold_outward_in_single_precision(activation: type[nn.Module], eps: float) -> None:
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    assert _excess(_model(activation, 3, torch.float32), x, torch.arange(4) % 3, eps, outward=True) <= 0


def test_wider_sets_have_wider_bounds() -> None:
    x, y = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(4)
    model = _model(nn.Tanh, 5, torch.float64)
    widths = [_bounds(model, x, y, eps, outward=False).width for eps in (0.0, 1e-4, 1e-2, 0.1)]
    assert widths[0].max() <= 1e-12
    assert all((wide >= narrow - 1e-12).all() for narrow, wide in pairwise(widths))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
def test_neither_kind_of_lines_alone_is_as_tight(activation: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.rand(16, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.zeros(16).long()
    model = _model(activation, 5, torch.float64)
    for eps in (0.05, 0.1):
        both = _bounds(model, x, y, eps, outward=False)
        with torch.no_grad():
            parallel = with_parallel_lines(_relaxation(model, x, eps))
            assert parallel is not None
            other = probabilities(parallel, y)
        monkeypatch.setattr(cross_entropy, "with_parallel_lines", lambda relaxation: None)
        alone = _bounds(model, x, y, eps, outward=False)
        monkeypatch.undo()
        assert (both.width <= alone.width + 1e-12).all()
        assert (both.width <= other.width + 1e-12).all()
        assert (both.width < 0.999 * alone.width).any()
        assert (both.width < 0.999 * other.width).any()


def test_pairs_are_tighter_than_differences_to_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.rand(16, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.zeros(16).long()
    model = _model(nn.ReLU, 5, torch.float64)
    pairs = _bounds(model, x, y, 0.02, outward=False)
    monkeypatch.setattr(cross_entropy, "PAIRED", 1)
    assert pairs.width.mean() < 0.98 * _bounds(model, x, y, 0.02, outward=False).width.mean()


def test_parallel_lines_that_are_too_steep_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Activation.parallel_lines

    def steep(self: Activation, z: Interval) -> tuple[Line, Line]:
        (a, b), (c, d) = original(self, z)
        rise = 0.5 * (self.slopes(z).upper - a)
        return (a + rise, b - rise * z.lower), (c + rise, d - rise * z.upper)

    monkeypatch.setattr(Activation, "parallel_lines", steep)
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert _excess(_model(nn.Tanh, 5, torch.float64), x, torch.arange(4), 0.1, outward=False) > 1e-6


def test_only_what_turns_has_parallel_lines() -> None:
    x = torch.rand(2, 6, dtype=torch.float64)
    for activation in ACTIVATIONS:
        with torch.no_grad():
            found = with_parallel_lines(_relaxation(_model(activation, 3, torch.float64), x, 0.1))
        assert (found is None) == (activation in (nn.ReLU, nn.Softplus)), activation
    assert parallel_lines._turning(nn.Hardtanh()) is None
