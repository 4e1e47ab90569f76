"""Boxes of few inputs, halved: answers against grids, bounds against samples, and faults that are planted."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.decisions.verifier import Halfspaces, input_splitting
from robust_plugins.decisions.verifier.boxes import Bounds, Boxes
from robust_plugins.decisions.verifier.chains import Chain, chain
from robust_plugins.decisions.verifier.clock import Clock
from robust_plugins.decisions.verifier.input_splitting import split_inputs
from robust_plugins.decisions.verifier.properties import Unsafe
from robust_plugins.decisions.verifier.search import Found
from robust_plugins.decisions.verifier.slopes import Lines, optimised
from robust_plugins.intervals import trace

SIDE = torch.linspace(-0.5, 0.5, 81, dtype=torch.float64)
GRID = torch.cartesian_prod(SIDE, SIDE)
FUNCTIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.LeakyReLU]


@pytest.fixture(autouse=True)
def close_bounds_from_the_first_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small questions would never come to them."""
    monkeypatch.setattr(input_splitting, "FIRST", 0)


def network(seed: int, widths: tuple[int, ...] = (2, 10, 10, 3), function: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), function()]
        nn.init.normal_(layers[-2].weight, std=1.5 * a**-0.5)  # type: ignore[arg-type]
    return nn.Sequential(*layers[:-1]).double().eval().requires_grad_(False)


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


def chained(model: nn.Module, lower: Tensor, upper: Tensor) -> Chain:
    found = chain(trace(model, lower), lower, upper)
    assert found is not None
    return found


def answered(model: nn.Module, unsafe: list[Halfspaces], seconds: float = 20, inputs: int = 2) -> Found:
    end = torch.full((1, inputs), 0.5, dtype=torch.float64)
    asked = Unsafe(unsafe, 3)

    def confirm(x: Tensor) -> bool:
        assert bool((x.abs() <= 0.5).all())
        return bool((asked.excess(asked.values(model(x))) <= 0).any())

    return split_inputs(chained(model, -end, end), asked, confirm, Clock(seconds, cpu=True))


def agree_with_a_grid(function: type[nn.Module], seeds: range) -> None:
    for seed in seeds:
        model = network(seed, function=function)
        for unsafe in questions(model, -0.01):
            assert answered(model, unsafe).answer == "sat"
        for unsafe in questions(model, 0.05):  # further than a grid of this width misses
            assert answered(model, unsafe).answer == "unsat"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_answers_agree_with_a_grid(function: type[nn.Module]) -> None:
    agree_with_a_grid(function, range(4 if function is nn.ReLU else 1))


@pytest.mark.parametrize("after", [20, 2**15])
def test_answers_agree_where_close_bounds_come_later(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_splitting, "FIRST", after)
    agree_with_a_grid(nn.ReLU, range(2))


def whole(bounds: Bounds, lower: Tensor, upper: Tensor) -> Boxes:
    wide = torch.full((len(lower), bounds.neurons), torch.inf, dtype=torch.float64)
    number = torch.arange(len(lower))
    return Boxes(number, lower, upper, torch.zeros_like(number), -wide, wide, wide[:, :0])


@pytest.mark.parametrize("closely", [False, True])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("width", [1e-4, 0.1, 1.0])
def test_bounds_hold_for_what_is_sampled(function: type[nn.Module], width: float, closely: bool) -> None:
    """Of all neurons, and the lines under the rows; of children inside what their parents had."""
    for seed in range(2):
        model = network(seed, function=function)
        end = torch.full((1, 2), 2.0, dtype=torch.float64)
        bounds = Bounds(chained(model, -end, end), 3)
        generator = torch.Generator().manual_seed(seed)
        lower = torch.rand((5, 2), generator=generator, dtype=torch.float64) - 0.5
        upper = lower + width
        found = bounds.bounded(whole(bounds, lower, upper))
        if closely:
            before, found = found.boxes, bounds.closer(found)
            assert bool((before.low <= found.boxes.low).all() & (found.boxes.up <= before.up).all())
        boxes = found.boxes
        rows = torch.eye(3, dtype=torch.float64).expand(5, -1, -1)
        a, b = bounds.rows(found, rows, torch.zeros((5, 3), dtype=torch.float64))
        inner = bounds.bounded(replace(boxes, upper=lower + width / 2)).boxes
        assert bool((boxes.low <= inner.low).all() & (inner.up <= boxes.up).all())
        assert float(found.size.max()) < 1e5
        shares = torch.rand((200, 5, 2), generator=generator, dtype=torch.float64)
        shares[:100] = shares[:100].round()
        x = lower + (upper - lower) * shares
        h, seen = x, []
        for layer in bounds.layers:
            z = h @ layer.weight.t() + layer.bias
            seen.append(z)
            h = z if layer.function is None else layer.function.f(z)
        neurons = torch.cat(seen[:-1], 2)
        assert bool((neurons >= boxes.low - 1e-12).all() & (neurons <= boxes.up + 1e-12).all())
        lines = torch.einsum("bri,nbi->nbr", a, x) + b
        assert bool((lines <= seen[-1].repeat(1, 1, 2) + 1e-12).all())
        assert float((seen[-1].repeat(1, 1, 2) - lines).min()) < 1.5 * width * float(seen[-1].abs().max())


