"""The conformance checks of an explanation attack. Each takes it and fails with a sentence that says what is wrong."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from robust_plugins.balls import L1, L2, Ball, Linf
from robust_plugins.errors import ArgumentError
from robust_plugins.explanations import Explained, ExplanationAttack, explanation_certifier
from robust_plugins.explanations.explained import Of
from robust_plugins.testing.any_attack import (
    check_batches,
    check_evaluation_mode,
    check_frozen_data,
    check_seed,
    check_traces,
    unusable_inputs,
)
from robust_plugins.testing.networks import Case, mlp_case

BALLS: tuple[Ball, ...] = (
    Linf(eps=0.1, clip=(0.0, 1.0)),
    L2(eps=0.2, clip=(0.0, 1.0)),
    L1(eps=0.4, clip=None),
)


def is_frozen_data(attack: ExplanationAttack) -> None:
    """Prints its parameters, compares and hashes by them."""
    check_frozen_data(attack)


def results_respect_the_ball(attack: ExplanationAttack) -> None:
    """Every result lies in the ball, and its explanation is the gradient there."""
    case = _case()
    for ball in BALLS:
        for of in get_args(Of):
            found = attack(case.model, case.x, case.y, ball, of=of, seed=0)
            assert ball.contains(found.x_adv, case.x).all(), f"x_adv left the ball {ball}"
            if of == "logit":
                explained = Explained("logit", case.y, nn.functional.one_hot(case.y, 4).to(case.x))
                torch.testing.assert_close(found.gradient, explained.gradient(case.model, found.x_adv))


def something_is_found(attack: ExplanationAttack) -> None:
    """On a smooth network, whose explanation changes everywhere, every sample's explanation is changed."""
    case = _case()
    for ball in BALLS:
        found = attack(case.model, case.x, case.y, ball, seed=0)
        assert (found.deviation > 0).all(), f"nothing was found within {ball}"


def goals_are_pursued(attack: ExplanationAttack) -> None:
    """Top-k sets and targets are as far or near as at x at least, and success is what the threshold says."""
    case, ball = _case(), BALLS[0]
    top = attack(case.model, case.x, case.y, ball, goal="top_k", k=2, seed=0)
    assert top.success is not None
    assert torch.equal(top.success, top.evicted), "success is not that of the k largest features"
    at_x = attack(case.model, case.x, case.y, ball, seed=0).value
    target = torch.zeros_like(case.x)
    near = attack(case.model, case.x, case.y, ball, goal="target", target=target, threshold=0.5, seed=0)
    assert near.distance is not None
    assert near.success is not None
    assert (near.distance <= at_x.flatten(1).norm(dim=1) + 1e-5).all(), "further from the target than x itself"
    assert torch.equal(near.success, near.distance <= 0.5), "success is not that of the threshold"


def certificates_are_not_broken(attack: ExplanationAttack) -> None:
    """Every gradient that is found lies inside proved bounds."""
    case = _case()
    for ball in BALLS:
        bounds = explanation_certifier("interval:relaxed").bounds(case.model, case.x, case.y, ball, of="logit")
        found = attack(case.model, case.x, case.y, ball, of="logit", seed=0)
        assert bounds.contains(found.gradient, tolerance=1e-5).all(), f"a gradient outside proved bounds, {ball}"


def model_is_left_as_found(attack: ExplanationAttack) -> None:
    """Modes, gradients, flags, buffers, inputs and random states are as before, also under no_grad."""
    check_traces(attack, _case(), BALLS[0])


def computed_in_evaluation_mode(attack: ExplanationAttack) -> None:
    """A model in training mode, with dropout, gives the same result as in evaluation mode."""
    check_evaluation_mode(attack, _case(), BALLS[0])


def seed_reproduces(attack: ExplanationAttack) -> None:
    """The same seed gives the same result, whatever the global random states are; the result states its seed."""
    check_seed(attack, _case(), BALLS[0])


def dtype_and_device_are_kept(attack: ExplanationAttack) -> None:
    """float64 works and comes back, and so does every device at hand."""
    for device in ["cpu"] + (["cuda"] if torch.cuda.is_available() else []):
        for dtype in (torch.float32, torch.float64):
            case = _case().to(dtype, device)
            found = attack(case.model, case.x, case.y, BALLS[0], seed=0)
            for name in ("x_adv", "gradient", "deviation"):
                value = getattr(found, name)
                assert (value.dtype, value.device) == (dtype, case.x.device), f"{name} came back as {value.dtype}"


def any_batch_works(attack: ExplanationAttack) -> None:
    """Empty batches, single samples, chunks and one eps per sample."""
    check_batches(attack, _case(), BALLS[0])


def wrong_arguments_are_refused(attack: ExplanationAttack) -> None:
    """NaN, values outside the clip range, labels out of range, another dtype, an unknown goal."""
    case, ball = _case(), BALLS[0]
    for x, y in unusable_inputs(case):
        with pytest.raises(ArgumentError):
            attack(case.model, x, y, ball)
    with pytest.raises(ArgumentError):
        attack(case.model, case.x, case.y, ball, goal="target")


def _case() -> Case:
    return mlp_case(activation=nn.Tanh)


explanation_attack_checks = [
    is_frozen_data,
    results_respect_the_ball,
    something_is_found,
    goals_are_pursued,
    certificates_are_not_broken,
    model_is_left_as_found,
    computed_in_evaluation_mode,
    seed_reproduces,
    dtype_and_device_are_kept,
    any_batch_works,
    wrong_arguments_are_refused,
]
"""For `pytest.mark.parametrize("check", explanation_attack_checks)`; each check takes the attack."""
