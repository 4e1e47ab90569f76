"""Attacks of smallest norm: the closest examples of linear models, whose distance is known, and what all promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.linear_worst import worst_margins
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.testing.networks import mlp_case

pytestmark = pytest.mark.usefixtures("unchecked")

FARTHEST = {rp.Linf: 1.0, rp.L2: 3.0, rp.L1: 9.0}
CASES = [
    ("rp:fmn(steps=40)", rp.Linf),
    ("rp:fmn(steps=40)", rp.L2),
    ("rp:fmn(steps=40)", rp.L1),
    ("rp:ddn(steps=40)", rp.L2),
    ("rp:pdpgd(steps=40)", rp.Linf),
    ("rp:pdpgd(steps=40)", rp.L2),
    ("rp:pdpgd(steps=40)", rp.L1),
    ("rp:cw-l2(searches=4)", rp.L2),
    ("rp:cw-linf(steps=20, rounds=20)", rp.Linf),
    ("rp:minimal(attack='rp:margin-pgd(steps=10, targets=1)')", rp.Linf),
]
CLIP = (0.0, 1.0)


def linear(classes: int, features: int = 20) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(features, classes)).double()


def inputs(samples: int, features: int = 20) -> Tensor:
    """Two of three samples have most values at the ends of the range."""
    x = torch.rand(samples, features, dtype=torch.float64)
    x[::3] = 0.3 + 0.4 * x[::3]
    return torch.where((torch.rand_like(x) < 0.7) & (torch.arange(samples) % 3 > 0).unsqueeze(1), x.round(), x)


def beaten_by(model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, distance: Tensor, slack: float) -> Tensor:
    """Where an input that is closer by more than the part `slack` of the distance is misclassified."""
    weight, bias = (p.detach().numpy() for p in model.parameters())
    radii = (distance / (1 + slack)).numpy()
    return torch.tensor(worst_margins(weight, bias, x.numpy(), y.numpy(), ball.norm, radii, ball.clip)) > 0


def on_linear(name: str, norm: type[rp.Ball], classes: int, clip: tuple[float, float] | None) -> Tensor:
    model, x = linear(classes), inputs(9)
    y, ball = model(x).argmax(1), norm(eps=FARTHEST[norm], clip=clip)
    result = rp.attack(name)(model, x, y, ball, seed=0)
    assert result.success.all()
    assert ball.contains(result.x_adv, x, tolerance=0).all()
    return beaten_by(model, x, y, ball, result.distance, slack=1e-3)


@pytest.mark.parametrize(("classes", "clip"), [(2, CLIP), (8, CLIP), (8, None)])
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_no_example_of_a_linear_model_is_closer(name, norm, classes, clip) -> None:
    assert not on_linear(name, norm, classes, clip).any()


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_what_is_almost_misclassified_is_found(name, norm) -> None:
    """Nearer than any grey level, where the first radius that is tried is the last that matters."""
    model, x = linear(2), inputs(1)
    y = model(x).argmax(1)
    with torch.no_grad():
        lead = float(model(x).amax() - model(x).amin())
        model[1].bias[y] -= lead - 1e-4
    result = rp.attack(name)(model, x, y, norm(eps=FARTHEST[norm], clip=CLIP), seed=0)
    assert result.success.all()
    assert 0 < result.distance < 2e-3


def test_without_the_closest_classes_examples_are_missed() -> None:
    """What the last test would say of a search that follows the second largest logit alone."""
    assert on_linear("rp:fmn(steps=40, targets=0)", rp.L2, 8, CLIP).any()


def test_without_the_final_searches_the_weighted_sum_is_not_exact(monkeypatch) -> None:
    from robust_plugins.decisions.attacks.closest import Closest

    monkeypatch.setattr(Closest, "refined", lambda self: self.x)
    assert on_linear("rp:cw-l2(steps=100, searches=5)", rp.L2, 8, CLIP).any()


SHORT = {
    "rp:fmn(steps=15)": rp.Linf,
    "rp:ddn(steps=15)": rp.L2,
    "rp:pdpgd(steps=30)": rp.L1,
    "rp:cw-l2(steps=50, searches=3, learning_rate=0.2)": rp.L2,
    "rp:cw-linf(steps=20, rounds=20, targets=0)": rp.Linf,
    "rp:minimal(attack='rp:margin-pgd(steps=5)')": rp.Linf,
}


def ball_of(name: str, eps: float | list[float]) -> rp.Ball:
    return SHORT[name](eps=eps, clip=CLIP)


@pytest.mark.parametrize("name", SHORT)
class TestPromises:
    def test_each_sample_has_the_result_that_it_has_alone(self, name) -> None:
        """And none leaves its own ball, or the input that the model misclassifies already."""
        case = mlp_case()
        model, x, y = case.model.double(), case.x.double(), case.y
        ball = ball_of(name, [0.0, 0.02, 0.3, 0.6, 1.5, 1.0])
        result = rp.attack(name)(model, x, y, ball, seed=0)
        assert ball.contains(result.x_adv, x).all()
        assert result.success[-1]
        assert result.distance[-1] == 0
        assert 1 <= int(result.success[:-1].sum()) < 5
        for i in (2, 4):
            alone = rp.attack(name)(model, x[i : i + 1], y[i : i + 1], ball[i : i + 1], seed=0)
            torch.testing.assert_close(alone.distance[0], result.distance[i], rtol=1e-3, atol=1e-6)

    def test_targets_are_reached_and_no_closer_than_any_other_class(self, name) -> None:
        model, x = linear(4), inputs(6)
        y = model(x).argmax(1)
        goal = (y + 1) % 4
        ball = ball_of(name, FARTHEST[SHORT[name]])
        result = rp.attack(name)(model, x, y, ball, target=goal, seed=0)
        assert torch.equal(result.success, model(result.x_adv).argmax(1) == goal)
        assert result.success.all()
        free = rp.attack(name)(model, x, y, ball, seed=0)
        assert (result.distance >= free.distance * (1 - 1e-3)).all()

    def test_large_logits_hide_nothing(self, name) -> None:
        """Cross-entropy is flat there in floating point."""
        case = mlp_case()

        class Larger(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return 1e4 * case.model(x)

        ball = ball_of(name, 2.0)
        plain, large = (rp.attack(name)(m, case.x, case.y, ball, seed=0) for m in (case.model, Larger()))
        assert torch.equal(plain.success, large.success)
        assert (large.distance <= 1.5 * plain.distance).all()

    def test_a_model_of_one_output_is_a_model_of_two_classes(self, name) -> None:
        torch.manual_seed(0)
        one = nn.Linear(5, 1)
        two = nn.Linear(5, 2)
        with torch.no_grad():
            two.weight.copy_(torch.cat((-one.weight, one.weight)) / 2)
            two.bias.copy_(torch.cat((-one.bias, one.bias)) / 2)
        x = torch.rand(4, 5)
        y = two(x).argmax(1)
        results = [rp.attack(name)(m, x, y, ball_of(name, 3.0), seed=0) for m in (one, two)]
        assert results[0].success.any()
        torch.testing.assert_close(results[0].distance, results[1].distance, rtol=1e-3, atol=1e-6)

    def test_a_model_without_gradients_is_refused(self, name) -> None:
        case = mlp_case()

        class Blind(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x.detach())

        with pytest.raises(rp.ArgumentError, match="not differentiable"):
            rp.attack(name)(Blind(case.model), case.x, case.y, ball_of(name, 0.5))


@pytest.mark.parametrize(("name", "ball"), [("rp:ddn", rp.L1), ("rp:cw-l2", rp.Linf), ("rp:cw-linf", rp.L2)])
def test_other_norms_are_refused_and_the_hint_works(name, ball) -> None:
    case = mlp_case()
    with pytest.raises(rp.ArgumentError, match="Use 'rp:fmn' instead"):
        rp.attack(name)(case.model, case.x, case.y, ball(eps=0.5, clip=CLIP))
    assert rp.attack("rp:fmn")(case.model, case.x, case.y, ball(eps=0.5, clip=CLIP)).success.any()


@pytest.mark.parametrize(
    "name",
    ["rp:fmn(steps=0)", "rp:fmn(gamma=1)", "rp:ddn(step_size=0)", "rp:ddn(gamma=0)", "rp:cw-l2(searches=0)",
     "rp:pdpgd(steps=0)", "rp:pdpgd(step_size=0)", "rp:pdpgd(dual_step=-1)", "rp:pdpgd(targets=0.5)",
     "rp:cw-l2(first_c=-1)", "rp:cw-linf(finest=0)", "rp:cw-linf(rounds=0.5)", "rp:cw-l2(targets=-1)"],
)  # fmt: skip
def test_parameters_are_checked(name) -> None:
    with pytest.raises(rp.ArgumentError):
        rp.attack(name)


@pytest.mark.parametrize("norm", FARTHEST)
@pytest.mark.parametrize("clip", [CLIP, None])
def test_the_distance_of_a_linear_boundary(norm, clip) -> None:
    """A ball of that radius allows just the rise that is asked for."""
    from support.linear_worst import largest_rise

    from robust_plugins.decisions.attacks.boundaries import linear_distance

    torch.manual_seed(1)
    x, gradient = inputs(8), torch.randn(8, 20, dtype=torch.float64)
    gradient[:, ::4] = 0
    ball, needed = norm(eps=1.0, clip=clip), torch.linspace(-1, 6, 8).double()
    found = linear_distance(ball, gradient, needed, x)
    assert found[0] == 0
    for i in range(1, 8):
        if found[i].isfinite():
            rise = largest_rise(gradient[i].numpy(), x[i].numpy(), norm.norm, float(found[i]), clip)
            np.testing.assert_allclose(rise, needed[i], rtol=1e-7)
        else:
            assert largest_rise(gradient[i].numpy(), x[i].numpy(), norm.norm, 100.0, clip) < needed[i]


@pytest.mark.parametrize("norm", FARTHEST)
def test_a_curved_boundary_is_reached(norm) -> None:
    """Where each linearisation promises too much, the radius has to grow until an example is found."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 10))
    x = torch.rand(4, 16)
    y = model(x).argmax(1)
    result = rp.attack("rp:fmn")(model, x, y, norm(eps=FARTHEST[norm], clip=CLIP), seed=0)
    assert result.success.all()
