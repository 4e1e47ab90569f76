"""The conformance checks of explanation certifiers fail for broken ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.explanations.certifiers import IBP
from robust_plugins.testing import explanation_certifier_checks
from robust_plugins.testing import explanations as checks

pytestmark = pytest.mark.usefixtures("unchecked")


@dataclass(frozen=True, kw_only=True)
class Sound(IBP):
    """What a plugin author would write: the bounds of another class, hidden behind one method."""

    def gradient_bounds(
        self, model: nn.Module, x: Tensor, ball: rp.Ball, explained: rp.Explained, *, radius: float
    ) -> rp.Interval:
        return self.changed(super().gradient_bounds(model, x, ball, explained, radius=radius), x, ball)

    def changed(self, found: rp.Interval, x: Tensor, ball: rp.Ball) -> rp.Interval:
        return found


@dataclass(frozen=True, kw_only=True)
class TooTight(Sound):
    def changed(self, found: rp.Interval, x: Tensor, ball: rp.Ball) -> rp.Interval:
        return rp.Interval(found.center - 0.1 * found.radius, found.center + 0.1 * found.radius)


@dataclass(frozen=True, kw_only=True)
class Everything(Sound):
    def changed(self, found: rp.Interval, x: Tensor, ball: rp.Ball) -> rp.Interval:
        return rp.Interval(found.lower - 1, found.upper + 1)


@dataclass(frozen=True, kw_only=True)
class OfTheBatch(Sound):
    def changed(self, found: rp.Interval, x: Tensor, ball: rp.Ball) -> rp.Interval:
        return rp.Interval(found.lower.amin(0).expand_as(x), found.upper.amax(0).expand_as(x))


@dataclass(frozen=True, kw_only=True)
class Detached(Sound):
    def changed(self, found: rp.Interval, x: Tensor, ball: rp.Ball) -> rp.Interval:
        return found.detach()


@dataclass(frozen=True, kw_only=True)
class InFloat32(Sound):
    def changed(self, found: rp.Interval, x: Tensor, ball: rp.Ball) -> rp.Interval:
        return found.to(torch.float32)


@dataclass(frozen=True, kw_only=True)
class Narrowing(Sound):
    def changed(self, found: rp.Interval, x: Tensor, ball: rp.Ball) -> rp.Interval:
        scale = 1 / (1 + 100 * ball.eps_for(x))
        return rp.Interval(found.center - scale * found.radius, found.center + scale * found.radius)


@dataclass(frozen=True, kw_only=True)
class WrongClass(IBP):
    def gradient_bounds(self, model, x, ball, explained, *, radius) -> rp.Interval:
        turned = replace(explained, coefficients=explained.coefficients.roll(1, 1))
        return super().gradient_bounds(model, x, ball, turned, radius=radius)


@dataclass(frozen=True, kw_only=True)
class FixedWeights(IBP):
    def gradient_bounds(self, model, x, ball, explained, *, radius) -> rp.Interval:
        return super().gradient_bounds(model, x, ball, explained, radius=0.0)


@dataclass(frozen=True, kw_only=True)
class FirstEpsOnly(IBP):
    def gradient_bounds(self, model, x, ball, explained, *, radius) -> rp.Interval:
        eps = ball.radii[0] if isinstance(ball.radii, tuple) else ball.radii
        return super().gradient_bounds(model, x, replace(ball, eps=eps), explained, radius=radius)


@dataclass(frozen=True, kw_only=True)
class Stale(IBP):
    def gradient_bounds(self, model, x, ball, explained, *, radius) -> rp.Interval:
        key = (id(model), x.shape, explained.of)
        if key not in _REMEMBERED:
            _REMEMBERED[key] = super().gradient_bounds(model, x, ball, explained, radius=radius)
        return _REMEMBERED[key]


_REMEMBERED: dict[object, rp.Interval] = {}


@dataclass(frozen=True, kw_only=True)
class Careless(IBP):
    def gradient_bounds(self, model, x, ball, explained, *, radius) -> rp.Interval:
        with torch.no_grad():
            next(model.parameters()).add_(1e-3)
        return super().gradient_bounds(model, x, ball, explained, radius=radius)


@dataclass(frozen=True, kw_only=True)
class Crashing(IBP):
    """Raises what nobody expects where it cannot bound a model."""

    def gradient_bounds(self, model, x, ball, explained, *, radius) -> rp.Interval:
        try:
            return super().gradient_bounds(model, x, ball, explained, radius=radius)
        except rp.UnsupportedModelError as error:
            raise RuntimeError from error


@pytest.mark.parametrize("check", explanation_certifier_checks, ids=lambda check: check.__name__)
def test_a_sound_certifier_passes(check) -> None:
    check(Sound())


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (TooTight(), checks.bounds_contain_the_ball),
        (WrongClass(), checks.bounds_contain_the_ball),
        (FixedWeights(), checks.bounds_contain_the_weights),
        (Everything(), checks.point_is_exact),
        (Narrowing(), checks.wider_balls_give_wider_bounds),
        (OfTheBatch(), checks.batch_does_not_matter),
        (FirstEpsOnly(), checks.eps_per_sample_is_each_samples_own),
        (Careless(), checks.model_is_left_as_found),
        (Stale(), checks.changed_weights_are_seen),
        (Detached(), checks.gradients_reach_the_weights),
        (InFloat32(), checks.dtype_and_device_are_kept),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_broken_one_is_caught(broken, check) -> None:
    with pytest.raises((AssertionError, rp.ComponentError)):  # the latter by the public call itself
        check(broken)


def test_an_unsupported_model_must_not_crash() -> None:
    with pytest.raises(RuntimeError):
        checks.unsupported_is_a_verdict(Crashing())
