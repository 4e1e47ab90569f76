"""Derived explanations: Captum's values, and intervals that hold every explanation of the ball."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.explanations import attributions
from robust_plugins.explanations.attributions import Attribution
from robust_plugins.explanations.quadrature import Method, quadrature
from robust_plugins.testing import assert_inside
from robust_plugins.testing.networks import Case, cnn_case, mlp_case

explain = rp.explain

MAKERS: dict[str, Callable[[nn.Module], Attribution]] = {
    "saliency": explain.Saliency,
    "gradient": lambda model: explain.Saliency(model, abs=False),
    "input x gradient": explain.InputXGradient,
    "integrated": lambda model: explain.IntegratedGradients(model, n_steps=6),
    "integrated, from outside": lambda model: explain.IntegratedGradients(model, baselines=-0.5, n_steps=4),
    "smooth": lambda model: explain.SmoothGrad(model, stdevs=0.2),
}


def relu_case() -> Case:
    return mlp_case(normalised=False)


@pytest.mark.parametrize("make", [relu_case, cnn_case])
def test_values_are_captums(make: Callable[[], Case]) -> None:
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    case = make()
    model, x, y = case.model, case.x, case.y
    close = torch.testing.assert_close
    close(explain.Saliency(model).attribute(x, y), attr.Saliency(model).attribute(x.clone().requires_grad_(), target=y))
    close(
        explain.InputXGradient(model).attribute(x, target=1),
        attr.InputXGradient(model).attribute(x.clone().requires_grad_(), target=1).detach(),
    )
    baselines = (None, 0.3, torch.rand(1, *x.shape[1:]), torch.rand_like(x))
    for method in ("gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"):
        for baseline in baselines:
            ours = explain.IntegratedGradients(model, 0.0 if baseline is None else baseline, 7, method)
            theirs = attr.IntegratedGradients(model)
            close(ours.attribute(x, y), theirs.attribute(x, baseline, y, n_steps=7, method=method), check_dtype=False)
    close(
        explain.IntegratedGradients(model).attribute(x, y),
        attr.IntegratedGradients(model).attribute(x, target=y),
        check_dtype=False,
    )
    smooth = explain.SmoothGrad(model, nt_samples=3)
    plain = attr.Saliency(model)
    each = [plain.attribute((x + n).requires_grad_(), target=y, abs=False) for n in smooth.noise(x)]
    close(smooth.attribute(x, y), torch.stack(each).mean(0))


@pytest.mark.parametrize("certifier", ["interval:ibp", "interval:relaxed"])
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("make", [relu_case, cnn_case])
def test_no_explanation_of_the_ball_leaves_its_interval(make: Callable[[], Case], name: str, certifier: str) -> None:
    case = make()
    explanation = MAKERS[name](case.model)
    for ball in (case.ball, rp.L2(eps=0.1, clip=(0.0, 1.0))):
        bounds = explanation.certify(case.x, case.y, ball=ball, certifier=certifier)
        generator = torch.Generator().manual_seed(0)
        points = torch.cat(
            [case.x.unsqueeze(0), *(ball.sample(case.x, 10, generator, draw=d) for d in ("corner", "uniform"))]
        )
        values = torch.stack([explanation.attribute(z, case.y) for z in points])
        assert_inside(_flat(bounds), values.flatten(2), f"{name}, {certifier}")
        assert bounds.lower.shape == case.x.shape
        assert not bounds.lower.requires_grad


@pytest.mark.parametrize("name", MAKERS)
def test_a_point_has_one_explanation(name: str) -> None:
    case = relu_case()
    explanation = MAKERS[name](case.model)
    bounds = explanation.certify(case.x, case.y, ball=rp.Linf(eps=0.0, clip=(0.0, 1.0)))
    value = explanation.attribute(case.x, case.y)
    torch.testing.assert_close(bounds.lower, value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bounds.upper, value, rtol=1e-4, atol=1e-5)


def test_bounds_are_met() -> None:
    """A network whose one gate the ball opens and closes: each explanation reaches both ends of its interval."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), ([[1.0]], [-0.5], [[2.0], [-1.0]], [0.0, 0.0]), strict=True):
            parameter.copy_(torch.tensor(value))
    x, y, ball = torch.full((2, 1), 0.45).double(), torch.tensor([0, 1]), rp.Linf(eps=0.1, clip=(0.0, 1.0))
    saliency = explain.Saliency(model).certify(x, y, ball=ball)
    assert saliency.lower.flatten().tolist() == pytest.approx([0, 0], abs=1e-12)
    assert saliency.upper.flatten().tolist() == pytest.approx([2, 1], abs=1e-12)
    product = explain.InputXGradient(model).certify(x, y, ball=ball)
    torch.testing.assert_close(product.lower.flatten(), torch.tensor([0.0, -0.55]).double())
    torch.testing.assert_close(product.upper.flatten(), torch.tensor([1.1, 0.0]).double())
    # Of the points at 1/4 and 3/4 of the way none gets beyond 0.75 * 0.55, where the gate is closed.
    integrated = explain.IntegratedGradients(model, n_steps=2, method="riemann_middle").certify(x, y, ball=ball)
    assert integrated.width.max() == 0
    right = explain.IntegratedGradients(model, n_steps=2, method="riemann_right").certify(x, y, ball=ball)
    torch.testing.assert_close(right.upper[0], torch.tensor([0.55]).double())


