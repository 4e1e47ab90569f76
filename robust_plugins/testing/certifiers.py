"""The conformance checks of a certifier. Each takes the certifier and fails with a sentence that says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from robust_plugins.balls import L1, L2, Ball, Linf
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.decisions.registered import attack as registered_attack
from robust_plugins.decisions.registered import attacks
from robust_plugins.decisions.results import Verdict
from robust_plugins.decisions.specifications import margin_spec
from robust_plugins.errors import ArgumentError, PluginError, UnsupportedModelError
from robust_plugins.intervals import Interval
from robust_plugins.registry.information import Status
from robust_plugins.testing.any_attack import check_frozen_data, unusable_inputs
from robust_plugins.testing.networks import Case, cnn_case, linear_case, mlp_case
from robust_plugins.testing.soundness import RELATIVE_TOLERANCE, adversarial_points, assert_inside
from robust_plugins.testing.traces import leaves_no_trace


def is_frozen_data(certifier: Certifier) -> None:
    """Prints its parameters, compares and hashes by them."""
    check_frozen_data(certifier)


def bounds_contain_the_ball(certifier: Certifier) -> None:
    """Logits and margins at samples, corners and gradient-ascent points of the ball lie inside the bounds."""
    for case, ball in _cases(certifier):
        classes = case.model(case.x).shape[1]
        for rows in (None, margin_spec(case.y, classes, dtype=case.x.dtype)):
            bounds = certifier.bounds(case.model, case.x, ball, rows).detach()
            spec = torch.eye(classes).to(case.x).expand(len(case.x), -1, -1) if rows is None else rows
            for how, values in adversarial_points(case.model, case.x, ball, spec):
                assert_inside(bounds, values, f"{how}, {ball}, {'logits' if rows is None else 'margins'}")


def certificates_survive_attacks(certifier: Certifier) -> None:
    """No registered attack reaches a margin below the proved one, and none succeeds on a certified sample.

    Where there are many attacks, they take turns at the networks and balls, about four at each. Those that look at
    outputs alone, which cost thousands of queries and find less, do not take part.
    """
    names = [info.name for info in attacks() if info.status is Status.LOADED]
    names = [name for name in names if not registered_attack(name).black_box]
    turns = max(1, len(names) // 4)
    for number, (case, ball) in enumerate(_cases(certifier)):
        proved = certifier(case.model, case.x, case.y, ball)
        turn = (number + number // len(_BALLS)) % turns  # each meets every kind of ball
        for name in names[turn::turns]:
            try:
                result = registered_attack(name)(case.model, case.x, case.y, ball, seed=0)
            except (ArgumentError, PluginError):
                continue  # not for this ball
            others = result.logits.scatter(1, case.y.unsqueeze(1), -torch.inf).amax(1)
            achieved = result.logits.gather(1, case.y.unsqueeze(1)).squeeze(1) - others
            slack = RELATIVE_TOLERANCE[case.x.dtype] * result.logits.abs().amax()
            assert (achieved >= proved.margin - slack).all(), f"{name} reached a margin below the proved one"
            assert not (result.success & proved.certified).any(), f"{name} broke a certified sample"


def margin_is_the_smallest_row(certifier: Certifier) -> None:
    """The certificate's margin is the smallest lower bound of `z_y - z_j`, and its logits are the model's.

    Where both are above zero the certificate's may be the smaller one: it need not be better to decide. A certifier
    that searches proves more than its bounds do, or finds a witness and then need not bound anything.
    """
    for case, ball in _cases(certifier):
        certificate = certifier(case.model, case.x, case.y, ball)
        with torch.no_grad():
            logits = case.model(case.x)
            bounds = certifier.bounds(
                case.model, case.x, ball, margin_spec(case.y, logits.shape[1], dtype=logits.dtype)
            )
        torch.testing.assert_close(certificate.logits, logits)
        least = bounds.lower.amin(1)
        decided = (certificate.margin > 0) & (certificate.margin < least)
        if _searches(certifier):
            decided = torch.ones_like(decided)
        torch.testing.assert_close(torch.where(decided, least, certificate.margin), least, rtol=1e-3, atol=1e-3)


def lower_bounds_alone_are_those_of_both(certifier: Certifier) -> None:
    """`lower_bounds` gives the lower ends of `bounds`."""
    for case, ball in _cases(certifier):
        with torch.no_grad():
            logits = case.model(case.x)
            spec = margin_spec(case.y, logits.shape[1], dtype=logits.dtype)
            both = certifier.bounds(case.model, case.x, ball, spec)
            alone = certifier.lower_bounds(case.model, case.x, ball, spec)
        torch.testing.assert_close(alone, both.lower, rtol=1e-4, atol=1e-4)


def misclassified_is_falsified(certifier: Certifier) -> None:
    """A sample that the model gets wrong is never certified; its witness is an input of the ball."""
    for case, ball in _cases(certifier):
        certificate = certifier(case.model, case.x, case.y, ball)
        assert certificate.verdicts[-1] is Verdict.FALSIFIED
        assert torch.equal(certificate.witness[-1], case.x[-1])
        assert certificate.witness[:-1].isnan().all() or Verdict.FALSIFIED in certificate.verdicts[:-1]


def point_is_exact(certifier: Certifier) -> None:
    """The ball of radius 0 gives the logits themselves."""
    for case, ball in _cases(certifier):
        bounds = certifier.bounds(case.model, case.x, replace(ball, eps=0.0)).detach()
        scale = bounds.upper.abs().max().item()
        assert_inside(bounds, case.model(case.x).detach(), "eps = 0")
        assert bounds.width.max() <= 1e-4 * scale, "eps = 0 gives bounds that are not a point"


def _searches(certifier: Certifier) -> bool:
    return type(certifier).decide is not Certifier.decide


def wider_balls_give_wider_bounds(certifier: Certifier) -> None:
    """Doubling eps never proves more."""
    for case, ball in _cases(certifier):
        margins = [certifier(case.model, case.x, case.y, replace(ball, eps=e)).margin for e in (0.01, 0.02, 0.04, 0.08)]
        if _searches(certifier):  # which stops as soon as it has decided
            margins = [margin.clamp(max=0) for margin in margins]
        for small, large in pairwise(margins):
            assert (large <= small + 1e-5 * small.abs().nan_to_num(posinf=0).max()).all(), (
                "a larger ball has a larger proved margin"
            )


def batch_does_not_matter(certifier: Certifier) -> None:
    """A sample's bounds are the same alone, in a batch, in chunks, and with its eps given per sample."""
    for case, ball in _cases(certifier):
        whole = certifier.bounds(case.model, case.x, ball).detach()
        same_eps = replace(ball, eps=ball.eps_for(case.x).flatten())
        others = {
            "in chunks": replace(certifier, batch_size=2).bounds(case.model, case.x, ball),
            "alone": _joined([certifier.bounds(case.model, case.x[i : i + 1], ball) for i in range(len(case.x))]),
            "with eps per sample": certifier.bounds(case.model, case.x, same_eps),
        }
        for what, other in others.items():
            off = (other.detach() - whole.lower).lower.abs().max() + (other.detach() - whole.upper).upper.abs().max()
            assert off <= 1e-3 * whole.upper.abs().max(), f"a sample's bounds differ {what}, by {off:.3g}"
        assert certifier.bounds(case.model, case.x[:0], ball).shape[0] == 0


