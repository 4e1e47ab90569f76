"""Explanation attacks: what they return is what the network computes, and never leaves a sound certificate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import robust_plugins as rp
from robust_plugins.explanations import CornerPGD
from robust_plugins.explanations.certifiers import IBP
from robust_plugins.explanations.explained import Explained, weight_intervals
from robust_plugins.explanations.task import Task
from robust_plugins.intervals import Interval
from robust_plugins.testing import fresh_registry  # noqa: F401 (a fixture)
from robust_plugins.testing.networks import Case, cnn_case, linear_case, mlp_case
from robust_plugins.testing.traces import leaves_no_trace

QUICK = CornerPGD(corners=8, steps=4, restarts=2, rung=1)


def relu_case(*, batch: int = 6) -> Case:
    return mlp_case(normalised=False, batch=batch)


def tanh_case() -> Case:
    return mlp_case(activation=nn.Tanh, normalised=False)


CASES: list[Callable[[], Case]] = [relu_case, tanh_case, cnn_case]
BALLS = [rp.Linf(eps=0.06, clip=(0.0, 1.0)), rp.L2(eps=0.1, clip=(0.0, 1.0)), rp.L1(eps=0.2, clip=None)]


@dataclass(frozen=True, kw_only=True)
class TooTight(IBP):
    """The planted fault: every bound loses one per cent of its width."""

    def gradient_bounds(
        self, model: nn.Module, x: Tensor, ball: rp.Ball, explained: Explained, *, radius: float
    ) -> Interval:
        found = super().gradient_bounds(model, x, ball, explained, radius=radius)
        return Interval(found.lower + 0.005 * found.width, found.upper - 0.005 * found.width)


class Leaves(rp.ExplanationAttack):
    """Offers a point far outside the ball, and NaN."""

    def search(self, task: Task) -> None:
        task.offer(task.x + 100)
        task.offer(torch.full_like(task.x, torch.nan))


def gates() -> nn.Sequential:
    """Two gates for each of three features, one open and one closed at 0.5: corners reach both ends of all bounds."""
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.cat((torch.eye(3), 2 * torch.eye(3))))
        model[0].bias.copy_(torch.tensor([-0.45] * 3 + [-1.1] * 3))
        model[2].weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 1.0, -0.5, 1.0], [0.3, 1.0, -1.0, 0.7, 1.0, -0.6]]))
    return model


def contradictions(attack: rp.ExplanationAttackResult, certificate: rp.ExplanationCertificate) -> list[str]:
    """Every way in which the empirical side of the bracket can exceed the proved one."""
    slack = 1e-5 * certificate.value.abs().amax().item()
    length = torch.linalg.vector_norm(certificate.value.flatten(1), dim=1)
    found = {
        "gradient": ~certificate.gradient.contains(attack.gradient, tolerance=slack).flatten(1).all(1),
        "deviation": (attack.deviation - certificate.deviation) * length > slack,
        "top": attack.evicted & certificate.keeps_top(attack.k),
        "sign": certificate.keeps_sign() & (attack.gradient.sign() != certificate.value.sign()).flatten(1).any(1),
        "excluded": certificate.excludes(attack.gradient, slack * length.numel()),
    }
    return [name for name, where in found.items() if where.any()]


@pytest.mark.parametrize("ball", BALLS, ids=lambda ball: type(ball).__name__)
@pytest.mark.parametrize("make", CASES)
def test_the_result_is_what_the_network_computes(make: Callable[[], Case], ball: rp.Ball) -> None:
    case = make()
    for of in ("logit", "margin", "loss"):
        result = QUICK(case.model, case.x, case.y, ball, of=of, seed=0)
        explained = Explained.at(case.model, case.x, case.y, of)
        assert ball.contains(result.x_adv, case.x, tolerance=1e-6).all()
        torch.testing.assert_close(result.gradient, explained.gradient(case.model, result.x_adv))
        torch.testing.assert_close(result.value, explained.gradient(case.model, case.x))
        moved = (result.gradient - result.value).flatten(1).norm(dim=1) / result.value.flatten(1).norm(dim=1)
        torch.testing.assert_close(result.deviation, moved)
        assert result.deviation.max() > 0


def test_each_sample_has_weights_of_its_own() -> None:
    case = relu_case()
    result = QUICK(case.model, case.x, case.y, case.ball, radius=0.05, seed=0)
    fixed = QUICK(case.model, case.x, case.y, case.ball, seed=0)
    box = weight_intervals(case.model, 0.05)
    assert result.weights_adv.keys() == box.keys()
    explained = Explained.at(case.model, case.x, case.y, "logit")
    for i in range(len(case.x)):
        own = {name: w[i] for name, w in result.weights_adv.items()}
        assert all(box[name].contains(w).all() for name, w in own.items())
        z = result.x_adv[i : i + 1].clone().requires_grad_()
        number = explained[i : i + 1].number(functional_call(case.model, own, (z,)))
        torch.testing.assert_close(torch.autograd.grad(number.sum(), z)[0], result.gradient[i : i + 1])
    assert result.deviation.mean() > fixed.deviation.mean()
    assert fixed.weights_adv is None


@pytest.mark.parametrize("radius", [0.0, 0.02])
@pytest.mark.parametrize("make", CASES)
def test_no_attack_leaves_a_certificate(make: Callable[[], Case], radius: float) -> None:
    case = make()
    names = [info.name for info in rp.explanation_certifiers() if not info.missing]
    for of in ("logit", "margin", "loss"):
        attacks = [
            QUICK(case.model, case.x, case.y, case.ball, of=of, radius=radius, seed=0, **goal)
            for goal in (
                {"goal": "deviation"},
                {"goal": "top_k", "k": 2},
                {"goal": "target", "target": torch.ones_like(case.x)},
            )
        ]
        for name in names:
            certify = rp.explanation_certifier(name)
            certificate = certify(case.model, case.x, case.y, case.ball, of=of, radius=radius, delta=0.1)
            assert certificate.gradient.width.isfinite().all(), certificate.messages
            for attack in attacks:
                assert contradictions(attack, certificate) == [], (name, of, attack.goal)


@pytest.mark.parametrize("radius", [0.0, 0.1])
def test_a_certificate_that_is_slightly_too_tight_is_found_out(radius: float) -> None:
    model, ball = gates(), rp.Linf(eps=0.1, clip=None)
    x, y = torch.full((4, 3), 0.5, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    search = CornerPGD(corners=40, steps=10, restarts=0)
    attack = search(model, x, y, ball, radius=radius, seed=0)
    certificate = IBP()(model, x, y, ball, radius=radius, delta=1.0)
    assert contradictions(attack, certificate) == []
    assert radius > 0 or torch.allclose(attack.deviation, certificate.deviation)
    ends = [search(model, x, y, ball, goal="target", target=end, radius=radius, seed=0)
            for end in (certificate.gradient.lower, certificate.gradient.upper)]  # fmt: skip
    tight = TooTight()(model, x, y, ball, radius=radius, delta=1.0)
    assert all(contradictions(end, certificate) == [] for end in ends)
    assert all("gradient" in contradictions(end, tight) for end in ends)
    if radius == 0:
        assert set(contradictions(attack, tight)) >= {"gradient", "deviation"}


def test_ascent_on_surrogates_beats_corners() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 3))
    x, ball = torch.rand(20, 40), rp.Linf(eps=0.03, clip=(0.0, 1.0))
    y = model(x).argmax(1)
    corners = CornerPGD(betas=(), restarts=0)(model, x, y, ball, seed=0)
    ascent = CornerPGD(restarts=0)(model, x, y, ball, seed=0)
    assert ascent.deviation.mean() > 1.1 * corners.deviation.mean()
    restarted = CornerPGD()(model, x, y, ball, seed=0)
    assert (restarted.deviation >= ascent.deviation).all()
    assert restarted.deviation.mean() > 1.02 * ascent.deviation.mean()


def test_restarts_side_by_side_keep_each_samples_own() -> None:
    case = relu_case(batch=3)
    eps = torch.tensor([0.0, 0.01, 0.3])
    ball = rp.Linf(eps=eps, clip=(0.0, 1.0))
    for goal in ({"goal": "deviation"}, {"goal": "target", "target": torch.ones_like(case.x)}):
        for radius in (0.0, 0.01):
            found = CornerPGD(corners=1, steps=1, betas=(), restarts=5, rung=2)(
                case.model, case.x, case.y, ball, radius=radius, seed=0, **goal
            )
            assert (found.x_adv - case.x).abs().flatten(1).amax(1).le(eps + 1e-6).all()
            if not radius:
                assert torch.equal(found.gradient[0], found.value[0])
                explained = Explained.at(case.model, case.x, case.y, "logit")
                torch.testing.assert_close(found.gradient, explained.gradient(case.model, found.x_adv))


def test_goals_are_what_they_say() -> None:
    case = relu_case(batch=20)
    wide = replace(case.ball, eps=0.3)
    top = QUICK(case.model, case.x, case.y, wide, goal="top_k", k=2, seed=0)
    before = top.value.abs().topk(2).indices.sort().values
    after = top.gradient.abs().topk(2).indices.sort().values
    assert torch.equal(top.evicted, (before != after).any(1))
    assert torch.equal(top.success, top.evicted)
    assert top.evicted.any()
    assert top.evicted.sum() >= QUICK(case.model, case.x, case.y, wide, k=2, seed=0).evicted.sum()
    aim = torch.ones_like(case.x)
    target = QUICK(case.model, case.x, case.y, wide, goal="target", target=aim, threshold=1.5, seed=0)
    torch.testing.assert_close(target.distance, (target.gradient - aim).norm(dim=1))
    assert (target.distance <= (target.value - aim).norm(dim=1)).all()
    assert torch.equal(target.success, target.distance <= 1.5)
    one = QUICK(case.model, case.x, case.y, wide, goal="target", target=aim[:1], seed=0)
    assert torch.equal(one.distance, target.distance)
    assert one.success is None
    far = QUICK(case.model, case.x, case.y, wide, threshold=0.1, seed=0)
    assert torch.equal(far.success, far.deviation > 0.1)
    assert far.distance is None


def test_a_linear_model_has_one_explanation() -> None:
    case = linear_case()
    result = QUICK(case.model, case.x, case.y, case.ball, seed=0)
    assert result.deviation.max() == 0
    assert not result.evicted.any()
    assert torch.equal(result.x_adv, case.x)


def test_all_features_are_never_evicted() -> None:
    case = relu_case()
    assert not QUICK(case.model, case.x, case.y, case.ball, goal="top_k", k=5, seed=0).evicted.any()


def test_reproducible_and_in_chunks() -> None:
    case = relu_case()
    one, two = (QUICK(case.model, case.x, case.y, case.ball, seed=3) for _ in range(2))
    assert torch.equal(one.x_adv, two.x_adv)
    drawn = QUICK(case.model, case.x, case.y, case.ball)
    again = QUICK(case.model, case.x, case.y, case.ball, seed=drawn.seed)
    assert torch.equal(drawn.x_adv, again.x_adv)
    for radius in (0.0, 0.01):
        parts = replace(QUICK, batch_size=4)(case.model, case.x, case.y, case.ball, radius=radius, seed=0)
        assert parts.x_adv.shape == case.x.shape
        torch.testing.assert_close(
            QUICK(case.model, case.x[:4], case.y[:4], case.ball, radius=radius, seed=0).x_adv, parts.x_adv[:4]
        )
    empty = QUICK(case.model, case.x[:0], case.y[:0], case.ball, seed=0)
    assert empty.deviation.shape == empty.evicted.shape == (0,)


@pytest.mark.usefixtures("unchecked")  # the shape checks draw from python's random state themselves
def test_the_model_is_left_as_found() -> None:
    for make in CASES:
        case = make()
        for radius in (0.0, 0.01):
            with leaves_no_trace(case):
                QUICK(case.model, case.x, case.y, case.ball, radius=radius)
        with torch.no_grad(), leaves_no_trace(case):
            QUICK(case.model, case.x, case.y, case.ball)
    case = relu_case()
    with torch.inference_mode():
        x = case.x.clone()
    QUICK(case.model, x, case.y, case.ball)


def test_candidates_outside_are_moved_inside_and_nan_never_wins() -> None:
    case = relu_case()
    result = Leaves()(case.model, case.x, case.y, case.ball, seed=0)
    assert case.ball.contains(result.x_adv, case.x, tolerance=0).all()
    assert result.gradient.isfinite().all()
    assert result.deviation.max() > 0


def test_a_plugin_registers_an_attack(fresh_registry) -> None:  # noqa: F811
    class Plugin:
        @rp.hookimpl
        def register_explanation_attacks(self, register: object) -> None:
            register("mine:leaves", Leaves)  # type: ignore[operator]
            register("mine:wrong", IBP)  # type: ignore[operator]

    rp.register(Plugin(), "mine")
    assert rp.explanation_attack("mine:leaves") == Leaves()
    assert "mine:leaves" in [info.name for info in rp.explanation_attacks()]
    with pytest.raises(rp.PluginError, match=r"is no rp\.ExplanationAttack"):
        rp.explanation_attack("mine:wrong")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"goal": "furthest"}, "goal"),
        ({"goal": "target"}, "target"),
        ({"target": torch.ones(6, 5)}, "target"),
        ({"goal": "target", "target": torch.ones(6, 4)}, "target"),
        ({"goal": "target", "target": torch.ones(2, 5)}, "target"),
        ({"goal": "top_k", "k": 6}, "k"),
        ({"goal": "top_k", "k": 0}, "k"),
        ({"goal": "top_k", "threshold": 0.1}, "threshold"),
        ({"threshold": -1.0}, "threshold"),
        ({"radius": -0.1}, "radius"),
        ({"of": "softmax"}, "of"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], named: str) -> None:
    case = relu_case()
    with pytest.raises(rp.ArgumentError) as error:
        QUICK(case.model, case.x, case.y, case.ball, **arguments)  # type: ignore[arg-type]
    assert error.value.argument == named


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "wrong",
    [
        {"corners": 0},
        {"steps": 0},
        {"betas": (0.0,)},
        {"betas": (float("inf"),)},
        {"restarts": -1},
        {"rung": 0},
        {"ladder": (-1.0,)},
    ],
)
def test_wrong_parameters_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(rp.ArgumentError) as error:
        CornerPGD(**wrong)  # type: ignore[arg-type]
    assert error.value.argument == next(iter(wrong))
