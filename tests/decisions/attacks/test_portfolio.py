"""Portfolios: the worst of several attacks, who found it, and which samples went no further."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from support.toys import Boxes, SignStep
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.decisions.attacks.portfolio import Strongest
from robust_plugins.testing import attack_checks
from robust_plugins.testing.networks import linear_case, mlp_case


@dataclass(frozen=True, kw_only=True)
class Noise(rp.Attack):
    """The best of a few random corners; it says how many samples it was given."""

    black_box = True
    draws: int = 3
    seen: list[int] = field(default_factory=list, compare=False, repr=False)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        self.seen.append(len(x))
        best, value = x, torch.full((len(x),), -torch.inf).to(x)
        for z in ball.sample(x, self.draws, draw="corner"):
            loss = nn.functional.cross_entropy(model(z), y, reduction="none")
            gain = (-loss if targeted else loss).detach()
            best = torch.where((gain > value).view(-1, *[1] * (x.dim() - 1)), z, best)
            value = torch.maximum(gain, value)
        return best


@dataclass(frozen=True, kw_only=True)
class Refuses(rp.Attack):
    """Takes nothing."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        raise rp.ArgumentError("ball", repr(ball), accepted="no ball", hint="There is none.")


@pytest.mark.parametrize("check", attack_checks)
def test_conformance(check) -> None:
    check(rp.strongest([Noise(), SignStep()], certifier=None))


JOINED = ("rp:margin-pgd(steps=3)", "rp:fmn(steps=4)", "rp:pdpgd(steps=4)", "rp:apgd(steps=5, targets=1)",
          "rp:square(queries=10)")  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("check", attack_checks)
@pytest.mark.parametrize("attack", [pytest.param(JOINED, id="joined"), pytest.param(None, id="auto")])
def test_conformance_of_our_own_lists(attack: tuple[str, ...] | None, check) -> None:
    check(rp.attack("rp:auto") if attack is None else rp.strongest(attack))


def test_each_attack_sees_what_is_left() -> None:
    case = mlp_case(batch=40)
    ball = rp.Linf(eps=0.2, clip=(0, 1))
    first, last = Noise(draws=1), Noise(draws=20)
    result = rp.strongest([first, SignStep(), last], certifier=None)(case.model, case.x, case.y, ball, seed=0)
    assert first.seen == [39]  # the last sample is misclassified before anything
    assert result.found_by is not None
    assert result.found_by[-1] == "the input itself"
    by = {str(first): 0, str(SignStep()): 0, str(last): 0, "": 0, "the input itself": 0}
    for name, won in zip(result.found_by, result.success.tolist(), strict=True):
        assert bool(name) == won
        by[name] += 1
    assert last.seen == [39 - by[str(first)] - by[str(SignStep())]]
    assert by[str(first)] > 0
    assert by[str(SignStep())] > 0
    alone = [a(case.model, case.x, case.y, ball, seed=0).success for a in (SignStep(),)]
    assert (result.success | ~alone[0]).all()


def test_proved_samples_are_left_to_the_first_attack() -> None:
    case = mlp_case(batch=40, normalised=False)
    ball = rp.Linf(eps=0.02, clip=(0, 1))
    certified = int(rp.certifier("interval:ibp")(case.model, case.x, case.y, ball).certified.sum())
    assert 0 < certified < 39
    for certifier in ("auto", "interval:ibp", Boxes(), None):
        first, last = Noise(draws=1), Noise(draws=2)
        result = rp.strongest([first, last], certifier=certifier)(case.model, case.x, case.y, ball, seed=0)
        assert first.seen == [39]
        assert (last.seen == [39]) == (certifier is None)
        assert any("proves that nothing can be found" in note for note in result.notes) == (certifier is not None)


def test_unreachable_targets_are_left_to_the_first_attack() -> None:
    """A linear model, whose margins the certifier bounds exactly: what it leaves out cannot be found."""
    case = linear_case(batch=60)
    ball = rp.Linf(eps=0.1, clip=(0, 1))
    target = (case.y + 1) % 4
    last = Noise(draws=2)
    result = rp.strongest([Noise(draws=1), last])(case.model, case.x, case.y, ball, target=target, seed=0)
    (left,) = last.seen
    assert left < 60
    box, rows = ball.box(case.x), case.model[0].weight
    for other in range(4):
        gap = rows[target] - rows[other]
        most = (gap * torch.where(gap > 0, box.upper, box.lower)).sum(1) + case.model[0].bias[target]
        case_open = most >= case.model[0].bias[other]
        left -= 0
        assert (case_open | ~result.success).all()


def test_models_that_no_certifier_bounds_are_attacked_in_full() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i0e(x) @ torch.ones(5, 4).triu()

    x = torch.rand(6, 5)
    y = Odd()(x).argmax(1)
    last = Noise()
    result = rp.strongest([Noise(draws=1), last])(Odd(), x, y, rp.Linf(eps=0.01, clip=(0, 1)), seed=0)
    assert last.seen == [6]
    assert result.notes == ()