def eps_per_sample_is_each_samples_own(certifier: Certifier) -> None:
    """With one eps per sample, each sample has the bounds of its own radius."""
    for case, ball in _cases(certifier):
        radii = [0.01 * (i + 1) for i in range(len(case.x))]
        together = certifier.bounds(case.model, case.x, replace(ball, eps=radii)).detach()
        each = [certifier.bounds(case.model, case.x[i : i + 1], replace(ball, eps=e)) for i, e in enumerate(radii)]
        torch.testing.assert_close(together.lower, _joined(each).lower, rtol=1e-3, atol=1e-3)


def model_is_left_as_found(certifier: Certifier) -> None:
    """Modes, gradients, flags, buffers, inputs and random states are as before, also under no_grad."""
    for case, ball in _cases(certifier):
        with leaves_no_trace(case):
            certifier(case.model, case.x, case.y, ball)
        with torch.no_grad(), leaves_no_trace(case):
            certifier(case.model, case.x, case.y, ball)
        with leaves_no_trace(case):
            certifier.bounds(case.model, case.x, ball)


def computed_in_evaluation_mode(certifier: Certifier) -> None:
    """A model in training mode, with dropout, has the bounds of evaluation mode."""
    case, ball = next(_cases(certifier))
    model = nn.Sequential(case.model, nn.Dropout(0.5))
    in_training = certifier(model.train(), case.x, case.y, ball)
    in_evaluation = certifier(model.eval(), case.x, case.y, ball)
    torch.testing.assert_close(in_training.margin, in_evaluation.margin)


