"""Boxes of few inputs, halved: answers against grids, bounds against samples, and faults that are planted."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from robust_plugins.decisions.verifier import Halfspaces, input_splitting
from robust_plugins.decisions.verifier.input_splitting import _Boxes, _Search, affine_layers, split_inputs

SIDE = torch.linspace(-0.5, 0.5, 81, dtype=torch.float64)
GRID = torch.cartesian_prod(SIDE, SIDE)


def network(seed: int, widths: tuple[int, ...] = (2, 10, 10, 3)) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
        nn.init.normal_(layers[-2].weight, std=1.5 * a**-0.5)  # type: ignore[arg-type]
    return nn.Sequential(*layers[:-1]).double().requires_grad_(False)


def questions(model: nn.Module, share: float) -> list[list[Halfspaces]]:
    """A row, a union of rows and a conjunction, which `share` of the range separates from what a grid reaches."""
    z = model(GRID)
    slack = share * (z.amax(0) - z.amin(0))
    eye = torch.eye(3, dtype=torch.float64)
    top = [Halfspaces(-eye[i : i + 1], (z.amax(0) + slack)[i : i + 1]) for i in range(3)]
    # On z0 + z1 from above and z1 - z0 from below: where the least of the larger one is.
    rows = torch.tensor([[1.0, 1, 0], [-1, 1, 0]], dtype=torch.float64)
    values = z @ rows.t()
    offset = -values.amax(1).min() + share * values.std()
    return [top[:1], top, [Halfspaces(rows, offset.expand(2))]]


def reached(model: nn.Module, x: Tensor, unsafe: list[Halfspaces]) -> bool:
    z = model(x.unsqueeze(0))
    return any(bool((z @ w.t() + o <= 1e-12).all()) for w, o in unsafe)


def answered(model: nn.Module, unsafe: list[Halfspaces]) -> tuple[str, Tensor | None]:
    layers = affine_layers(model, 2)
    assert layers is not None
    end = torch.full((2,), 0.5, dtype=torch.float64)
    return split_inputs(layers, -end, end, unsafe, timeout=20)


def test_answers_agree_with_a_grid() -> None:
    for seed in range(8):
        model = network(seed)
        for unsafe in questions(model, -0.01):
            answer, x = answered(model, unsafe)
            assert answer == "sat"
            assert x is not None
            assert reached(model, x, unsafe)
            assert bool((x.abs() <= 0.5).all())
        for unsafe in questions(model, 0.05):  # further than a grid of this width misses
            assert answered(model, unsafe)[0] == "unsat"


@pytest.mark.parametrize("width", [1e-4, 0.1, 1.0])
def test_bounds_hold_for_what_is_sampled(width: float) -> None:
    """Of all neurons, and the lines under the rows; of children inside what their parents had."""
    for seed in range(4):
        model = network(seed)
        layers = affine_layers(model, 2)
        assert layers is not None
        search = _Search(layers, [Halfspaces(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))])
        generator = torch.Generator().manual_seed(seed)
        lower = torch.rand((5, 2), generator=generator, dtype=torch.float64) - 0.5
        upper = lower + width
        wide = torch.full((5, 20), torch.inf, dtype=torch.float64)
        boxes, _, size = search._neurons(_Boxes(lower, upper, torch.zeros(5, dtype=torch.long), -wide, wide))
        a, b = search._rows(boxes)
        inner, _, _ = search._neurons(
            _Boxes(lower, lower + width / 2, torch.zeros(5, dtype=torch.long), boxes.low, boxes.up)
        )
        assert bool((boxes.low <= inner.low).all() & (inner.up <= boxes.up).all())
        assert float(size.max()) < 1e4
        shares = torch.rand((200, 5, 2), generator=generator, dtype=torch.float64)
        shares[:100] = shares[:100].round()
        x = lower + (upper - lower) * shares
        h, seen = x, []
        for weight, bias in layers:
            z = h @ weight.t() + bias
            seen.append(z)
            h = z.relu()
        neurons = torch.cat(seen[:-1], 2)
        assert bool((neurons >= boxes.low - 1e-12).all() & (neurons <= boxes.up + 1e-12).all())
        lines = torch.einsum("bri,nbi->nbr", a, x) + b
        assert bool((lines <= seen[-1].repeat(1, 1, 2) + 1e-12).all())


@pytest.mark.parametrize("fault", ["cut", "slope", "halves"])
def test_planted_faults_are_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes cut too far, a child dropped, lines that are too high: a `sat` is then missed."""
    if fault == "cut":
        plain = input_splitting._cut
        monkeypatch.setattr(input_splitting, "_cut", lambda boxes, a, b: plain(boxes, a, b + 0.3))
    elif fault == "slope":
        rows = _Search._rows
        monkeypatch.setattr(
            _Search, "_rows", lambda search, boxes: (rows(search, boxes)[0], rows(search, boxes)[1] + 0.3)
        )
    else:
        halves = input_splitting._halves
        monkeypatch.setattr(
            input_splitting, "_halves", lambda *given: (both := halves(*given)).take(slice(len(both) // 2))
        )
    with pytest.raises(AssertionError):
        test_answers_agree_with_a_grid()


def test_only_chains_of_linear_layers_and_relus_are_taken() -> None:
    linear = nn.Linear(2, 2)
    assert affine_layers(nn.Sequential(linear, nn.Sigmoid(), linear), 2) is None
    assert affine_layers(nn.Sequential(linear, nn.ReLU()), 2) is None
    assert affine_layers(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), linear), 2) is None
    assert affine_layers(nn.Sequential(linear, nn.Flatten(), nn.Linear(4, 1)), 4) is None  # on each row of 2 x 2
    joined = affine_layers(nn.Sequential(nn.Flatten(), nn.Sequential(linear, linear), nn.ReLU(), linear), 2)
    assert joined is not None
    assert len(joined) == 2
    x = torch.rand(3, 2)
    assert torch.allclose(x.double() @ joined[0][0].t() + joined[0][1], linear(linear(x)).double(), atol=1e-6)


def test_the_time_is_kept() -> None:
    model = network(0, (12, 40, 40, 3))
    layers = affine_layers(model, 12)
    assert layers is not None
    top = model(torch.rand(500, 12, dtype=torch.float64) * 4 - 2).amax(0)[:1]
    unsafe = [Halfspaces(-torch.eye(3, dtype=torch.float64)[:1], 3 * top)]
    end = torch.full((12,), 2.0, dtype=torch.float64)
    assert split_inputs(layers, -end, end, unsafe, timeout=0.3).answer == "timeout"
