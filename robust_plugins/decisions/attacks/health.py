"""Signs that an attack's number flatters the model: what is looked for beside every attack of a comparison.

Athalye et al. 2018, "Obfuscated gradients give a false sense of security", section 3.1; Carlini et al. 2019, "On
evaluating adversarial robustness".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from robust_plugins.balls import L1, L2, Ball, Linf
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.attacks.diagnosis import SAMPLES, Diagnosis, diagnosed
from robust_plugins.decisions.attacks.portfolio import Strongest
from robust_plugins.decisions.cascade import chosen
from robust_plugins.decisions.results import AttackResult
from robust_plugins.errors import RobustPluginsError
from robust_plugins.harness.arguments import decided, logits_of
from robust_plugins.harness.call import Call, calling
from robust_plugins.harness.guard import TOLERATED

NOISY = 64
"""Random points are drawn around so many samples at most,"""

DRAWS = 4
"""so many around each."""

RERUN = 32
"""An attack is run again at so many samples at most, half of the batch or fewer,"""

PART = 20
"""with one step for so many of its own."""

SMALLER = 0.5
"""One of these runs is in a ball of so large a part of the radius, which the ball itself contains."""


@dataclass(frozen=True, eq=False)
class Ran:
    """An attack of a comparison, with what it found."""

    name: str
    attack: Attack
    result: AttackResult


def health(
    model: nn.Module,
    x: Float[Tensor, "batch *features"],
    y: Integer[Tensor, " batch"],
    ball: Ball,
    ran: Sequence[Ran],
    correct: Bool[Tensor, " batch"],
    *,
    seed: int,
) -> dict[str, tuple[str, ...]]:
    """For each attack by name, the reasons to doubt its number, in sentences; none for a healthy one.

    `correct` are the samples that `model` classifies as `y`; `seed` that of the attacks. Looked for, at a few samples
    evenly spread over the batch:

    - gradients that are zero, or absent; for attacks on cross-entropy, that its gradient is rounding at most samples;
    - random corners of the ball that break what the attack did not;
    - samples that an attack without gradients broke, and one with gradients did not;
    - attacks with a parameter `steps` are run again with a twentieth of them: in the ball, in one of half the radius,
      and in one that holds every input: success that does not rise with steps, or with the radius, says little about
      the model.

    Most of it costs a few evaluations for the whole comparison, the last a sixth of the attack or less. Of a model that
    draws at random only the gradients are looked at: what it confirms is counted by the attack itself, whose notes say
    so.
    """
    found: dict[str, list[str]] = {one.name: [] for one in ran}
    if not ran or not bool(correct.any()):
        return dict.fromkeys(found, ())
    at = correct.nonzero().flatten()
    sizes = [one.attack.batch_size for one in ran if one.attack.batch_size is not None]
    size = min(sizes, default=None)
    with calling(model, x, ball, seed=seed, freeze=True) as call:
        with torch.no_grad():
            judged, _ = decided(call.model, x[at[:1]])
        state = diagnosed(judged, call.x[at], y[at], samples=min(SAMPLES, size or SAMPLES))
        drawn = _spread(at, NOISY)
        noisy = _broken_by_noise(judged, call.x[drawn], y[drawn], chosen(ball, drawn), size)
        for one in ran:
            says = found[one.name]
            says += _of_gradients(one.attack, state)
            if state.random:  # one evaluation more is no measure of claims that several have confirmed
                continue
            missed = int((noisy & ~one.result.success[drawn]).sum())
            if missed:
                says.append(
                    f"{DRAWS} random corners of the ball break {missed} of {len(drawn)} samples that it does not"
                )
            if not one.attack.black_box:
                says += _of_rivals(one, ran, correct)
                says += _of_reruns(one, call, judged, call.x, y, ball, _spread(at, min(RERUN, (len(x) + 1) // 2)))
        call.check("the attacks' health checks", tolerated=TOLERATED)
    return {name: tuple(says) for name, says in found.items()}


def _of_gradients(attack: Attack, state: Diagnosis) -> list[str]:
    if attack.black_box or isinstance(attack, Strongest):  # which looks for itself
        return []
    says = []
    through = "; rp:auto passes them straight through roundings" if state.passable else ""
    if not state.differentiable:
        says.append(f"the model's decision has no gradient by its input{through}")
    elif state.flat:
        says.append(f"gradients are zero at {state.flat} of {state.samples} samples{through}")
    if 2 * state.saturated > state.samples and getattr(attack, "loss", "cross_entropy") in ("cross_entropy", "ce"):
        says.append(
            f"cross-entropy saturates at {state.saturated} of {state.samples} samples, where its gradient is rounding; "
            "rp:margin-pgd and rp:auto raise the margin"
        )
    return says


def _of_rivals(one: Ran, ran: Sequence[Ran], correct: Tensor) -> list[str]:
    says = []
    for other in ran:
        if other.attack.black_box:
            missed = int((other.result.success & ~one.result.success & correct).sum())
            if missed:
                says.append(f"{other.name}, without gradients, breaks {missed} samples that it does not")
    return says


def _of_reruns(one: Ran, call: Call, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, at: Tensor) -> list[str]:
    steps = getattr(one.attack, "steps", None)
    if not isinstance(steps, int) or steps < PART or not ball.largest or not len(at):
        return []
    says = []
    with suppress(RobustPluginsError):  # an attack that takes no fewer steps, or no wider ball, is not run again
        short = cast(Attack, replace(cast(Any, one.attack), steps=steps // PART))
        full = one.result.success[at]
        few = _success(short, call, model, x[at], y[at], chosen(ball, at))
        lost = int((few & ~full).sum())
        if lost > len(at) // 10:
            says.append(f"in {steps // PART} steps it breaks {lost} of {len(at)} samples that it does not in {steps}")
        inner = _success(short, call, model, x[at], y[at], chosen(ball, at).scaled(SMALLER))
        lost = int((inner & ~full).sum())
        if lost > len(at) // 10:
            says.append(f"in half the radius it breaks {lost} of {len(at)} samples that it does not in the whole")
        if not bool(full.all()) and isinstance(ball, Linf | L2 | L1):  # others may hold features that never move
            every = _success(short, call, model, x[at], y[at], _everything(ball, x[at]))
            if int(every.sum()) <= max(int(full.sum()), len(at) // 4):
                says.append(
                    f"in a ball that holds every input it breaks {int(every.sum())} of {len(at)} samples in "
                    f"{steps // PART} steps, where all must fall"
                )
    return says


def _success(attack: Attack, call: Call, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    z = attack._candidates(call, model, x, y, ball, targeted=False).candidates
    with torch.no_grad():
        logits = logits_of(model, z, size=attack.batch_size)
    return (logits.argmax(1) != y) & ~logits.isnan().any(1)


def _everything(ball: Ball, x: Tensor) -> Ball:
    """The ball of a radius that reaches every input, or without a clip range far beyond the present one."""
    dims = max(1, x[0].numel())
    if ball.clip is None:
        return ball.scaled(100)
    across = ball.clip[1] - ball.clip[0]
    times = math.sqrt(dims) if isinstance(ball, L2) else dims if isinstance(ball, L1) else 1
    return replace(ball, eps=across * times)


@torch.no_grad()
def _broken_by_noise(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, size: int | None) -> Tensor:
    broken = torch.zeros_like(y, dtype=torch.bool)
    for _ in range(DRAWS):
        logits = logits_of(model, ball.sample(x, 1, draw="corner")[0], size=size)
        broken |= (logits.argmax(1) != y) & ~logits.isnan().any(1)
    return broken


def _spread(at: Tensor, most: int) -> Tensor:
    """At most so many of these indices, evenly spread."""
    steps = min(most, len(at))
    return at[torch.linspace(0, len(at) - 1, steps, device=at.device).round().long()] if steps else at[:0]