def test_a_box_without_width_has_the_value_itself() -> None:
    for function in FUNCTIONS:
        model = network(0, function=function)
        end = torch.ones((1, 2), dtype=torch.float64)
        bounds = Bounds(chained(model, -end, end), 3)
        x = torch.rand((4, 2), dtype=torch.float64)
        found = bounds.bounded(whole(bounds, x, x))
        rows = torch.eye(3, dtype=torch.float64).expand(4, -1, -1)
        a, b = bounds.rows(found, rows, torch.zeros((4, 3), dtype=torch.float64))
        assert torch.allclose((torch.einsum("bri,bi->br", a, x) + b)[:, 3:], model(x), atol=1e-9)


def sampled(lower: Tensor, upper: Tensor, seed: int) -> Tensor:
    """Points of boxes, corners among them: (points, boxes, inputs)."""
    shares = torch.rand((200, *lower.shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    shares[:100] = shares[:100].round()
    return lower + (upper - lower) * shares


@pytest.mark.parametrize("width", [1e-4, 0.1, 1.0])
def test_optimised_lines_lie_below_the_largest_row(width: float) -> None:
    """On sampled points and where gradient descent takes them; more steps are not worse, and gain somewhere."""
    gained = 0.0
    for seed in range(3):
        model = network(seed)
        end = torch.full((1, 2), 2.0, dtype=torch.float64)
        bounds = Bounds(chained(model, -end, end), 3)
        lower = torch.rand((6, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
        upper = lower + width
        found = bounds.closer(bounds.bounded(whole(bounds, lower, upper)))
        # Of random rows, so low that no line is positive and all of them are moved.
        rows = torch.randn((6, 2, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        offsets = torch.full((6, 2), -50.0, dtype=torch.float64)
        few, more = (optimised(bounds, found, rows, offsets, torch.ones(6, 2).double(), steps) for steps in (0, 20))
        assert bool((more.value >= few.value).all())
        gained = max(gained, float((more.value - few.value).max()) / width)

        def above(x: Tensor, rows: Tensor = rows, offsets: Tensor = offsets, lines: Lines = more) -> Tensor:
            z = model(x.flatten(0, 1)).view(*x.shape[:2], 3)  # noqa: B023 (called in this turn)
            largest = (torch.einsum("bro,nbo->nbr", rows, z) + offsets).amax(2)
            return largest - (x * lines.a).sum(2) - lines.b

        x = sampled(lower, upper, seed)
        for _ in range(10):
            x = x.requires_grad_()
            (slope,) = torch.autograd.grad(above(x).sum(), x)
            x = torch.maximum(torch.minimum(x.detach() - 0.1 * width * slope.sign(), upper), lower)
        for points in (x, sampled(lower, upper, seed)):
            assert float(above(points).min()) >= 0
            assert bool(((points * more.a).sum(2) + more.b >= more.value - 1e-12).all())
    assert gained > 1e-2


def test_optimised_lines_are_exact_where_nothing_is_open() -> None:
    """Of a linear network, and of one row, the line is the row itself."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3).double()).requires_grad_(False)
    lower = torch.zeros((1, 2), dtype=torch.float64)
    model = nn.Sequential(*model, nn.ReLU(), nn.Linear(3, 3).double()).requires_grad_(False)
    model[1].bias.fill_(10)  # all ReLUs are positive
    bounds = Bounds(chained(model, lower, lower + 1), 3)
    found = bounds.bounded(whole(bounds, lower, lower + 1))
    row = torch.tensor([[[1.0, -2.0, 0.5]]], dtype=torch.float64)
    lines = optimised(bounds, found, row, torch.zeros(1, 1).double(), torch.ones(1, 1).double(), 3)
    x = torch.rand((50, 2), dtype=torch.float64)
    assert torch.allclose(x @ lines.a[0] + lines.b, model(x) @ row[0, 0], atol=1e-10)


@pytest.mark.parametrize("fault", ["cut", "slope", "halves", "below", "optimised"])
def test_planted_faults_are_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes cut too far, a part dropped, lines that are too high or of the other sign: a `sat` is then missed."""
    search = input_splitting._Search
    if fault == "cut":
        plain = input_splitting._cut
        monkeypatch.setattr(input_splitting, "_cut", lambda boxes, a, b, spared: plain(boxes, a, b + 0.3, spared))
    elif fault == "slope":
        rows = Bounds.rows
        monkeypatch.setattr(Bounds, "rows", lambda *given: (rows(*given)[0], rows(*given)[1] + 0.3))
    elif fault == "below":
        below = Bounds._below
        monkeypatch.setattr(Bounds, "_below", lambda *given: (below(*given)[0], below(*given)[1] + 0.3))
    elif fault == "optimised":
        monkeypatch.setattr(input_splitting, "optimised", lambda *given: (found := optimised(*given))._replace(
            value=found.value + 0.3, b=found.b + 0.3
        ))  # fmt: skip
    else:
        both = search._halves
        monkeypatch.setattr(search, "_halves", lambda *given: (found := both(*given)).take(slice(len(found) // 2)))
    # Witnesses are looked for in the boxes that are left alone.
    with pytest.raises(AssertionError):
        agree_with_a_grid(nn.ReLU, range(8))


def test_chains() -> None:
    """Constants and shapes belong to chains, two linear layers too; branches and convolutions do not."""
    one, x = nn.Linear(2, 2), torch.rand(1, 2)
    layers = nn.Sequential(nn.Flatten(), nn.Sequential(one, one), nn.ReLU(), nn.Tanh(), one, nn.Sigmoid()).eval()
    found = chain(trace(layers, x), x - 1, x + torch.tensor([1.0, -1.0]))  # the second input is fixed
    assert found is not None
    assert len(found.lower) == 1
    h = torch.tensor([[0.3]], dtype=torch.float64)
    for layer in found.layers:
        h = h @ layer.weight.t() + layer.bias
        h = h if layer.function is None else layer.function.f(h)
    x = found.input_at(torch.tensor([0.3], dtype=torch.float64)).float().unsqueeze(0)
    assert torch.allclose(h, layers(x).double(), atol=1e-6)
    image = torch.rand(1, 1, 2, 2)
    convolution = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten()).eval()
    assert chain(trace(convolution, image), image - 1, image + 1) is None
    assert chain(trace(nn.Sequential(nn.Linear(2, 2)).eval(), image), image - 1, image + 1) is None  # of each row
    assert chain(trace(layers, x), x - 1, x + 1, 1) is None  # two inputs vary


def test_the_time_is_kept_and_what_was_proved_is_told() -> None:
    model = network(0, (12, 40, 40, 3))
    top = model(torch.rand(500, 12, dtype=torch.float64) - 0.5).amax(0)[:1]
    unsafe = [Halfspaces(-torch.eye(3, dtype=torch.float64)[:1], 4 * top)]
    found, longer = (answered(model, unsafe, seconds, 12) for seconds in (0.1, 0.6))
    assert found.answer == "timeout"
    assert -torch.inf < float(found.bounds) <= float(longer.bounds) <= 3 * float(top)


@pytest.mark.parametrize("function", [nn.ReLU, nn.Tanh, None])
def test_margins_below_rounding_are_unknown_at_once(function: type[nn.Module] | None) -> None:
    """What separates the set from the least sum of two functions, at a corner of the box, decides."""
    first, last = nn.Linear(2, 2).double(), nn.Linear(2, 3).double()
    first.weight.data, first.bias.data = torch.eye(2).double(), torch.ones(2).double()
    last.weight.data, last.bias.data = torch.ones(3, 2).double(), torch.zeros(3).double()
    model = nn.Sequential(first, *([function()] if function else []), last).requires_grad_(False)
    row, other = torch.eye(3, dtype=torch.float64)[:2].split(1)
    least = model(torch.full((1, 2), -0.5, dtype=torch.float64))[0, :1]
    for margin, answer in ((1e-15, "unknown"), (1e-9, "unsat"), (-1e-9, "sat")):
        one, far = Halfspaces(row, margin - least), Halfspaces(other, 1 - least)
        both = Halfspaces(torch.cat([row, other]), torch.cat([margin - least, -least - 1]))
        for unsafe in ([one], [one, far], [both], [far, both]):
            found = answered(model, unsafe, seconds=5)
            assert found.answer == answer, (margin, unsafe)
            assert found.domains < 200


def test_sides_too_narrow_to_be_halved_end_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the shorter way out: no box that holds the corner is excluded, however small."""
    monkeypatch.setattr(input_splitting._Search, "_in_doubt", lambda self, x, asked, excess: excess < 0)
    model = nn.Linear(1, 3).double().requires_grad_(False)
    model.weight.fill_(1)
    model.bias.fill_(1)
    row = Halfspaces(torch.eye(3, dtype=torch.float64)[:1], torch.tensor([1e-15 - 0.5], dtype=torch.float64))
    assert answered(model, [row], inputs=1).answer == "unknown"


def test_certifier_decides_smooth_networks_and_few_inputs() -> None:
    for function in (nn.Tanh, nn.ReLU):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 20), function(), nn.Linear(20, 20), function(), nn.Linear(20, 3)).eval()
        with torch.no_grad():
            model[0].weight.mul_(4)
        x = torch.rand(6, 2)
        y, ball = model(x).argmax(1), rp.Linf(eps=0.15, clip=None)
        found = rp.certifier("interval:branch-and-bound", timeout=10)(model, x, y, ball)
        assert set(found.verdicts) == {rp.Verdict.CERTIFIED, rp.Verdict.FALSIFIED}
        points = ball.sample(x, 4000, torch.Generator().manual_seed(0))
        kept = (model(points.flatten(0, 1)).argmax(1).view(4000, -1) == y).all(0)
        assert bool((kept | ~found.certified).all())
