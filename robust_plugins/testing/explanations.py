"""The conformance checks of an explanation certifier. Each takes it and fails with a sentence: what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.balls import L1, L2, Ball, Linf
from robust_plugins.decisions.results import Verdict
from robust_plugins.errors import ArgumentError, UnsupportedModelError
from robust_plugins.explanations import Explained, ExplanationCertifier
from robust_plugins.explanations.explained import Of
from robust_plugins.harness.evaluation import evaluating
from robust_plugins.intervals import Interval
from robust_plugins.testing.any_attack import check_frozen_data, unusable_inputs
from robust_plugins.testing.networks import Case, cnn_case, linear_case, mlp_case
from robust_plugins.testing.soundness import RELATIVE_TOLERANCE, assert_inside
from robust_plugins.testing.traces import leaves_no_trace


def adversarial_gradients(
    model: nn.Module,
    x: Float[Tensor, "batch *features"],
    ball: Ball,
    explained: Explained,
    *,
    samples: int = 60,
    steps: int = 12,
    components: int = 6,
    seed: int = 0,
) -> Iterator[tuple[str, Float[Tensor, "points batch *features"]]]:
    """Explanations at points of the ball, with the way in which the points were found.

    Uniform points, corners, the centre, and for `components` of the components the ends of a gradient descent and a
    gradient ascent on it alone; where the second derivative is zero, as in ReLU networks, these stay where they are.
    """
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model, freeze=True):
        yield "the centre", explained.gradient(model, x).unsqueeze(0)
        for draw in ("uniform", "corner"):
            points = ball.sample(x, samples, generator, draw=draw)
            found = _tiled(explained, samples).gradient(model, points.flatten(0, 1))
            yield f"{draw} samples", found.view_as(points)
        size = x[0].numel()
        chosen = torch.arange(0, size, max(1, size // components), device=x.device).repeat_interleave(len(x))
        ends = [_climbed(model, x, ball, explained, chosen, sign, steps) for sign in (-1, 1)]
        yield "gradient descent on single components", ends[0]
        yield "gradient ascent on single components", ends[1]


def _climbed(
    model: nn.Module, x: Tensor, ball: Ball, explained: Explained, chosen: Tensor, sign: int, steps: int
) -> Tensor:
    """Gradients after projected steps that raise (sign 1) or lower one component, a different one in each copy of x."""
    copies = len(chosen) // len(x)
    of_copies, centres = _tiled(explained, copies), x.repeat(copies, *[1] * (x.dim() - 1))
    around = replace(ball, eps=ball.radii_for(x).repeat(copies).unsqueeze(1))
    z = centres
    for step in range(steps):
        z = z.detach().requires_grad_()
        found = of_copies.gradient(model, z, create_graph=True)
        if not found.requires_grad:
            break
        number = found.flatten(1).gather(1, chosen.unsqueeze(1)).sum()
        (direction,) = torch.autograd.grad(number, z, materialize_grads=True)
        size = max(0.5 * (1 - step / steps), 0.02)
        z = around.project(z + size * around.steepest(sign * direction), centres)
    return of_copies.gradient(model, z.detach()).view(copies, *x.shape)


def _tiled(explained: Explained, copies: int) -> Explained:
    return Explained(explained.of, explained.y.repeat(copies), explained.coefficients.repeat(copies, 1))


def is_frozen_data(certifier: ExplanationCertifier) -> None:
    """Prints its parameters, compares and hashes by them."""
    check_frozen_data(certifier)


def bounds_contain_the_ball(certifier: ExplanationCertifier) -> None:
    """Gradients at samples, corners and the ends of gradient ascent lie inside the bounds, whatever is explained."""
    for case, ball in _cases(certifier):
        for of in get_args(Of):
            _assert_sound(certifier, case, ball, of, f"{of}, {ball}")


def bounds_contain_the_weights(certifier: ExplanationCertifier) -> None:
    """With `radius`, gradients of models with other weights lie inside the bounds; or ArgumentError is raised."""
    for case, ball in _cases(certifier):
        gamma, ball = 0.05, replace(ball, eps=0.01)
        try:
            bounds = certifier.bounds(case.model, case.x, case.y, ball, of="logit", radius=gamma).detach()
        except ArgumentError:
            continue
        explained = _explained(case, "logit")
        generator = torch.Generator().manual_seed(0)
        for trial in range(40):
            other = deepcopy(case.model)
            with torch.no_grad():
                for parameter in other.parameters():
                    noise = 2 * torch.rand(parameter.shape, generator=generator) - 1
                    noise = noise.sign() if trial % 2 else noise
                    parameter.add_(gamma * noise * parameter.abs())
            z = ball.sample(case.x, 1, generator, draw="corner")[0]
            _inside(bounds, explained.gradient(other, z).unsqueeze(0), f"weights within {gamma}, {ball}")


def value_is_the_gradient(certifier: ExplanationCertifier) -> None:
    """The certificate's value is the gradient at x of the number that is explained."""
    for case, ball in _cases(certifier):
        logits = case.model(case.x)
        runner_up = logits.detach().scatter(1, case.y.unsqueeze(1), -torch.inf).argmax(1)
        own = torch.arange(len(case.x))
        numbers = {
            "logit": lambda z: z[own, case.y],  # noqa: B023 (used at once)
            "margin": lambda z: z[own, case.y] - z[own, runner_up],  # noqa: B023
            "loss": lambda z: nn.functional.cross_entropy(z, case.y, reduction="none"),  # noqa: B023
        }
        for of in get_args(Of):
            z = case.x.clone().requires_grad_()
            (expected,) = torch.autograd.grad(numbers[of](case.model(z)).sum(), z)
            certificate = certifier(case.model, case.x, case.y, ball, of=of, delta=0.1)
            torch.testing.assert_close(certificate.value, expected, msg=f"of={of!r} explains something else")


