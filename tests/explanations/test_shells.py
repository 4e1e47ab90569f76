"""The parts of a proved Lipschitz constant: a Euclidean core of a ball, bounds over it, and the quotients of shells."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.token_networks import TokenNetwork
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.explanations.certifiers import CROWN, IBP, Relaxed
from robust_plugins.explanations.shells import Core, quotients
from robust_plugins.testing.networks import Case, cnn_case, mlp_case


def _tokens() -> Case:
    model, g = TokenNetwork(["softmax", "layer norm"], seed=2), torch.Generator().manual_seed(2)
    x = torch.rand((2, *model.features), generator=g, dtype=torch.float64)
    return Case(model, x, torch.tensor([1, 0]), rp.Linf(eps=0.1, clip=(0.0, 1.0)))


CASES: dict[str, Callable[[], Case]] = {
    "ReLU": lambda: mlp_case(normalised=False),
    "tanh": lambda: mlp_case(activation=nn.Tanh, normalised=False),
    "convolutions": cnn_case,
    "tokens": _tokens,
}


def _points(ball: Core, x: Tensor, g: torch.Generator) -> list[Tensor]:
    """Points of the set: of the sphere, moved to the middle of the box, and towards its corners."""
    sphere = rp.L2(eps=ball.eps, clip=None).sample(x, 6, g, draw="corner")
    corners = rp.Linf(eps=ball.reach, clip=ball.clip).sample(x, 6, g, draw="corner")
    return [ball.project(z, x) for z in (*sphere, *corners)]


@pytest.mark.parametrize(
    ("name", "radius"),
    [("ReLU", 1e-4), ("ReLU", 0.1), ("tanh", 1e-4), ("tanh", 0.1), ("convolutions", 0.1), ("tokens", 0.1)],
)
def test_gradients_of_the_core_lie_within_its_bounds_which_grow_with_it(name: str, radius: float) -> None:
    case = CASES[name]()
    core = Core(eps=radius, clip=(0.0, 1.0), reach=0.6 * radius)
    wider = Core(eps=4 * radius, clip=(0.0, 1.0), reach=0.6 * radius)
    whole = rp.Linf(eps=0.6 * radius, clip=(0.0, 1.0))
    points = _points(core, case.x, torch.Generator().manual_seed(0))
    for z in points:
        assert rp.L2(eps=radius, clip=(0.0, 1.0)).contains(z, case.x, tolerance=1e-6).all()
        assert whole.contains(z, case.x, tolerance=0).all()
    for certifier in (IBP(), CROWN(), Relaxed(), Relaxed(effort=1)):
        for of in ("logit", "loss") if certifier != Relaxed(effort=1) else ("logit",):
            explained = rp.Explained.at(case.model, case.x, case.y, of)  # type: ignore[arg-type]
            with torch.no_grad():
                found = certifier.bounds(case.model, case.x, case.y, core, of=of)  # type: ignore[arg-type]
                more = certifier.bounds(case.model, case.x, case.y, wider, of=of)  # type: ignore[arg-type]
            for z in points:
                assert found.contains(explained.gradient(case.model, z), tolerance=1e-6).all()
            assert found.width.sum() <= more.width.sum() * (1 + 1e-6)


def test_gradients_of_one_layer_are_as_far_as_the_euclidean_ball_reaches() -> None:
    model = nn.Sequential(nn.Linear(16, 1, bias=False), nn.ReLU(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    x, y = torch.full((1, 16), 0.5, dtype=torch.float64), torch.tensor([0])
    # The kink is 8 / sqrt(16) = 2 away in Euclidean distance, and .5 in the largest coordinate.
    for eps, steady in ((1.99, True), (2.01, False)):
        bounds = CROWN().bounds(model, x, y, Core(eps=eps, clip=None, reach=1.0), of="logit")
        assert bool((bounds.width < 1e-9).all()) is steady
    assert (CROWN().bounds(model, x, y, rp.Linf(eps=0.51, clip=None), of="logit").width > 0.1).all()


def test_quotients_are_the_largest_ones_that_the_shells_allow() -> None:
    g = torch.Generator().manual_seed(0)
    for jumping in (False, True):
        ends = torch.rand((1, 5), generator=g, dtype=torch.float64).cumsum(1)
        inner = torch.cat((ends.new_zeros((1, 1)), ends[:, :-1]), 1)
        far, steep = (torch.rand((1, 5), generator=g, dtype=torch.float64).cumsum(1) for _ in range(2))
        if jumping:
            steep[:, 2:] = torch.inf
        found = quotients(torch.stack((inner, ends, far, steep)))[0]
        r = torch.linspace(0, float(ends[0, -1]), 20001, dtype=torch.float64)[1:]
        shell = (r.unsqueeze(1) > ends[0]).sum(1).clamp(max=4)
        allowed = far[0, shell]  # the change that is allowed at each distance, grown step by step
        grown, step = torch.zeros_like(r), float(r[1] - r[0])
        change = 0.0
        for i in range(len(r)):
            change = min(float(allowed[i]), change + float(steep[0, shell[i]]) * step)
            grown[i] = change
        for k in range(5):
            largest = float((grown / r)[shell == k].max())
            assert found[k] == pytest.approx(largest, rel=1e-2)
            assert found[k] >= largest * (1 - 2e-3)
    nothing = quotients(torch.tensor([[[0.0, 1.0]], [[1.0, 2.0]], [[0.0, 3.0]], [[torch.inf, torch.inf]]]))
    assert nothing.tolist() == [[0.0, 3.0]]
    assert quotients(torch.tensor([[[0.0]], [[1.0]], [[3.0]], [[torch.inf]]])).item() == torch.inf