def test_weights_widen_the_interval() -> None:
    case = relu_case()
    for make in MAKERS.values():
        plain = make(case.model).certify(case.x, case.y, ball=case.ball, certifier="interval:ibp")
        moved = make(case.model).certify(case.x, case.y, ball=case.ball, certifier="interval:ibp", radius=0.02)
        assert (moved.lower <= plain.lower).all()
        assert (moved.width > plain.width + 1e-4).any()


@pytest.mark.parametrize("method", ["gausslegendre", "riemann_left", "riemann_right", "riemann_middle"])
def test_quadrature(method: Method) -> None:
    points, weights = quadrature(method, 50)
    assert sum(weights) == pytest.approx(1)
    assert all(0 <= p <= 1 for p in points)
    squares = sum(w * p * p for p, w in zip(points, weights, strict=True))
    assert squares == pytest.approx(1 / 3, abs={"gausslegendre": 1e-12, "riemann_middle": 1e-4}.get(method, 0.011))


def test_the_model_may_be_in_training_mode_and_batches_empty() -> None:
    case = relu_case()
    model = nn.Sequential(case.model, nn.Dropout(0.5)).train()
    for make in MAKERS.values():
        value = make(model).attribute(case.x, 0)
        torch.testing.assert_close(value, make(case.model).attribute(case.x, 0))
        assert make(model).certify(case.x[:0], 0, ball=case.ball).shape == (0, 5)
    assert model.training


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_are_named() -> None:
    case = relu_case()

    def named(run: Callable[[], object]) -> str:
        with pytest.raises(rp.ArgumentError) as error:
            run()
        return error.value.argument

    assert named(lambda: explain.IntegratedGradients(case.model, n_steps=0)) == "n_steps"
    assert named(lambda: explain.IntegratedGradients(case.model, method="simpson")) == "method"
    assert named(lambda: explain.SmoothGrad(case.model, nt_samples=0)) == "nt_samples"
    assert named(lambda: explain.SmoothGrad(case.model, stdevs=-1.0)) == "stdevs"
    wrong = explain.IntegratedGradients(case.model, baselines=torch.zeros(7))
    assert named(lambda: wrong.attribute(case.x, case.y)) == "baselines"
    assert named(lambda: explain.Saliency(case.model).attribute(case.x, 9)) == "y"


def _flat(bounds: rp.Interval) -> rp.Interval:
    return bounds.map(lambda t: t.flatten(1))


def test_a_wrong_path_is_found_out() -> None:
    """A planted fault: gradients bounded around the end of the path only are found out."""
    case = relu_case()
    ball = rp.Linf(eps=0.2, clip=(0.0, 1.0))

    class EndOnly(explain.IntegratedGradients):
        def _quadrature(self, x: Tensor) -> tuple[Tensor, Tensor]:
            alphas, steps = super()._quadrature(x)
            return torch.ones_like(alphas), steps

    bounds = EndOnly(case.model, n_steps=6).certify(case.x, case.y, ball=ball)
    value = explain.IntegratedGradients(case.model, n_steps=6).attribute(case.x, case.y)
    with pytest.raises(AssertionError):
        assert_inside(_flat(bounds), value.flatten(1), "planted")


class Kink(nn.Module):
    """A ReLU on the inputs themselves, so that nothing before it makes room for rounding."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.relu().sum(1, keepdim=True)
        return torch.cat((total, -total), 1)


@pytest.mark.parametrize("name", ["integrated gradients", "smooth gradients"])
def test_a_kink_at_the_rounded_end_of_a_moved_ball(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Balls that are moved have ends that are rounded otherwise than those of the ball itself."""
    g, eps, baseline = torch.Generator().manual_seed(0), 0.2, None
    if name == "integrated gradients":
        baseline = -torch.randint(1, 90, (1, 200), generator=g) / 100
        explanation: Attribution = rp.explain.IntegratedGradients(
            Kink(), baselines=baseline, n_steps=3, method="riemann_trapezoid"
        )
        x = (-baseline.double() - eps).float()  # half of the way is the kink, from the upper corner
    else:
        explanation = rp.explain.SmoothGrad(Kink(), nt_samples=1, stdevs=0.5)
        x = (-explanation.noise(torch.zeros(1, 200))[0].double() - eps).float()
    ball = rp.Linf(eps=eps, clip=None)
    corner = explanation.attribute(ball.box(x).upper, 0)

    def holds() -> bool:
        return bool(explanation.certify(x, 0, ball=ball, certifier="interval:ibp").contains(corner).all())

    assert holds()
    monkeypatch.setattr(attributions, "_moved", lambda ball, x, *_: x.new_zeros(len(x)))
    assert not holds()
