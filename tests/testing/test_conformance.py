"""The conformance checks pass for sound components and fail for broken ones."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from support.toys import Boxes, SignStep, TooTight
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.testing import attack_checks, attacks, certifier_checks, certifiers

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.mark.parametrize("check", attack_checks)
def test_a_sound_attack_passes(check) -> None:
    check(SignStep())


@pytest.mark.parametrize("check", certifier_checks)
def test_a_sound_certifier_passes(check) -> None:
    check(Boxes())


@dataclass(frozen=True, kw_only=True)
class OutOfBall(SignStep):
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        return x + 1.01 * ball.eps_for(x)


@dataclass(frozen=True, kw_only=True)
class Careless(SignStep):
    """Leaves the model in training mode, moves its statistics and draws from an unseeded generator."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        unseeded = torch.Generator()
        unseeded.seed()
        return ball.sample(x, 1, unseeded)[0]


@dataclass(frozen=True, kw_only=True)
class RefusesEverything(SignStep):
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        raise rp.ArgumentError("ball", ball, accepted="nothing", hint="Give up.")


@dataclass(frozen=True, kw_only=True)
class Stale(Boxes):
    """Remembers the weights of the first call."""

    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
        return super().propagate(_REMEMBERED.setdefault(model, deepcopy(model)), x, ball, spec)


_REMEMBERED: dict[nn.Module, nn.Module] = {}


@dataclass(frozen=True, kw_only=True)
class IgnoresClip(Boxes):
    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
        return super().propagate(model, x, type(ball)(eps=ball.radii, clip=None), spec)


@dataclass(frozen=True, kw_only=True)
class FirstEpsOnly(Boxes):
    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
        eps = ball.radii[0] if isinstance(ball.radii, tuple) else ball.radii
        return super().propagate(model, x, type(ball)(eps=eps, clip=ball.clip), spec)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (OutOfBall(), attacks.candidates_respect_the_ball),
        (Careless(), attacks.seed_reproduces),
        (RefusesEverything(), attacks.candidates_respect_the_ball),
        (TooTight(), certifiers.bounds_contain_the_ball),
        (Stale(), certifiers.changed_weights_are_seen),
        (FirstEpsOnly(), certifiers.eps_per_sample_is_each_samples_own),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_broken_component_is_caught(broken, check) -> None:
    with pytest.raises(AssertionError):
        check(broken)


def test_a_wider_set_is_sound() -> None:
    certifiers.bounds_contain_the_ball(IgnoresClip())
