"""`compare_explanations`: attacks and bounds on the same explanations, and whether they contradict each other."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.brackets.answers import NO_ANSWER
from robust_plugins.brackets.balls_comparison import BallsComparison
from robust_plugins.brackets.components import resolved, with_bar
from robust_plugins.brackets.explanation_comparison import (
    ExplanationComparison,
    attacked_of,
    certified_of,
)
from robust_plugins.brackets.explanation_crossings import explanation_crossings
from robust_plugins.brackets.explanation_row import ExplanationRow
from robust_plugins.brackets.observing import observed
from robust_plugins.decisions.results import Verdict
from robust_plugins.errors import ArgumentError
from robust_plugins.explanations import (
    ExplanationAttack,
    ExplanationCertifier,
)
from robust_plugins.explanations.attack import evicts, relative_deviation
from robust_plugins.explanations.explained import Of, explained_by
from robust_plugins.harness.batches import Inputs, Labels, as_batch
from robust_plugins.harness.call import calling, ordinary
from robust_plugins.harness.component import chunks
from robust_plugins.harness.evaluation import checked_seed
from robust_plugins.harness.failures import told
from robust_plugins.harness.wrappers import Model
from robust_plugins.registry.information import Kind

Each = str | ExplanationAttack | ExplanationCertifier
Chosen = Iterable[Each] | Mapping[str, Each] | Each
"""What is run: names and components, one alone, or several under names of one's own."""


@overload
def compare_explanations(
    model: Model, x: Inputs, y: Labels | None, ball: Ball, components: Chosen = ..., *, of: Of = ..., k: int = ...,
    delta: float | None = ..., radius: float = ..., seed: int | None = ..., progress: bool = ...,
) -> ExplanationComparison: ...  # fmt: skip


@overload
def compare_explanations(
    model: Model, x: Inputs, y: Labels | None, ball: Sequence[Ball], components: Chosen = ..., *, of: Of = ...,
    k: int = ..., delta: float | None = ..., radius: float = ..., seed: int | None = ..., progress: bool = ...,
) -> BallsComparison[ExplanationComparison]: ...  # fmt: skip


def compare_explanations(
    model: Model,
    x: Inputs,
    y: Labels | None,
    ball: Ball | Sequence[Ball],
    components: Chosen = ("gradient:corner-pgd", "interval:relaxed"),
    *,
    of: Of = "logit",
    k: int = 5,
    delta: float | None = None,
    radius: float = 0.0,
    seed: int | None = None,
    progress: bool = False,
) -> ExplanationComparison | BallsComparison[ExplanationComparison]:
    """Runs attacks and certifiers of explanations on the same samples and holds their answers together.

    `x` and `y` are tensors or numpy arrays, or a TensorDataset or DataLoader of pairs and None. `ball` is one, or a
    list of them, which gives a comparison for each ball and holds them together. `components` are registered names,
    with parameters where wanted, or components themselves. Each attack runs for
    three goals: the largest deviation, and other features than the most important one and the `k` most important ones
    (at most as many as there are features). `y`, `of` and `radius` say what is explained, as for
    `rp.ExplanationCertifier`; with `delta`, the width allowed to each feature, the share of robust samples is compared
    too. All attacks get the same `seed`; None draws one, which the result states. A component that raises is a row with
    its error; the others go on. `progress` shows a bar on standard error. Observers (`on_run_start`, `on_record`,
    `on_run_end`) are told.

    Raises ArgumentError for an unusable model or ball and an unusable or empty batch, UnknownNameError for an unknown
    component.
    """
    samples, labels = as_batch(x, y, model)
    seed = checked_seed(seed)
    components = list(components) if isinstance(components, Iterator) else components  # read once for each ball
    compared = partial(
        _compared, model, samples, labels, components=components, of=of, k=k, delta=delta, radius=radius, seed=seed,
        progress=progress,
    )  # fmt: skip
    if isinstance(ball, Ball) or not isinstance(ball, Sequence):  # what is neither is refused by the call
        return compared(ball=ball)
    if not ball:
        raise ArgumentError("ball", "an empty list", accepted="one ball, or a list of one or more", hint="Name a ball.")
    return BallsComparison(tuple(compared(ball=one) for one in ball))


