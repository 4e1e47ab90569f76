"""The conformance checks of an explanation attack. Each takes it and fails with a sentence that says what is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from robust_plugins.balls import L1, L2, Ball, Linf
from robust_plugins.errors import ArgumentError
from robust_plugins.explanations import Explained, ExplanationAttack, explanation_certifier
from robust_plugins.explanations.explained import Of
from robust_plugins.testing.networks import Case, mlp_case
from robust_plugins.testing.traces import leaves_no_trace

BALLS: tuple[Ball, ...] = (
    Linf(eps=0.1, clip=(0.0, 1.0)),
    L2(eps=0.2, clip=(0.0, 1.0)),
    L1(eps=0.4, clip=None),
)


def is_frozen_data(attack: ExplanationAttack) -> None:
    """Prints its parameters, compares and hashes by them."""
    assert replace(attack) == attack
    assert hash(replace(attack)) == hash(attack)
    assert type(attack).__name__ in repr(attack)


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
    case, ball = _case(), BALLS[0]
    with leaves_no_trace(case):
        attack(case.model, case.x, case.y, ball, seed=3)
    with torch.no_grad(), leaves_no_trace(case):
        attack(case.model, case.x, case.y, ball)


def computed_in_evaluation_mode(attack: ExplanationAttack) -> None:
    """A model in training mode, with dropout, gives the same result as in evaluation mode."""
    case, ball = _case(), BALLS[0]
    model = nn.Sequential(case.model, nn.Dropout(0.5))
    in_evaluation = attack(model.eval(), case.x, case.y, ball, seed=0)
    in_training = attack(model.train(), case.x, case.y, ball, seed=0)
    assert torch.equal(in_evaluation.x_adv, in_training.x_adv), "the model's mode changes the result"


def seed_reproduces(attack: ExplanationAttack) -> None:
    """The same seed gives the same result, whatever the global random states are; the result states its seed."""
    case, ball = _case(), BALLS[0]
    first = attack(case.model, case.x, case.y, ball)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 (the global state is what backends draw from)
    again = attack(case.model, case.x, case.y, ball, seed=first.seed)
    assert torch.equal(first.x_adv, again.x_adv), "the stated seed does not reproduce the result"


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
    case, ball = _case(), BALLS[0]
    assert attack(case.model, case.x[:0], case.y[:0], ball, seed=0).x_adv.shape == (0, 5)
    assert attack(case.model, case.x[:1], case.y[:1], ball, seed=0).x_adv.shape == (1, 5)
    chunked = replace(attack, batch_size=4)(case.model, case.x, case.y, ball, seed=0)
    assert ball.contains(chunked.x_adv, case.x).all()
    radii = replace(ball, eps=[0.0, 0.01, 0.02, 0.05, 0.1, 0.2])
    each = attack(case.model, case.x, case.y, radii, seed=0)
    assert radii.contains(each.x_adv, case.x).all(), "a sample left its own eps"
    assert torch.equal(each.x_adv[0], case.x[0]), "eps = 0 moved a sample"


def wrong_arguments_are_refused(attack: ExplanationAttack) -> None:
    """NaN, values outside the clip range, labels out of range, another dtype, an unknown goal."""
    case, ball = _case(), BALLS[0]
    for x, y in (
        (torch.full_like(case.x, torch.nan), case.y),
        (case.x + 2, case.y),
        (case.x, case.y + 4),
        (case.x.double(), case.y),
    ):
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