def changed_weights_are_seen(certifier: Certifier) -> None:
    """Bounds follow weights that changed in place, parameters that were replaced, and buffers."""
    for case, ball in _cases(certifier):
        certifier.bounds(case.model, case.x, ball)
        with torch.no_grad():
            for parameter in case.model.parameters():
                parameter.mul_(1.7).add_(0.05)
        _assert_sound(certifier, case, ball, "after an in-place update of the weights")
        last = [m for m in case.model.modules() if isinstance(m, nn.Linear)][-1]
        last.weight = nn.Parameter(last.weight.detach().flip(0) * 1.3)
        _assert_sound(certifier, case, ball, "after a parameter was replaced")
        for buffer in case.model.buffers():
            if buffer.is_floating_point():
                buffer.mul_(1.4)
        _assert_sound(certifier, case, ball, "after buffers changed")


def gradients_reach_the_weights(certifier: Certifier) -> None:
    """`bounds` is differentiable in the model's parameters."""
    for case, ball in _cases(certifier):
        bounds = certifier.bounds(case.model, case.x, ball)
        (bounds.upper - bounds.lower).sum().backward()
        weight = [m for m in case.model.modules() if isinstance(m, nn.Linear)][-1].weight
        assert weight.grad is not None, "no gradient reaches the last layer's weights"
        assert weight.grad.isfinite().all()
        assert weight.grad.abs().sum() > 0
        case.model.zero_grad()


def nan_is_an_error(certifier: Certifier) -> None:
    """A model with NaN in its weights gives ERROR verdicts, never a certificate."""
    case, ball = next(_cases(certifier))
    with torch.no_grad():
        next(case.model.parameters())[0, 0] = torch.nan
    certificate = certifier(case.model, case.x, case.y, ball)
    assert not certificate.certified.any()
    assert set(certificate.verdicts) <= {Verdict.ERROR, Verdict.UNSUPPORTED}
    assert all(certificate.messages)


def unsupported_is_a_verdict(certifier: Certifier) -> None:
    """A model with an operation that nobody can bound is UNSUPPORTED with a message, or is bounded soundly."""
    case, ball = next(_cases(certifier))
    model = nn.Sequential(case.model, _Odd())
    certificate = certifier(model, case.x, case.y, ball)
    assert not certificate.certified[[v is Verdict.UNSUPPORTED for v in certificate.verdicts]].any()
    for verdict, message in zip(certificate.verdicts, certificate.messages, strict=True):
        assert (verdict is Verdict.UNSUPPORTED) <= bool(message), "UNSUPPORTED without naming the cause"
    if Verdict.UNSUPPORTED in certificate.verdicts:
        with pytest.raises(UnsupportedModelError):
            certifier.bounds(model, case.x, ball)


