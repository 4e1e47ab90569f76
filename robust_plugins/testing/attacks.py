"""The conformance checks of an attack. Each takes the attack and fails with a sentence that says what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from robust_plugins.balls import L1, L2, Ball, Linf
from robust_plugins.decisions.attack import Attack
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.evaluation import evaluating
from robust_plugins.testing.any_attack import (
    check_batches,
    check_evaluation_mode,
    check_frozen_data,
    check_seed,
    check_traces,
    unusable_inputs,
)
from robust_plugins.testing.networks import Case, cnn_case, mlp_case


def is_frozen_data(attack: Attack) -> None:
    """Prints its parameters, compares and hashes by them."""
    check_frozen_data(attack)


def candidates_respect_the_ball(attack: Attack) -> None:
    """Candidates of `perturb` lie in the ball and its clip range, before the public call projects them."""
    tried = 0
    for case in (mlp_case(), cnn_case()):
        for ball in _balls(case):
            try:
                with evaluating(case.model, seed=0, freeze=True):
                    z = attack.perturb(case.model, case.x, case.y, ball, targeted=False)
            except ArgumentError:
                continue  # a norm that the attack does not handle
            tried += 1
            assert z.shape == case.x.shape, f"perturb returned shape {tuple(z.shape)} for {tuple(case.x.shape)}"
            inside = ball.contains(z.detach(), case.x, tolerance=1e-5)
            assert inside.all(), f"perturb left the ball {ball} on samples {(~inside).nonzero().flatten().tolist()}"
    assert tried, "the attack handles neither Linf, L2 nor L1 balls"


def results_respect_the_ball(attack: Attack) -> None:
    """Every result lies in the ball to rounding, and `distance` is its distance."""
    for case in (mlp_case(), cnn_case()):
        for ball in _balls(case):
            try:
                result = attack(case.model, case.x, case.y, ball, seed=0)
            except ArgumentError:
                continue
            assert ball.contains(result.x_adv, case.x).all(), f"x_adv left the ball {ball}"
            torch.testing.assert_close(result.distance, ball.distance(result.x_adv, case.x))


def success_is_against_the_label(attack: Attack) -> None:
    """Success, logits and loss are those of the model on `x_adv`; a misclassified sample counts as a success."""
    for case in (mlp_case(), cnn_case()):
        result = attack(case.model, case.x, case.y, _ball(case, attack), seed=0)
        with torch.no_grad():
            logits = case.model(result.x_adv)
        torch.testing.assert_close(result.logits, logits)
        assert torch.equal(result.success, result.logits.argmax(1) != case.y), "success is not that of its logits"
        assert result.success[-1], "the last sample is misclassified already, so the attack has succeeded"
        loss = nn.functional.cross_entropy(result.logits, case.y, reduction="none")
        torch.testing.assert_close(result.loss, loss)


def never_worse_than_the_input(attack: Attack) -> None:
    """The attack keeps `x` where it found nothing better: the loss never falls where the decision stays."""
    for case in (mlp_case(), cnn_case()):
        with torch.no_grad():
            logits = case.model(case.x)
        before = nn.functional.cross_entropy(logits, case.y, reduction="none")
        result = attack(case.model, case.x, case.y, _ball(case, attack), seed=0)
        same = result.success == (logits.argmax(1) != case.y)
        assert (result.loss[same] >= before[same] - 1e-6).all(), "the attack lowered the loss"
        assert result.success[logits.argmax(1) != case.y].all(), "the attack corrected a misclassified sample"


def targets_are_reached_or_refused(attack: Attack) -> None:
    """`target=` works in all its forms, or is refused with an ArgumentError."""
    case = mlp_case()
    ball = _ball(case, attack)
    wrong = (case.y + 1) % 4
    for target in (wrong, "random", "least_likely"):
        try:
            result = attack(case.model, case.x, case.y, ball, target=target, seed=0)
        except ArgumentError:
            return
        assert result.target is not None
        assert (result.target != case.y).all(), "a target equals the label"
        assert torch.equal(result.success, result.logits.argmax(1) == result.target), "success is not the target's"


def model_is_left_as_found(attack: Attack) -> None:
    """Modes, gradients, flags, buffers, inputs and random states are as before, also under no_grad."""
    for case in (mlp_case(), cnn_case()):
        check_traces(attack, case, _ball(case, attack))


def computed_in_evaluation_mode(attack: Attack) -> None:
    """A model in training mode, with dropout, gives the same result as in evaluation mode."""
    case = mlp_case()
    check_evaluation_mode(attack, case, _ball(case, attack))


def seed_reproduces(attack: Attack) -> None:
    """The same seed gives the same result, whatever the global random states are; the result states its seed."""
    for case in (mlp_case(), cnn_case()):
        check_seed(attack, case, _ball(case, attack))


def dtype_and_device_are_kept(attack: Attack) -> None:
    """float64 works and comes back, and so does every device at hand."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for device in devices:
        for dtype in (torch.float32, torch.float64):
            case = mlp_case().to(dtype, device)
            result = attack(case.model, case.x, case.y, _ball(case, attack), seed=0)
            for name in ("x_adv", "logits", "distance", "loss"):
                value = getattr(result, name)
                assert value.dtype == dtype, f"{name} came back as {value.dtype} for {dtype}"
                assert value.device == case.x.device, f"{name} came back on {value.device}"