def test_refusals_are_passed_over_unless_all_refuse() -> None:
    case = mlp_case()
    result = rp.strongest([Refuses(), SignStep()])(case.model, case.x, case.y, case.ball, seed=0)
    assert Refuses() != SignStep()
    assert str(Refuses()) not in (result.found_by or ())
    with pytest.raises(rp.ArgumentError, match="no ball"):
        rp.strongest([Refuses()])(case.model, case.x, case.y, case.ball, seed=0)


@pytest.mark.parametrize("attacks", [[], "art:pgd", SignStep(), [SignStep(), SignStep()], [3]])
def test_wrong_lists_are_refused(attacks, unchecked) -> None:
    with pytest.raises(rp.ArgumentError, match="attacks"):
        Strongest(attacks=attacks)
    with pytest.raises(rp.UnknownNameError):
        rp.strongest(["rp:nothing"])
    with pytest.raises(rp.ArgumentError, match="certifier"):
        rp.strongest([Noise()], certifier=3)  # type: ignore[arg-type]


class Scaled(nn.Module):
    """So sure of its decisions that cross-entropy's gradient is rounding, or nothing."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return 1e5 * self.body(x)


class Rounded(nn.Module):
    """Rounds its input to 8 bit, whose gradient is zero, or casts it, which has none."""

    def __init__(self, body: nn.Module, *, cast: bool = False) -> None:
        super().__init__()
        self.body, self.cast = body, cast

    def forward(self, x: Tensor) -> Tensor:
        return self.body(((255 * x).to(torch.uint8).to(x.dtype) if self.cast else (255 * x).round()) / 255)


def test_saturated_models_are_attacked_by_the_margin() -> None:
    case = mlp_case(batch=60)
    ball = rp.Linf(eps=0.15, clip=(0, 1))
    sure = Scaled(case.model)
    plain = rp.attack("rp:auto")(case.model, case.x, case.y, ball, seed=0)
    blind = SignStep()(sure, case.x, case.y, ball, seed=0)
    for attack in (rp.attack("rp:auto"), rp.strongest([SignStep()])):
        result = attack(sure, case.x, case.y, ball, seed=0)
        assert result.success.sum() >= plain.success.sum() > blind.success.sum()
    assert any("saturates" in note for note in result.notes)
    kept = Strongest(attacks=[SignStep()], surrogates=False)(sure, case.x, case.y, ball, seed=0)
    assert kept.success.sum() == blind.success.sum()


@pytest.mark.parametrize("cast", [False, True])
def test_rounded_inputs_are_attacked_straight_through(cast) -> None:
    case = mlp_case(batch=60)
    ball = rp.Linf(eps=0.15, clip=(0, 1))
    plain = rp.attack("rp:auto")(case.model, case.x, case.y, ball, seed=0)
    result = rp.attack("rp:auto")(Rounded(case.model, cast=cast), case.x, case.y, ball, seed=0)
    assert result.success.sum() >= plain.success.sum() - 1
    assert any("straight through" in note for note in result.notes)
    with torch.no_grad():  # the successes are of the model itself
        assert torch.equal(Rounded(case.model, cast=cast)(result.x_adv).argmax(1) != case.y, result.success)


def test_models_without_gradients_are_attacked_by_their_outputs() -> None:
    class Closed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return case.model(x).detach()

    case = mlp_case(batch=30)
    for ball in (rp.Linf(eps=0.2, clip=(0, 1)), rp.L2(eps=0.6, clip=(0, 1)), rp.L1(eps=2.0, clip=(0, 1))):
        result = rp.attack("rp:auto")(Closed(), case.x, case.y, ball, seed=0)
        assert set(result.found_by or ()) - {""} == {"rp:square(queries=500)", "the input itself"}
        assert result.success.sum() >= 5
        assert any("queries a sample" in note for note in result.notes)


def test_the_list_on_l1_has_the_proximal_attack() -> None:
    from robust_plugins.decisions.attacks.diagnosis import Diagnosis
    from robust_plugins.decisions.attacks.portfolio import default_attacks

    for ball in (rp.L1(eps=1.0, clip=None), rp.Linf(eps=1.0, clip=None)):
        names = [name for name, _ in default_attacks(Diagnosis(1), ball, surrogates=True)]
        assert ("rp:pdpgd" in names) == isinstance(ball, rp.L1)


def test_random_models_are_averaged() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return case.model(x + 0.05 * torch.randn_like(x))

    case = mlp_case(batch=60)
    ball = rp.Linf(eps=0.2, clip=(0, 1))
    result = rp.attack("rp:auto")(Noisy(), case.x, case.y, ball, seed=0)
    once = SignStep()(Noisy(), case.x, case.y, ball, seed=0)
    assert result.success.sum() >= once.success.sum()
    torch.manual_seed(1)
    with torch.no_grad():
        again = torch.stack([Noisy()(result.x_adv).argmax(1) != case.y for _ in range(20)])
    assert again[:, result.success].float().mean() > 0.95
    assert any("averaged over 8 draws" in note for note in result.notes)