def dtype_and_device_are_kept(certifier: Certifier) -> None:
    """float64 works and comes back, and so does every device at hand."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for device in devices:
        for dtype in (torch.float32, torch.float64):
            case, ball = next(_cases(certifier))
            case = case.to(dtype, device)
            _assert_sound(certifier, case, ball, f"{dtype} on {device}")
            bounds = certifier.bounds(case.model, case.x, ball)
            assert (bounds.dtype, bounds.device) == (dtype, case.x.device)
            assert certifier(case.model, case.x, case.y, ball).margin.dtype == dtype


def wrong_arguments_are_refused(certifier: Certifier) -> None:
    """NaN, values outside the clip range, labels out of range, another dtype, a spec of another shape."""
    case, ball = next(_cases(certifier))
    for x, y in unusable_inputs(case):
        with pytest.raises(ArgumentError):
            certifier(case.model, x, y, ball)
    with pytest.raises(ArgumentError):
        certifier.bounds(case.model, case.x, ball, torch.ones(len(case.x), 2, 9))


class _Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = x + 0 * torch.special.bessel_j0(x.detach())
        return values


_MAKERS = (mlp_case, partial(mlp_case, activation=nn.Tanh), partial(mlp_case, normalised=False), cnn_case, linear_case)
_BALLS = (
    Linf(eps=0.06, clip=(0.0, 1.0)),
    Linf(eps=0.06, clip=None),
    L2(eps=0.1, clip=(0.0, 1.0)),
    L1(eps=0.2, clip=(0.0, 1.0)),
)


def _cases(certifier: Certifier) -> Iterator[tuple[Case, Ball]]:
    """Networks with every ball that the certifier accepts; at least one."""
    accepted = _accepted(certifier)
    assert accepted, "the certifier bounds none of the small networks on any ball"
    return ((make(), ball) for make, ball in accepted)


@cache
def _accepted(certifier: Certifier) -> tuple[tuple[Callable[[], Case], Ball], ...]:
    """Asked once for each certifier: every check starts from it, and some conversions are slow."""

    def bounded(make: Callable[[], Case], ball: Ball) -> bool:
        case = make()
        try:
            certifier.bounds(case.model, case.x[:1], ball)
        except (ArgumentError, UnsupportedModelError):
            return False
        return True

    return tuple((make, ball) for make in _MAKERS for ball in _BALLS if bounded(make, ball))


def _assert_sound(certifier: Certifier, case: Case, ball: Ball, what: str) -> None:
    bounds = certifier.bounds(case.model, case.x, ball).detach()
    classes = bounds.shape[1]
    spec = torch.eye(classes).to(case.x).expand(len(case.x), -1, -1)
    for how, values in adversarial_points(case.model, case.x, ball, spec, samples=20, steps=5):
        assert_inside(bounds, values, f"{how}, {what}")


def _joined(parts: list[Interval]) -> Interval:
    return Interval(torch.cat([p.lower for p in parts]).detach(), torch.cat([p.upper for p in parts]).detach())


certifier_checks = [
    is_frozen_data,
    bounds_contain_the_ball,
    certificates_survive_attacks,
    margin_is_the_smallest_row,
    lower_bounds_alone_are_those_of_both,
    misclassified_is_falsified,
    point_is_exact,
    wider_balls_give_wider_bounds,
    batch_does_not_matter,
    eps_per_sample_is_each_samples_own,
    model_is_left_as_found,
    computed_in_evaluation_mode,
    changed_weights_are_seen,
    gradients_reach_the_weights,
    nan_is_an_error,
    unsupported_is_a_verdict,
    dtype_and_device_are_kept,
    wrong_arguments_are_refused,
]
"""For `pytest.mark.parametrize("check", certifier_checks)`; each check takes the certifier."""
