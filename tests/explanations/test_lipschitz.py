"""The local Lipschitz constant of explanations: nothing beyond what is proved, and exact where it is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.token_networks import TokenNetwork
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.explanations import CornerPGD, shells
from robust_plugins.explanations.bounds.curvature import Smooth
from robust_plugins.explanations.bounds.hessian import hessian_norm
from robust_plugins.intervals import Interval, crown, trace
from robust_plugins.testing.networks import Case, cnn_case, mlp_case

explain = rp.explain
QUICK: dict[str, Any] = {
    "attack": CornerPGD(corners=4, betas=(20.0,), steps=3, restarts=0), "nr_samples": 4, "refinements": 4, "seed": 0
}  # fmt: skip


def _tokens(parts: list[str]) -> Case:
    g = torch.Generator().manual_seed(1)
    model = TokenNetwork(parts, seed=1)
    x, y = torch.rand((2, *model.features), generator=g, dtype=torch.float64), torch.tensor([0, 2])
    return Case(model, x, y, rp.Linf(eps=0.1, clip=(0.0, 1.0)))


CASES: dict[str, Callable[[], Case]] = {
    "ReLU": lambda: mlp_case(normalised=False),
    "tanh": lambda: mlp_case(activation=nn.Tanh, normalised=False),
    "convolutions": cnn_case,
    "tokens": lambda: _tokens(["softmax", "layer norm"]),
}


def _check(case: Case, radius: float, *, abs: bool = True) -> None:
    saliency = explain.Saliency(case.model, abs=abs)
    score = explain.local_lipschitz(saliency, case.x, target=case.y, perturb_std=radius / 3, clip=(0.0, 1.0), **QUICK)
    found, proved = score.bracket
    assert found is not None
    assert proved is not None
    assert (score.sampled <= found).all()
    ball = rp.Linf(eps=radius, clip=(0.0, 1.0))
    assert ball.contains(score.x_adv, case.x, tolerance=1e-6).all()
    own, g = saliency.attribute(case.x, case.y), torch.Generator().manual_seed(0)
    for draw in ("uniform", "corner"):
        for points in ball.sample(case.x, 8, g, draw=draw):
            for share in (1.0, 0.3, 0.01):
                z = case.x + share * (points - case.x)
                change = (saliency.attribute(z, case.y) - own).double().flatten(1).norm(dim=1)
                found = torch.maximum(found, (change / (z - case.x).double().flatten(1).norm(dim=1)).to(found))
    noise = 1e-5 * own.flatten(1).norm(dim=1) / (0.01 * radius) if own.dtype is torch.float32 else 1e-9
    assert (found <= proved + noise).all()


@pytest.mark.parametrize(
    ("name", "radius"),
    [("ReLU", 0.06), ("ReLU", 1e-4), ("tanh", 0.06), ("tanh", 1e-4), ("convolutions", 0.06), ("tokens", 0.06)],
)
def test_no_point_is_beyond_what_is_proved(name: str, radius: float) -> None:
    _check(CASES[name](), radius, abs=radius < 0.01)


def _no_curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Smooth, "second", lambda self, z: Interval.point(torch.zeros_like(z.lower)))


def _farther_away(monkeypatch: pytest.MonkeyPatch) -> None:
    original = shells.quotients
    monkeypatch.setattr(shells, "quotients", lambda s: original(torch.stack((20 * s[0], 20 * s[1], *s[2:]))))


def _smaller_core(monkeypatch: pytest.MonkeyPatch) -> None:
    original = shells.Core.support
    monkeypatch.setattr(shells.Core, "support", lambda self, x: original(self.scaled(0.05), x))


@pytest.mark.parametrize(
    ("fault", "name", "radius"),
    [(_no_curvature, "tanh", 0.01), (_farther_away, "ReLU", 0.06), (_smaller_core, "ReLU", 0.06)],
)
def test_planted_faults_are_caught(fault: Any, name: str, radius: float, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        _check(CASES[name](), radius)


def test_the_norm_of_the_hessian_holds_all_of_the_ball_and_is_exact_at_a_point() -> None:
    case = _tokens(["softmax of tokens", "activations"])
    explained = rp.Explained.at(case.model, case.x, case.y, "loss")

    def largest(x: Tensor) -> Tensor:
        found = []
        for i, z in enumerate(x):
            number = lambda t: explained[i : i + 1].number(case.model(t.unsqueeze(0)))[0]  # noqa: B023, E731
            found.append(torch.autograd.functional.hessian(number, z).flatten(2).flatten(0, 1))
        return torch.linalg.matrix_norm(torch.stack(found), ord=2)

    norms = []
    for eps in (0.0, 1e-4, 0.03):
        ball = rp.Linf(eps=eps, clip=None)
        with torch.no_grad():
            network = trace(case.model, case.x)
            norms.append(hessian_norm(
                network, crown(network, ball.box(case.x)), "loss", explained.coefficients, memory=2**14
            ))  # fmt: skip
        for z in ball.sample(case.x, 3, torch.Generator().manual_seed(0), draw="corner") if eps else ():
            assert (largest(z) <= norms[-1]).all()
    torch.testing.assert_close(norms[0], largest(case.x), rtol=1e-9, atol=0)
    assert (norms[0] < norms[1]).all()
    assert (norms[1] < norms[2]).all()


def test_special_cases() -> None:
    x, target = torch.full((1, 3), 0.5, dtype=torch.float64), 0
    linear = nn.Sequential(nn.Linear(3, 2)).double()
    found = explain.local_lipschitz(explain.Saliency(linear), x, target=target, **QUICK)
    assert found.bracket.certified.item() < 1e-9
    tanh = explain.Saliency(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).double())
    assert tuple(explain.local_lipschitz(tanh, x, target=target, radius=0.0, **QUICK).bracket) == (0.0, 0.0)
    assert explain.local_lipschitz(tanh, x[:0], target=target, **QUICK).bracket.certified.shape == (0,)
    relu = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        relu[0].weight.fill_(1.0)
        relu[0].bias.copy_(torch.tensor([-1.5, -1.2]))  # the first unit is at its kink, the second .3 away from it
    found = explain.local_lipschitz(explain.Saliency(relu), x, target=target, **QUICK)
    assert found.bracket.certified.item() == torch.inf
    relu[0].bias.data[0] = -1.8
    found = explain.local_lipschitz(explain.Saliency(relu), x, target=target, radius=0.09, **QUICK)
    assert tuple(found.bracket) == (0.0, 0.0)
    product = _tokens(["product"])  # its Hessian is the same everywhere
    found = explain.local_lipschitz(
        explain.Saliency(product.model, abs=False).attribute, product.x, target=product.y, **(QUICK | {"nr_samples": 1})
    )
    torch.testing.assert_close(found.bracket.empirical, found.bracket.certified, rtol=0.02, atol=0)
    assert (found.missed > 0.1).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"explain_func": explain.InputXGradient(nn.Linear(2, 2))}, "explain_func"),
        ({"nr_samples": 0}, "nr_samples"),
        ({"perturb_std": 0.0}, "perturb_std"),
        ({"refinements": -1}, "refinements"),
        ({"radius": -1.0}, "eps"),
        ({"radius": (0.1, 0.2)}, "radius"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], named: str) -> None:
    case = CASES["ReLU"]()
    arguments: dict[str, Any] = {"explain_func": explain.Saliency(case.model), "inputs": case.x, "target": case.y}
    with pytest.raises(rp.ArgumentError) as error:
        explain.local_lipschitz(**(arguments | wrong))
    assert error.value.argument == named
