"""Bounds of the verifier hold at every point and in exact arithmetic; faults that are planted in it are seen."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
import torch
from support.image_networks import image_network
from torch import Tensor, nn

from robust_plugins.decisions.verifier import Engine, Halfspaces, verify_property
from robust_plugins.decisions.verifier.clock import Clock
from robust_plugins.decisions.verifier.domains import Domains, DualAscent
from robust_plugins.decisions.verifier.refinement import GrowingTrees
from robust_plugins.decisions.verifier.root import Duals, Root
from robust_plugins.decisions.verifier.trees import Trees
from robust_plugins.decisions.verifier.verify import prepared
from robust_plugins.intervals import Interval

EVER = Clock(1e6)


def perceptron(seed: int, *, inputs: int = 3, width: int = 8, bias: float = 0.3) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, width),
        nn.ReLU(), nn.Linear(width, 2),
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        nn.init.uniform_(parameter, *((-bias, bias) if "bias" in name else (-1.0, 1.0)))
    return model.eval()


def unfolded(model: nn.Module, low: Tensor, up: Tensor, trees: Trees | None = None) -> Root:
    engine, box = Engine(), Interval(low.double(), up.double())
    with torch.no_grad():
        form = prepared(model, low).relu
        root = Root(form, [box], engine.ascent, engine.memory, clock=EVER)
        return root if trees is None else Root(form, root.values, engine.ascent, engine.memory, clock=EVER, trees=trees)


def violation(root: Root, points: Tensor) -> float:
    """The furthest that any node's value, at points of the box, lies outside its interval."""
    worst = 0.0
    for value, bounds in zip(root.network.forward(Interval.point(points.double())), root.values, strict=True):
        outside = torch.maximum(bounds.lower - value.lower, value.lower - bounds.upper)
        worst = max(worst, float(outside.max()))
    return worst


def drawn(low: Tensor, up: Tensor, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    t = torch.rand((count, *low.shape[1:]), generator=generator, dtype=torch.float64)
    t[::2] = t[::2].round()  # corners
    return low.double() + (up.double() - low.double()) * t


MODELS = {
    "perceptron": lambda: (perceptron(0), torch.rand(1, 3)),
    "residual": lambda: image_network("residual", torch.float32),
}


@pytest.mark.parametrize("radius", [1e-4, 0.05])
@pytest.mark.parametrize("kind", MODELS)
def test_intervals_of_all_layers_hold(kind, radius) -> None:
    model, x = MODELS[kind]()
    x = x[:1].detach()
    for trees in (None, Trees(leaves=4)):
        root = unfolded(model, x - radius, x + radius, trees)
        assert violation(root, drawn(x - radius, x + radius, 200)) <= 1e-12


def test_any_duals_bound_the_output() -> None:
    """Slopes and multipliers, drawn at random and improved, give bounds of all points with the signs assumed."""
    model, low, up = perceptron(1), -torch.ones(1, 3), torch.ones(1, 3)
    root = unfolded(model, low, up)
    spec = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    rows, const, off = root.specified(spec, torch.zeros(1, dtype=torch.float64))
    points = drawn(low, up, 4000)
    values = (model.double()(points) @ spec.t())[:, 0].detach()
    z, free = inputs_of_units(root, points), root.compact.free.flatten().nonzero().flatten()
    generator = torch.Generator().manual_seed(0)
    tried = 0
    for i in range(60):
        signs = torch.zeros((len(z), 1))
        chosen = free[torch.randperm(len(free), generator=generator)[:2]]
        signs[chosen, 0] = torch.randint(0, 2, (2,), generator=generator) * 2.0 - 1
        inside = (signs * z >= 0).all(0).nonzero().flatten()
        if not len(inside):
            continue
        tried += 1
        slopes = torch.rand(signs.shape, generator=generator)
        slopes = torch.where(signs == 0, slopes, signs.clamp(min=0))
        domain = Domains(signs, slopes, signs.abs() * torch.rand(1, generator=generator), torch.ones(1, 1))
        if i % 2:
            ascent = DualAscent(steps=40)
            _, domain = ascent.improve(root.fast, rows.float(), const.float() - 100, domain)  # never closed
        duals = Duals(domain.slopes.double(), domain.multipliers.double(), signs.double())
        assert float(root.evaluate(rows, const, duals) - off) <= float(values[inside].min())
    assert tried > 20


def test_signs_are_those_of_the_half() -> None:
    """`relu(-x) - relu(x)` is -x: on the half of [-1, 1] where x >= 0 it is at least -1, on the other at least 0."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    values = torch.tensor([[1.0], [-1.0]]), torch.zeros(2), torch.tensor([[-1.0, 1.0], [0.0, 0.0]]), torch.zeros(2)
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.data.copy_(value)
    root = unfolded(model, -torch.ones(1, 1), torch.ones(1, 1))
    rows, const, off = root.specified(torch.tensor([[1.0, 0.0]]).double(), torch.zeros(1).double())
    best = {}
    for sign, slope, multiplier in product((1.0, -1.0), (0.0, 1.0), (0.0, 1.0)):
        signs = torch.tensor([[sign], [0.0]], dtype=torch.float64)
        slopes = torch.tensor([[max(sign, 0.0)], [slope]], dtype=torch.float64)
        duals = Duals(slopes, multiplier * signs.abs(), signs)
        bound = float(root.evaluate(rows, const, duals) - off)
        assert bound <= min(0.0, -sign)
        best[sign] = max(bound, best.get(sign, bound))
    assert best == pytest.approx({1.0: -1.0, -1.0: 0.0}, abs=1e-12)


def inputs_of_units(root: Root, points: Tensor) -> Tensor:
    compact, box = root.compact, root.known[0]
    state = torch.zeros((compact.size, len(points)), dtype=torch.float64)
    state[: compact.inputs] = ((points - box.center) / box.radius).flatten(1).t()
    z = torch.zeros((len(compact.offset), len(points)), dtype=torch.float64)
    for block in compact.blocks:
        at = slice(block.first - compact.inputs, block.last - compact.inputs)
        z[at] = block.matrix.to_dense() @ state[block.start : block.start + block.matrix.shape[1]] + compact.offset[at]
        state[block.first : block.last] = z[at].clamp(min=0)
    return z


def test_rounding_is_accounted_for_in_exact_arithmetic() -> None:
    """On a linear network the least output is known exactly: the bound is below it, by rounding errors alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 2)).eval()
    low, up = torch.rand(1, 6) - 1, torch.rand(1, 6)
    root = unfolded(model, low, up)
    spec = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    rows, const, off = root.specified(spec, torch.zeros(1, dtype=torch.float64))
    none = torch.zeros((0, 1), dtype=torch.float64)
    bound = Fraction(float(root.evaluate(rows, const, Duals(none, none, none)) - off))

    def exact(x: list[Fraction]) -> Fraction:
        for layer in model:
            weight, bias = layer.weight.tolist(), layer.bias.tolist()
            x = [
                sum((Fraction(w) * v for w, v in zip(row, x, strict=True)), Fraction(b))
                for row, b in zip(weight, bias, strict=True)
            ]
        return x[0] - x[1]

    ends = list(zip(low[0].tolist(), up[0].tolist(), strict=True))
    least = min(exact([Fraction(v) for v in corner]) for corner in product(*ends))
    assert bound <= least
    assert least - bound < Fraction(1, 10**11)