def any_batch_works(attack: Attack) -> None:
    """Empty batches, single samples, chunks and one eps per sample."""
    case = mlp_case()
    check_batches(attack, case, _ball(case, attack))


def eps_sweep_gives_one_result_each(attack: Attack) -> None:
    """`eps=[...]` returns one result per radius, each inside its own ball."""
    case = mlp_case()
    ball = _ball(case, attack)
    results = attack(case.model, case.x, case.y, ball, eps=[0.0, 0.1, 0.3], seed=0)
    assert len(results) == 3
    for eps, result in zip([0.0, 0.1, 0.3], results, strict=True):
        assert replace(ball, eps=eps).contains(result.x_adv, case.x).all()


def wrong_arguments_are_refused(attack: Attack) -> None:
    """NaN, values outside the clip range, labels out of range, dtype mismatch, a model that returns a tuple."""
    case = mlp_case()
    ball = _ball(case, attack)
    for x, y in unusable_inputs(case):
        with pytest.raises(ArgumentError):
            attack(case.model, x, y, ball)
    with pytest.raises(ArgumentError):
        attack(_Tuple(case.model), case.x, case.y, ball)


class _Tuple(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.model(x),)


def _balls(case: Case) -> list[Ball]:
    eps = [0.02 * (i + 1) for i in range(len(case.x))]
    return [
        kind(eps=e, clip=clip)
        for kind, scale in ((Linf, 1), (L2, 3), (L1, 8))
        for e in (0.1 * scale, [scale * v for v in eps])
        for clip in ((0.0, 1.0), None)
    ]


def _ball(case: Case, attack: Attack) -> Ball:
    """The case's ball, or the L2 or L1 one where the attack handles no L-infinity ball."""
    for ball in (case.ball, L2(eps=0.3, clip=(0.0, 1.0)), L1(eps=0.8, clip=(0.0, 1.0))):
        try:
            with evaluating(case.model, seed=0, freeze=True):
                attack.perturb(case.model, case.x[:1], case.y[:1], ball, targeted=False)
        except ArgumentError:
            continue
        return ball
    raise AssertionError("the attack handles neither Linf, L2 nor L1 balls")


attack_checks = [
    is_frozen_data,
    candidates_respect_the_ball,
    results_respect_the_ball,
    success_is_against_the_label,
    never_worse_than_the_input,
    targets_are_reached_or_refused,
    model_is_left_as_found,
    computed_in_evaluation_mode,
    seed_reproduces,
    dtype_and_device_are_kept,
    any_batch_works,
    eps_sweep_gives_one_result_each,
    wrong_arguments_are_refused,
]
"""For `pytest.mark.parametrize("check", attack_checks)`; each check takes the attack."""
