"""`compare_decisions`: attacks and certifiers on the same classifier and inputs, and whether they contradict."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.brackets.answers import NO_ANSWER
from robust_plugins.brackets.comparison import Comparison, Row, share
from robust_plugins.brackets.components import Components, resolved, with_bar
from robust_plugins.brackets.crossing import Crossing, crossings
from robust_plugins.brackets.observing import observed
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.attacks.health import Ran, health
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.decisions.results import AttackResult, Certificate
from robust_plugins.harness.arguments import as_labels, decided
from robust_plugins.harness.call import calling, ordinary
from robust_plugins.harness.component import ERRORS, chunks
from robust_plugins.harness.evaluation import checked_seed, evaluation_error
from robust_plugins.harness.failures import told
from robust_plugins.harness.wrappers import Model
from robust_plugins.registry.information import Kind

ROUNDING = 1e-6
"""Relative to the logits' scale: how far an attack's margin may lie below a proved one before it is a contradiction.
The margins of both sides are computed in floating point; the model's rounding error, measured at x and at the point
that the attack found, is added; before a contradiction is reported it is measured at more points."""

CLOSELY = 16
"""At how many points more rounding is measured where an attack and a certificate seem to contradict each other."""


def compare_decisions(
    model: Model,
    x: Float[Tensor, "batch *features"],
    y: Integer[Tensor, " batch"],
    ball: Ball,
    components: Components,
    *,
    seed: int | None = None,
    progress: bool = False,
) -> Comparison:
    """Does what `compare` says of classes."""
    named = resolved(components, {Kind.ATTACK: Attack, Kind.CERTIFIER: Certifier})
    size = min((c.batch_size for _, c in named if c.batch_size is not None), default=None)
    with torch.no_grad(), calling(model, x, ball) as call:
        model = call.model
        judged, clean = decided(model, call.x, size=size)
        y = as_labels(ordinary(y), call.x, clean.shape[1])
        rounding = _errors(judged, call.x, clean, size)
    undecided = clean.isnan().any(1)
    correct = (clean.argmax(1) == y) & ~undecided
    seed = checked_seed(seed)
    rows: list[Row] = []
    errors: dict[str, Tensor] = {}
    with observed([name for name, _ in named], ball, seed=seed, samples=len(x)) as tell:
        for name, component in with_bar(named, progress):
            row = _run(name, component, model, x, y, ball, correct, seed)
            rows.append(row)
            if isinstance(row.result, AttackResult):
                with torch.no_grad(), calling(judged, row.result.x_adv) as call:
                    there = _errors(call.model, call.x, row.result.logits, size)
                errors[name] = torch.maximum(rounding, there.nan_to_num(nan=0.0))
            if row.result is not None:
                tell(name, row.result)
    rows = _with_health(rows, [component for _, component in named], judged, x, y, ball, correct, seed)
    found = _crossings(rows, y, errors)
    if found:  # rounding may have been measured too low where it cancelled by luck
        crossed = torch.zeros_like(correct)
        crossed[[c.sample for c in found if c.sample is not None]] = True
        with torch.no_grad(), calling(judged, x) as call:
            wider = _errors(call.model, call.x, clean, size, where=crossed, neighbours=CLOSELY)
        found = _crossings(rows, y, {name: torch.maximum(e, wider) for name, e in errors.items()})
    return Comparison(x, y, ball, seed, correct, tuple(rows), found, int(undecided.sum()))


def _run(
    name: str,
    component: Attack | Certifier,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: Ball,
    correct: Tensor,
    seed: int,
) -> Row:
    kind = Kind.ATTACK if isinstance(component, Attack) else Kind.CERTIFIER
    start = time.perf_counter()
    try:
        result: AttackResult | Certificate
        if isinstance(component, Attack):
            result = component(model, x, y, ball, seed=seed)
        else:
            result = component(model, x, y, ball)
    except (Exception, SystemExit) as error:  # one backend's failure must not lose the others' results
        return Row(name, kind, None, time.perf_counter() - start, None, told(error), exception=error)
    return Row(name, kind, _accuracy(result, correct), result.seconds, result)


def _with_health(
    rows: Sequence[Row], components: Sequence[Attack | Certifier], model: nn.Module, x: Tensor, y: Tensor, ball: Ball,
    correct: Tensor, seed: int,
) -> list[Row]:  # fmt: skip
    ran = [
        Ran(row.name, component, row.result)
        for row, component in zip(rows, components, strict=True)
        if isinstance(component, Attack) and isinstance(row.result, AttackResult)
    ]
    try:
        found = health(model, x, y, ball, ran, correct, seed=seed)
    except Exception as error:  # the numbers are there, and are not lost for what could not be said of them
        found = {one.name: (f"its health could not be checked: {type(error).__name__}: {error}",) for one in ran}
    return [replace(row, health=found.get(row.name, ())) for row in rows]


def _errors(
    model: nn.Module, x: Tensor, logits: Tensor, size: int | None, *, where: Tensor | None = None, neighbours: int = 0
) -> Tensor:
    parts = [
        evaluation_error(
            model, x[part], logits[part], where=None if where is None else where[part], neighbours=neighbours
        )
        for part in chunks(len(x), size)
    ]
    return torch.cat([logits.new_empty(0), *parts])


def _accuracy(result: AttackResult | Certificate, correct: Tensor) -> float | None:
    if isinstance(result, AttackResult):
        return share(correct & ~result.success)
    # A wrong decision on x itself is falsified before any bound: that is no answer of the certifier.
    asked = [v for v, right in zip(result.verdicts, correct.tolist(), strict=True) if right or v in NO_ANSWER]
    silent = bool(asked) and all(verdict in NO_ANSWER for verdict in asked)
    return None if silent else share(result.certified)


def _crossings(rows: Sequence[Row], y: Tensor, errors: Mapping[str, Tensor]) -> tuple[Crossing, ...]:
    found: list[Crossing] = []
    for attack in rows:
        if not isinstance(attack.result, AttackResult):
            continue
        logits = attack.result.logits
        others = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
        achieved = logits.gather(1, y.unsqueeze(1)).squeeze(1) - others
        slack = ROUNDING * logits.abs().amax(1) + ERRORS * errors[attack.name]
        for certifier in rows:
            if isinstance(certifier.result, Certificate):
                proof = certifier.result
                # No rounding excuses another decision where the decision itself is certified.
                least = torch.where(proof.certified & attack.result.success, 0.0, slack)
                found += crossings(
                    attack.name, certifier.name, "the margin", achieved, proof.margin, side="at least", slack=least
                )
    return tuple(found)
