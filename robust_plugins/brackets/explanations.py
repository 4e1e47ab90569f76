"""`compare_explanations`: attacks and bounds on the same explanations, and whether they contradict each other."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.brackets.decisions import with_bar
from robust_plugins.brackets.explanation_table import explanation_conclusion, explanation_table
from robust_plugins.brackets.observing import observed
from robust_plugins.brackets.table import rendered
from robust_plugins.decisions.results import Verdict
from robust_plugins.errors import ArgumentError
from robust_plugins.explanations import (
    Explained,
    ExplanationAttack,
    ExplanationAttackResult,
    ExplanationCertificate,
    ExplanationCertifier,
)
from robust_plugins.explanations.attack import evicts, relative_deviation
from robust_plugins.explanations.explained import Of
from robust_plugins.harness.arguments import check_inputs
from robust_plugins.harness.evaluation import evaluating, fresh_seed
from robust_plugins.registry.information import Kind
from robust_plugins.registry.registry import registry

ROUNDING = 1e-5
"""Relative to the largest bound of a sample: how far an explanation that was found may leave the proved bounds before
it is a contradiction. Both are computed in floating point."""


@dataclass(frozen=True, eq=False)
class ExplanationRow:
    """What one component found on all samples, or why it failed: for each sample an end of the bracket.

    An attack's are what happened, a certifier's what is proved; None where the component failed.
    """

    name: str
    kind: Kind
    deviation: Float[Tensor, " batch"] | None
    """The relative deviation that was reached, or that is proved to be the largest."""
    keeps_top_1: Bool[Tensor, " batch"] | None
    """Whether the most important feature has withstood, or is proved to stay the most important one."""
    keeps_top_k: Bool[Tensor, " batch"] | None
    """The same for the set of the k most important features."""
    robust: Bool[Tensor, " batch"] | None
    """Whether every feature's width was, or is proved to be, at most delta. None also where no delta was given."""
    results: tuple[ExplanationAttackResult | ExplanationCertificate, ...]
    """One for each goal of an attack: deviation, top-1, top-k. One for a certifier."""
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class ExplanationCrossing:
    """A contradiction: on this sample, an attack achieved what a certifier proved to be impossible."""

    sample: int
    attack: str
    certifier: str
    what: str

    def __str__(self) -> str:
        return f"sample {self.sample}: {self.attack} found {self.what}, against the proof of {self.certifier}"