def statements_survive_samples(certifier: ExplanationCertifier) -> None:
    """No sampled gradient contradicts what a certificate states: widths, deviation, top features, signs, targets."""
    for case, ball in _cases(certifier):
        ball = replace(ball, eps=0.01)
        certificate = certifier(case.model, case.x, case.y, ball, of="logit", delta=0.05)
        found = torch.cat([v for _, v in adversarial_gradients(case.model, case.x, ball, _explained(case, "logit"))])
        value, flat = certificate.value.flatten(1), found.flatten(2)
        slack = 1 + 1e3 * RELATIVE_TOLERANCE[found.dtype]
        width = found.amax(0) - found.amin(0)
        assert not (certificate.robust & (width > certificate.delta * slack)).any(), "a robust feature moves too far"
        deviation = (flat - value).norm(dim=2) / value.norm(dim=1)
        assert (deviation <= certificate.deviation * slack + 1e-6).all(), "a gradient deviates by more than is proved"
        for k in (1, 2):
            top = torch.zeros_like(value, dtype=torch.bool).scatter(1, value.abs().topk(k).indices, True)
            lost = flat.abs().masked_fill(~top, torch.inf).amin(2) < flat.abs().masked_fill(top, 0).amax(2) / slack
            assert not (lost & certificate.keeps_top(k)).any(), f"a top-{k} feature that is kept is lost"
        turned = (flat.sign() != value.sign()).any(2)
        assert not (turned & certificate.keeps_sign()).any(), "a sign that is kept turns"
        for target in found[::20]:
            threshold = 1e-5 * value.abs().max().item()
            assert not certificate.excludes(target, threshold).any(), "an explanation that exists is excluded"


def point_is_exact(certifier: ExplanationCertifier) -> None:
    """The ball of radius 0 gives the gradient itself."""
    for case, ball in _cases(certifier):
        for of in get_args(Of):
            certificate = certifier(case.model, case.x, case.y, replace(ball, eps=0.0), of=of, delta=0.0)
            assert certificate.width.max() <= 1e-4 * certificate.value.abs().max(), "eps = 0 leaves an interval"


def wider_balls_give_wider_bounds(certifier: ExplanationCertifier) -> None:
    """Doubling eps never gives a smaller total width."""
    for case, ball in _cases(certifier):
        widths = [
            certifier.bounds(case.model, case.x, case.y, replace(ball, eps=eps), of="logit").width.detach()
            for eps in (0.01, 0.02, 0.04, 0.08)
        ]
        for small, large in pairwise(width.flatten(1).sum(1) for width in widths):
            assert (large >= small - 1e-5 * small.abs().max()).all(), "a larger ball has narrower bounds"


def batch_does_not_matter(certifier: ExplanationCertifier) -> None:
    """A sample's bounds are the same alone, in a batch, in chunks, and with its eps given per sample."""
    for case, ball in _cases(certifier):
        whole = certifier.bounds(case.model, case.x, case.y, ball, of="loss").detach()
        same_eps = replace(ball, eps=ball.eps_for(case.x).flatten())
        in_chunks = replace(certifier, batch_size=2).bounds(case.model, case.x, case.y, ball, of="loss")
        others = {
            "in chunks": in_chunks,
            "alone": certifier.bounds(case.model, case.x[:1], case.y[:1], ball, of="loss"),
            "with eps per sample": certifier.bounds(case.model, case.x, case.y, same_eps, of="loss"),
        }
        for what, other in others.items():
            count = len(other)
            ends = (other.lower - whole.lower[:count], other.upper - whole.upper[:count])
            off = max(end.abs().max().item() for end in ends)
            assert off <= 1e-3 * whole.magnitude.max(), f"a sample's bounds differ {what}, by {off:.3g}"
        assert certifier.bounds(case.model, case.x[:0], case.y[:0], ball, of="logit").shape == case.x[:0].shape