def _compared(
    model: Model,
    samples: Tensor,
    labels: Tensor,
    *,
    ball: Ball,
    components: Chosen,
    of: Of,
    k: int,
    delta: float | None,
    radius: float,
    seed: int,
    progress: bool,
) -> ExplanationComparison:
    named = resolved(
        components, {Kind.EXPLANATION_ATTACK: ExplanationAttack, Kind.EXPLANATION_CERTIFIER: ExplanationCertifier}
    )
    size = min((c.batch_size for _, c in named if c.batch_size is not None), default=None)
    with calling(model, samples, ball) as call:
        model, points = call.model, call.x.detach()
        judged, explained = explained_by(model, points, ordinary(labels), of, size=size)
        parts = [explained[part].gradient(judged, points[part]) for part in chunks(len(samples), size)]
        value = torch.cat([points[:0], *parts])
    if not len(samples):
        raise ArgumentError("x", "empty", accepted="one sample or more", hint="Nothing can be compared.")
    if k < 1:
        raise ArgumentError("k", k, accepted="an integer of at least 1", hint="It counts features.")
    task = _Task(model, samples, labels, ball, of, min(k, samples[0].numel()), delta, radius, seed)
    rows: list[ExplanationRow] = []
    with observed([name for name, _ in named], ball, seed=seed, samples=len(samples)) as tell:
        for name, component in with_bar(named, progress):
            rows.append(task.row(name, component))
            for result in rows[-1].results:
                tell(name, result)
    found = tuple(rows)
    return ExplanationComparison(
        samples,
        labels,
        ball,
        of,
        task.k,
        delta,
        radius,
        seed,
        value,
        found,
        explanation_crossings(attacked_of(found), certified_of(found), task.k),
    )


@dataclass(frozen=True, eq=False)
class _Task:
    model: nn.Module
    x: Tensor
    y: Tensor
    ball: Ball
    of: Of
    k: int
    delta: float | None
    radius: float
    seed: int

    def row(self, name: str, component: ExplanationAttack | ExplanationCertifier) -> ExplanationRow:
        attack = isinstance(component, ExplanationAttack)
        kind = Kind.EXPLANATION_ATTACK if attack else Kind.EXPLANATION_CERTIFIER
        start = time.perf_counter()
        try:
            return self._attacked(name, component) if attack else self._certified(name, component)  # type: ignore[arg-type]
        except (Exception, SystemExit) as error:  # one backend's failure must not lose the others' results
            seconds = time.perf_counter() - start
            return ExplanationRow(name, kind, None, None, None, None, (), seconds, told(error), error)

    def _attacked(self, name: str, attack: ExplanationAttack) -> ExplanationRow:
        goals: list[dict[str, Any]] = [
            {"goal": "deviation", "k": self.k},
            {"goal": "top_k", "k": 1},
            {"goal": "top_k", "k": self.k},
        ]
        results = tuple(
            attack(self.model, self.x, self.y, self.ball, of=self.of, radius=self.radius, seed=self.seed, **goal)
            for goal in (goals if self.k > 1 else goals[:2])
        )
        seconds = sum(result.seconds for result in results)
        if bool(results[0].deviation.isnan().all()):
            return ExplanationRow(name, Kind.EXPLANATION_ATTACK, None, None, None, None, results, seconds)
        value, found = results[0].value, torch.stack([result.gradient for result in results])
        each = found.flatten(0, 1), value.repeat(len(results), *[1] * (value.dim() - 1))
        both = torch.cat((found, value.unsqueeze(0)))
        width = both.amax(0) - both.amin(0)  # all of these are explanations of the ball
        return ExplanationRow(
            name,
            Kind.EXPLANATION_ATTACK,
            relative_deviation(*each).view(len(results), -1).amax(0),
            ~evicts(*each, 1).view(len(results), -1).any(0),
            ~evicts(*each, self.k).view(len(results), -1).any(0),
            None if self.delta is None else (width <= self.delta).flatten(1).all(1),
            results,
            seconds,
        )

    def _certified(self, name: str, certifier: ExplanationCertifier) -> ExplanationRow:
        delta = math.inf if self.delta is None else self.delta
        found = certifier(self.model, self.x, self.y, self.ball, of=self.of, radius=self.radius, delta=delta)
        if all(verdict in NO_ANSWER for verdict in found.verdicts):
            return ExplanationRow(name, Kind.EXPLANATION_CERTIFIER, None, None, None, None, (found,), found.seconds)
        robust = torch.tensor([v is Verdict.CERTIFIED for v in found.verdicts], dtype=torch.bool, device=self.x.device)
        return ExplanationRow(
            name,
            Kind.EXPLANATION_CERTIFIER,
            found.deviation,
            found.keeps_top(1),
            found.keeps_top(self.k),
            None if self.delta is None else robust,
            (found,),
            found.seconds,
        )