@dataclass(frozen=True, eq=False)
class ExplanationComparison:
    """The bracket of the explanations of one batch: what attacks reached, and what certifiers proved.

    Printing it gives the table; `crossings` are contradictions, which mean that an attack or a certifier is wrong.
    """

    x: Float[Tensor, "batch *features"]
    y: Int[Tensor, " batch"]
    ball: Ball
    of: Of
    k: int
    delta: float | None
    weights: float
    seed: int
    value: Float[Tensor, "batch *features"]
    """The explanation at `x`."""
    rows: tuple[ExplanationRow, ...]
    crossings: tuple[ExplanationCrossing, ...]

    @property
    def deviation(self) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """For each sample the largest relative deviation that was reached, and the smallest that is proved."""
        low, high = (
            torch.zeros_like(self.value.flatten(1)[:, 0]),
            torch.full_like(self.value.flatten(1)[:, 0], math.inf),
        )
        for row in self.rows:
            if row.deviation is not None and row.kind is Kind.EXPLANATION_ATTACK:
                low = torch.maximum(low, row.deviation)
            elif row.deviation is not None:
                high = torch.minimum(high, row.deviation)
        return low, high

    def share(self, what: str) -> tuple[float, float]:
        """Proved and empirical share of samples of which `"keeps_top_1"`, `"keeps_top_k"` or `"robust"` holds."""
        proved = torch.zeros(len(self.y), dtype=torch.bool, device=self.y.device)
        withstood = ~proved
        for row in self.rows:
            flags = getattr(row, what)
            if flags is not None and row.kind is Kind.EXPLANATION_ATTACK:
                withstood = withstood & flags
            elif flags is not None:
                proved = proved | flags
        return proved.double().mean().item(), withstood.double().mean().item()

    def __getitem__(self, name: str) -> ExplanationRow:
        """The row of one component, by the name that it was asked for."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __str__(self) -> str:
        return f"{rendered(explanation_table(self))}\n\n{explanation_conclusion([self])}"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the explanations themselves, ready for JSON: per-sample lists in the order of the samples."""
        low, high = self.deviation
        return {
            "samples": len(self.y),
            "ball": {"norm": str(self.ball.norm), "eps": self.ball.radii, "clip": self.ball.clip},
            "of": self.of,
            "k": self.k,
            "delta": self.delta,
            "weights": self.weights,
            "seed": self.seed,
            "bracket": {"deviation": {"attacked": low.tolist(), "certified": high.tolist()}}
            | {
                what: dict(zip(("certified", "attacked"), self.share(what), strict=True))
                for what in ("keeps_top_1", "keeps_top_k", "robust")
                if what != "robust" or self.delta is not None
            },
            "rows": [
                {
                    "name": row.name,
                    "kind": row.kind.value,
                    "deviation": None if row.deviation is None else row.deviation.tolist(),
                    "keeps_top_1": None if row.keeps_top_1 is None else row.keeps_top_1.tolist(),
                    "keeps_top_k": None if row.keeps_top_k is None else row.keeps_top_k.tolist(),
                    "robust": None if row.robust is None else row.robust.tolist(),
                    "seconds": row.seconds,
                    "error": row.error,
                }
                for row in self.rows
            ],
            "crossings": [asdict(crossing) for crossing in self.crossings],
        }


def compare_explanations(
    model: nn.Module,
    x: Float[Tensor, "batch *features"],
    y: Int[Tensor, " batch"],
    ball: Ball,
    components: Sequence[str | ExplanationAttack | ExplanationCertifier] = ("gradient:corner-pgd", "interval:relaxed"),
    *,
    of: Of = "logit",
    k: int = 5,
    delta: float | None = None,
    weights: float = 0.0,
    seed: int | None = None,
    progress: bool = False,
) -> ExplanationComparison:
    """Runs attacks and certifiers of explanations on the same samples and holds their answers together.

    `components` are registered names, with parameters where wanted, or components themselves. Each attack runs for
    three goals: the largest deviation, and other features than the most important one and the `k` most important ones
    (at most as many as there are features). `y`, `of` and `weights` say what is explained, as for
    `rp.ExplanationCertifier`; with `delta`, the width allowed to each feature, the share of robust samples is compared
    too. All attacks get the same `seed`; None draws one, which the result states. A component that raises is a row with
    its error; the others go on. `progress` shows a bar on standard error. Observers (`on_run_start`, `on_record`,
    `on_run_end`) are told.

    Raises ArgumentError for an unusable model or ball and an unusable or empty batch, UnknownNameError for an unknown
    component.
    """
    check_inputs(model, x, ball)
    with evaluating(model):
        value = Explained.at(model, x, y, of).gradient(model, x)
    if not len(x):
        raise ArgumentError("x", "empty", accepted="one sample or more", hint="Nothing can be compared.")
    if k < 1:
        raise ArgumentError("k", k, accepted="an integer of at least 1", hint="It counts features.")
    named = [_resolved(component) for component in components]
    if len({name for name, _ in named}) < len(named):
        raise ArgumentError(
            "components", [n for n, _ in named], accepted="each component once", hint="Drop the repetition."
        )
    seed = fresh_seed() if seed is None else seed
    task = _Task(model, x, y, ball, of, min(k, x[0].numel()), delta, weights, seed)
    rows: list[ExplanationRow] = []
    with observed([name for name, _ in named], ball, seed=seed, samples=len(x)) as tell:
        for name, component in with_bar(named, progress):
            rows.append(task.row(name, component))
            for result in rows[-1].results:
                tell(name, result)
    found = tuple(rows)
    return ExplanationComparison(x, y, ball, of, task.k, delta, weights, seed, value, found, _crossings(found, task.k))