def eps_per_sample_is_each_samples_own(certifier: ExplanationCertifier) -> None:
    """With one eps per sample, each sample has the bounds of its own radius."""
    for case, ball in _cases(certifier):
        radii = [0.01, *[0.03] * (len(case.x) - 2), 0.05]
        together = certifier.bounds(case.model, case.x, case.y, replace(ball, eps=radii), of="logit").detach()
        for one in (slice(0, 1), slice(len(radii) - 1, len(radii))):
            alone = certifier.bounds(case.model, case.x[one], case.y[one], replace(ball, eps=radii[one]), of="logit")
            torch.testing.assert_close(together.lower[one], alone.lower.detach(), rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(together.upper[one], alone.upper.detach(), rtol=1e-3, atol=1e-3)


def model_is_left_as_found(certifier: ExplanationCertifier) -> None:
    """Modes, gradients, flags, buffers, inputs and random states are as before, also under no_grad."""
    for case, ball in _cases(certifier):
        with leaves_no_trace(case):
            certifier(case.model, case.x, case.y, ball, delta=0.1)
        with torch.no_grad(), leaves_no_trace(case):
            certifier(case.model, case.x, case.y, ball, of="loss", delta=0.1)
        with leaves_no_trace(case):
            certifier.bounds(case.model, case.x, case.y, ball, of="margin")


def computed_in_evaluation_mode(certifier: ExplanationCertifier) -> None:
    """A model in training mode, with dropout, has the bounds of evaluation mode."""
    case, ball = next(_cases(certifier))
    model = nn.Sequential(case.model, nn.Dropout(0.5))
    in_training = certifier(model.train(), case.x, case.y, ball, delta=0.1)
    in_evaluation = certifier(model.eval(), case.x, case.y, ball, delta=0.1)
    torch.testing.assert_close(in_training.gradient.lower, in_evaluation.gradient.lower)
    torch.testing.assert_close(in_training.value, in_evaluation.value)


def changed_weights_are_seen(certifier: ExplanationCertifier) -> None:
    """Bounds follow weights that changed in place, parameters that were replaced, and buffers."""
    for case, ball in _cases(certifier):
        certifier.bounds(case.model, case.x, case.y, ball, of="logit")
        with torch.no_grad():
            for parameter in case.model.parameters():
                parameter.mul_(1.7).add_(0.05)
        _assert_sound(certifier, case, ball, "logit", "after an in-place update of the weights")
        last = [m for m in case.model.modules() if isinstance(m, nn.Linear)][-1]
        last.weight = nn.Parameter(last.weight.detach().flip(0) * 1.3)
        _assert_sound(certifier, case, ball, "logit", "after a parameter was replaced")
        for buffer in case.model.buffers():
            if buffer.is_floating_point():
                buffer.mul_(1.4)
        _assert_sound(certifier, case, ball, "logit", "after buffers changed")


def gradients_reach_the_weights(certifier: ExplanationCertifier) -> None:
    """`bounds` is differentiable in the model's parameters."""
    for case, ball in _cases(certifier):
        for of in get_args(Of):
            width = certifier.bounds(case.model, case.x, case.y, ball, of=of).width.sum()
            assert width.requires_grad or width == 0, "the bounds have no gradient"
            if width.requires_grad:
                width.backward()
            weights = [m.weight for m in case.model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
            if len(weights) == 1 and of != "loss":
                continue  # the gradient of a linear function is constant: its width is zero whatever the weights
            for weight in weights:
                assert weight.grad is not None, "no gradient reaches a layer's weights"
                assert weight.grad.isfinite().all()
                assert weight.grad.abs().sum() > 0
            case.model.zero_grad()


def nan_is_an_error(certifier: ExplanationCertifier) -> None:
    """A model with NaN in its weights gives ERROR verdicts, infinite bounds, and no statement that holds."""
    case, ball = next(_cases(certifier))
    with torch.no_grad():
        next(case.model.parameters())[0, 0] = torch.nan
    certificate = certifier(case.model, case.x, case.y, ball, delta=torch.inf)
    assert set(certificate.verdicts) <= {Verdict.ERROR, Verdict.UNSUPPORTED}
    assert all(certificate.messages)
    assert not (certificate.keeps_top(1) | certificate.keeps_sign()).any()
    assert not certificate.robust.any()
    assert not certificate.excludes(torch.full_like(case.x, 1e6), 1.0).any()


def unsupported_is_a_verdict(certifier: ExplanationCertifier) -> None:
    """A model with an operation that nobody can bound is UNSUPPORTED with a message, or is bounded."""
    case, ball = next(_cases(certifier))
    model = nn.Sequential(case.model, _Odd())
    certificate = certifier(model, case.x, case.y, ball, delta=torch.inf)
    for verdict, message in zip(certificate.verdicts, certificate.messages, strict=True):
        assert (verdict is Verdict.UNSUPPORTED) <= bool(message), "UNSUPPORTED without naming the cause"
    if Verdict.UNSUPPORTED in certificate.verdicts:
        assert not (certificate.keeps_top(1) | certificate.keeps_sign()).any()
        assert not certificate.robust.any()
        with pytest.raises(UnsupportedModelError):
            certifier.bounds(model, case.x, case.y, ball, of="logit")


def dtype_and_device_are_kept(certifier: ExplanationCertifier) -> None:
    """float64 works and comes back, and so does every device at hand."""
    for device in ["cpu"] + (["cuda"] if torch.cuda.is_available() else []):
        for dtype in (torch.float32, torch.float64):
            case, ball = next(_cases(certifier))
            case = case.to(dtype, device)
            for of in get_args(Of):
                bounds = certifier.bounds(case.model, case.x, case.y, ball, of=of)
                assert (bounds.dtype, bounds.device) == (dtype, case.x.device)
            assert certifier(case.model, case.x, case.y, ball, delta=0.1).value.dtype == dtype


def wrong_arguments_are_refused(certifier: ExplanationCertifier) -> None:
    """NaN, values outside the clip range, wrong labels, another dtype, `of`, `delta` and `radius` out of range."""
    case, ball = next(_cases(certifier))
    clipped = Linf(eps=0.01, clip=(0.0, 1.0))
    for x, y in unusable_inputs(case):
        with pytest.raises(ArgumentError):
            certifier(case.model, x, y, clipped, delta=0.1)
    for wrong in ({"of": "logits"}, {"delta": -1.0}, {"delta": torch.ones(7)}, {"radius": -0.1}):
        with pytest.raises(ArgumentError):
            certifier(case.model, case.x, case.y, ball, **{"delta": 0.1, **wrong})  # type: ignore[arg-type]


class _Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = x + 0 * torch.special.bessel_j0(x.detach())
        return values


def _cases(certifier: ExplanationCertifier) -> Iterator[tuple[Case, Ball]]:
    """Networks with every ball that the certifier accepts; at least one."""
    accepted = 0
    inside, anywhere = Linf(eps=0.06, clip=(0.0, 1.0)), Linf(eps=0.06, clip=None)
    for make, balls in (
        (mlp_case, (inside, anywhere, L2(eps=0.1, clip=(0.0, 1.0)))),
        (lambda: mlp_case(activation=nn.Tanh), (inside, L1(eps=0.2, clip=(0.0, 1.0)))),
        (lambda: mlp_case(normalised=False), (anywhere,)),
        (cnn_case, (inside,)),
        (linear_case, (anywhere,)),
    ):
        for ball in balls:
            case = make()
            try:
                certifier.bounds(case.model, case.x[:1], case.y[:1], ball, of="logit")
            except (ArgumentError, UnsupportedModelError):
                continue
            accepted += 1
            yield case, ball
    assert accepted, "the certifier bounds none of the small networks on any ball"


def _explained(case: Case, of: Of) -> Explained:
    with evaluating(case.model):
        return Explained.at(case.model, case.x, case.y, of)


def _assert_sound(certifier: ExplanationCertifier, case: Case, ball: Ball, of: Of, what: str) -> None:
    bounds = certifier.bounds(case.model, case.x, case.y, ball, of=of).detach()
    for how, values in adversarial_gradients(case.model, case.x, ball, _explained(case, of)):
        _inside(bounds, values, f"{how}, {what}")


def _inside(bounds: Interval, values: Tensor, what: str) -> None:
    assert_inside(bounds.map(lambda t: t.flatten(1)), values.flatten(2), what)


explanation_certifier_checks = [
    is_frozen_data,
    bounds_contain_the_ball,
    bounds_contain_the_weights,
    value_is_the_gradient,
    statements_survive_samples,
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
"""For `pytest.mark.parametrize("check", explanation_certifier_checks)`; each check takes the certifier."""