def contradictions() -> int:
    """How many answers are wrong, of properties that a grid just reaches, where the search alone must find that out."""
    count = 0
    axis = torch.linspace(-1, 1, 51)
    grid = torch.tensor(list(product(axis.tolist(), axis.tolist())))
    plan = GrowingTrees(most=4, search=1e-9)
    engine = Engine(attack=lambda *_: None, refinement=plan, few=0)
    for seed in (0, 1, 3):
        model = perceptron(seed, inputs=2, width=5)
        with torch.no_grad():
            least = (model(grid) @ torch.tensor([1.0, -1.0])).min()
        reached = Halfspaces(torch.tensor([[1.0, -1.0]]), -least.unsqueeze(0) - 1e-3)
        answer = verify_property(model, -torch.ones(2), torch.ones(2), [reached], engine=engine, timeout=20).answer
        count += answer == "unsat"
    return count


def _without_second_half(split):
    def half(self, units, at):
        found = split(self, units, at)
        return Domains.cat(found.select(torch.arange(len(at))), found.select(torch.arange(len(at))))

    return half


def _with_wrong_sign(evaluate):
    def turned(self, rows, const, duals):
        return evaluate(self, rows, const, Duals(duals.slopes, duals.multipliers, -duals.signs))

    return turned


def _cut_short(grow):
    def some(self, compact, rows, const, clock):
        leaves, about = grow(self, compact, rows, const, clock)
        kept = torch.stack([(about == i).nonzero().flatten()[-1] for i in range(len(const))])
        return leaves.select(kept), about[kept]

    return some


FAULTS = {
    "a child is dropped": (Domains, "split", _without_second_half),
    "signs are turned in the proof": (Root, "evaluate", _with_wrong_sign),
    "a refined bound is that of one leaf": (Trees, "grow", _cut_short),
}


def test_no_contradiction() -> None:
    assert contradictions() == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault, monkeypatch) -> None:
    """The tests above fail for each of them."""
    owner, name, spoilt = FAULTS[fault]
    monkeypatch.setattr(owner, name, spoilt(getattr(owner, name)))
    if owner is Domains:
        assert contradictions() > 0
    elif owner is Root:
        with pytest.raises(AssertionError):
            test_signs_are_those_of_the_half()
    else:
        model, low, up = perceptron(0), -torch.ones(1, 3), torch.ones(1, 3)
        assert violation(unfolded(model, low, up, Trees(leaves=16)), drawn(low, up, 2000)) > 1e-6
