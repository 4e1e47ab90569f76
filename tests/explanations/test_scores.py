"""Scores of explanations: what Captum would report of the same points, and never above what is proved."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.explanations import CornerPGD
from robust_plugins.explanations.attributions import Attribution
from robust_plugins.explanations.certifiers import IBP
from robust_plugins.intervals import Interval
from robust_plugins.testing.networks import Case, cnn_case, mlp_case

explain = rp.explain
QUICK = CornerPGD(corners=4, betas=(20.0,), steps=3, restarts=0)
MAKERS: dict[str, Callable[[nn.Module], Attribution]] = {
    "saliency": explain.Saliency,
    "gradient": lambda model: explain.Saliency(model, abs=False),
    "input x gradient": explain.InputXGradient,
    "integrated": lambda model: explain.IntegratedGradients(model, n_steps=3),
    "smooth": lambda model: explain.SmoothGrad(model, nt_samples=2, stdevs=0.1),
}
CASES: dict[str, Callable[[], Case]] = {
    "ReLU": lambda: mlp_case(normalised=False),
    "tanh": lambda: mlp_case(activation=nn.Tanh, normalised=False),
    "convolutions": cnn_case,
}


@dataclass(frozen=True, kw_only=True)
class TooTight(IBP):
    """The planted fault: bounds without the outermost parts."""

    def gradient_bounds(self, *args: Any, **kwargs: Any) -> Interval:
        found = super().gradient_bounds(*args, **kwargs)
        return Interval(found.lower + 0.02 * found.width, found.upper - 0.02 * found.width)


def norms(t: Tensor) -> Tensor:
    return t.double().flatten(1).norm(dim=1)


@pytest.mark.parametrize("name", MAKERS)
def test_the_value_found_is_captums_at_that_point(name: str) -> None:
    metrics = pytest.importorskip("captum.metrics", reason="captum is not installed")
    case = CASES["ReLU"]()
    explanation = MAKERS[name](case.model)
    score = explain.sensitivity_max(explanation, case.x, 0.05, 1, target=case.y, attack=QUICK, seed=0)

    def attribute(z: Any, target: Tensor) -> Any:  # Captum gives a tuple first, and wants one back
        return (attribute(z[0], target),) if isinstance(z, tuple) else explanation.attribute(z, target)

    theirs = metrics.sensitivity_max(
        attribute, case.x, perturb_func=lambda _: score.x_adv, n_perturb_samples=1, target=case.y
    )
    assert score.bracket.empirical is not None
    torch.testing.assert_close(torch.maximum(theirs, score.sampled), score.bracket.empirical, rtol=1e-4, atol=1e-6)
    assert (score.missed > 0).any()
    sampled = metrics.sensitivity_max(attribute, case.x, perturb_radius=0.05, n_perturb_samples=50, target=case.y)
    assert (sampled <= score.bracket.certified).all()


@pytest.mark.parametrize(
    ("name", "radius", "makers"),
    [("ReLU", 0.05, MAKERS), ("ReLU", 1e-4, ["saliency"]), ("tanh", 0.05, ["gradient"]), ("tanh", 1e-4, ["gradient"]),
     ("convolutions", 0.05, ["saliency"])],
)  # fmt: skip
def test_no_point_is_beyond_what_is_proved(name: str, radius: float, makers: Iterable[str]) -> None:
    case = CASES[name]()
    ball = rp.Linf(eps=radius, clip=(0.0, 1.0))
    points = torch.cat([
        ball.sample(case.x, 12, torch.Generator().manual_seed(0), draw=draw) for draw in ("uniform", "corner")
    ])  # fmt: skip
    for maker in makers:
        explanation = MAKERS[maker](case.model)
        own = explanation.attribute(case.x, case.y)
        moved = torch.stack([norms(explanation.attribute(z, case.y) - own) for z in points]).amax(0)
        common: dict[str, Any] = {"target": case.y, "clip": ball.clip, "attack": QUICK, "seed": 0}
        for score, length in (
            (explain.sensitivity_max(explanation, case.x, radius, 3, **common), norms(own)),
            (explain.max_sensitivity(explanation.attribute, case.x, radius, 3, **common), norms(case.x)),
        ):
            found, proved = score.bracket
            assert found is not None
            assert proved is not None
            assert proved.isfinite().all()
            assert (score.sampled <= found).all()
            assert (found <= proved).all()
            assert (moved / length <= proved.double()).all()
            assert ball.contains(score.x_adv, case.x, tolerance=0).all()


def test_bounds_that_are_too_tight_are_found_out() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():  # two gates for each feature, one open and one closed: corners reach the ends of all bounds
        model[0].weight.copy_(torch.cat((torch.eye(3), 2 * torch.eye(3))))
        model[0].bias.copy_(torch.tensor([-0.45] * 3 + [-1.1] * 3))
        model[2].weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 1.0, -0.5, 1.0], [0.3, 1.0, -1.0, 0.7, 1.0, -0.6]]))
    x, y = torch.full((2, 3), 0.5, dtype=torch.float64), torch.tensor([0, 1])
    for score, right in (
        (explain.sensitivity_max, True), (explain.max_sensitivity, True), (explain.max_sensitivity, False),
    ):  # fmt: skip
        certifier = IBP() if right else TooTight()
        found, proved = score(
            explain.Saliency(model, abs=False), x, 0.1, 3, target=y, certifier=certifier,
            attack=CornerPGD(corners=40, betas=(), restarts=0), seed=0,
        ).bracket  # fmt: skip
        assert found is not None
        if right:
            torch.testing.assert_close(found, proved, rtol=1e-9, atol=0)
        else:
            assert (found > proved).all()


def test_wider_balls_and_what_is_zero() -> None:
    case = CASES["ReLU"]()
    saliency = explain.Saliency(case.model)
    proved = [
        explain.sensitivity_max(saliency, case.x, radius, 1, target=0, attack=QUICK, seed=0).bracket.certified
        for radius in (0.0, 0.01, 0.1)
    ]
    assert (proved[0] < 1e-4).all()
    assert (proved[1] < proved[2]).all()
    dead = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    nn.init.constant_(dead[0].bias, -9.0)
    x = torch.rand(2, 4)
    for score in (explain.sensitivity_max, explain.max_sensitivity):
        found = score(explain.Saliency(dead), x, 0.1, 2, target=0, attack=QUICK, seed=0)
        assert found.bracket.empirical.tolist() == found.bracket.certified.tolist() == [0.0, 0.0]
        assert found.missed.tolist() == [0.0, 0.0]
    opened = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():  # closed at 0 and open elsewhere: the explanation at 0 is 0, and Captum then divides by 1
        opened[0].weight.fill_(1.0)
        opened[0].bias.fill_(-0.1)
        opened[2].weight.fill_(3.0)
    found = explain.sensitivity_max(explain.Saliency(opened), torch.zeros(1, 4), 0.1, 2, target=0, attack=QUICK, seed=0)
    assert found.bracket.empirical.item() == pytest.approx(6.0)
    assert found.bracket.certified.item() == pytest.approx(6.0, rel=1e-4)
    found = explain.max_sensitivity(explain.Saliency(opened), torch.zeros(1, 4), 0.1, 2, target=0, attack=QUICK, seed=0)
    assert found.bracket.empirical.item() == found.bracket.certified.item() == torch.inf


def test_reproducible_and_in_words() -> None:
    case = CASES["ReLU"]()
    first = explain.sensitivity_max(explain.Saliency(case.model), case.x, target=case.y, attack=QUICK)
    again = explain.sensitivity_max(explain.Saliency(case.model), case.x, target=case.y, attack=QUICK, seed=first.seed)
    assert torch.equal(first.sampled, again.sampled)
    assert torch.equal(first.x_adv, again.x_adv)
    assert str(first) == str(again)
    assert "proved" in str(first)
    assert "rounding" in first.soundness
    empty = explain.sensitivity_max(explain.Saliency(case.model), case.x[:0], target=case.y[:0], attack=QUICK, seed=0)
    assert empty.sampled.shape == empty.missed.shape == (0,)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"explanation_func": lambda z: z}, "explanation_func"),
        ({"n_perturb_samples": 0}, "n_perturb_samples"),
        ({"perturb_radius": -1.0}, "eps"),
        ({"target": 17}, "y"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, Any], named: str) -> None:
    case = CASES["ReLU"]()
    arguments: dict[str, Any] = {"explanation_func": explain.Saliency(case.model), "inputs": case.x, "target": case.y}
    with pytest.raises(rp.ArgumentError) as error:
        explain.sensitivity_max(**(arguments | wrong))
    assert error.value.argument == named