@dataclass(frozen=True, eq=False)
class _Task:
    model: nn.Module
    x: Tensor
    y: Tensor
    ball: Ball
    of: Of
    k: int
    delta: float | None
    weights: float
    seed: int

    def row(self, name: str, component: ExplanationAttack | ExplanationCertifier) -> ExplanationRow:
        attack = isinstance(component, ExplanationAttack)
        kind = Kind.EXPLANATION_ATTACK if attack else Kind.EXPLANATION_CERTIFIER
        start = time.perf_counter()
        try:
            return self._attacked(name, component) if attack else self._certified(name, component)  # type: ignore[arg-type]
        except (Exception, SystemExit) as error:  # one backend's failure must not lose the others' results
            message = f"{type(error).__name__}: {error}"
            return ExplanationRow(name, kind, None, None, None, None, (), time.perf_counter() - start, message)

    def _attacked(self, name: str, attack: ExplanationAttack) -> ExplanationRow:
        goals: list[dict[str, Any]] = [
            {"goal": "deviation", "k": self.k},
            {"goal": "top_k", "k": 1},
            {"goal": "top_k", "k": self.k},
        ]
        results = tuple(
            attack(self.model, self.x, self.y, self.ball, of=self.of, weights=self.weights, seed=self.seed, **goal)
            for goal in (goals if self.k > 1 else goals[:2])
        )
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
            sum(result.seconds for result in results),
        )

    def _certified(self, name: str, certifier: ExplanationCertifier) -> ExplanationRow:
        delta = math.inf if self.delta is None else self.delta
        found = certifier(self.model, self.x, self.y, self.ball, of=self.of, weights=self.weights, delta=delta)
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
            "; ".join(sorted({message for message in found.messages if message})),
        )


def _resolved(
    component: str | ExplanationAttack | ExplanationCertifier,
) -> tuple[str, ExplanationAttack | ExplanationCertifier]:
    if isinstance(component, ExplanationAttack | ExplanationCertifier):
        return str(component), component
    if not isinstance(component, str):
        raise ArgumentError(
            "components",
            repr(component),
            accepted="registered names, explanation attacks and explanation certifiers",
            hint="List the names with rp.explanation_attacks() and rp.explanation_certifiers().",
        )
    kind = registry().kind_of(component, [Kind.EXPLANATION_ATTACK, Kind.EXPLANATION_CERTIFIER])
    return component, registry().create(kind, component)


def _crossings(rows: Sequence[ExplanationRow], k: int) -> tuple[ExplanationCrossing, ...]:
    """Attacks against certificates: every explanation that was found, and what follows from the bounds."""
    found: dict[ExplanationCrossing, None] = {}  # an ordered set
    pairs = [
        (attack, result, certifier, certificate)
        for attack in rows
        for result in attack.results
        if isinstance(result, ExplanationAttackResult)
        for certifier in rows
        for certificate in certifier.results
        if isinstance(certificate, ExplanationCertificate)
    ]
    for attack, result, certifier, certificate in pairs:
        bounds = certificate.gradient
        slack = (ROUNDING * bounds.magnitude.flatten(1).amax(1)).nan_to_num(posinf=0.0)
        outside = torch.maximum(bounds.lower - result.gradient, result.gradient - bounds.upper).flatten(1).amax(1)
        beyond = result.deviation > certificate.deviation * (1 + ROUNDING) + ROUNDING
        for what, where in (
            ("an explanation outside the bounds", outside > slack),
            ("a larger deviation", beyond),
            ("another most important feature", evicts(result.gradient, result.value, 1) & certificate.keeps_top(1)),
            (f"another set of the {k} most important features",
             evicts(result.gradient, result.value, k) & certificate.keeps_top(k)),
        ):  # fmt: skip
            for sample in where.nonzero().flatten().tolist():
                found[ExplanationCrossing(sample, attack.name, certifier.name, what)] = None
    return tuple(found)
