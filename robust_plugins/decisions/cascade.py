"""Cascades: each sample goes as far as it must through a list of attacks and certifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.decisions.judgement import Decision
from robust_plugins.decisions.results import Stage, Verdict
from robust_plugins.errors import ArgumentError, UnsupportedModelError
from robust_plugins.harness.arguments import logits_of
from robust_plugins.intervals import Interval
from robust_plugins.registry.hookspecs import Register, hookimpl
from robust_plugins.registry.information import Kind
from robust_plugins.registry.registry import build, registry

BOUNDS = ("interval:ibp", "interval:crown", "interval:alpha-crown")
"""The stages of a cascade that is asked for by its name alone: quick bounds first, tight ones last."""

WITNESS = "the model itself misclassifies the input that was found"

ORDER = (Verdict.ERROR, Verdict.TIMEOUT, Verdict.UNKNOWN, Verdict.UNSUPPORTED)
"""A sample that no stage decides has the first of these verdicts that a certifier gave: a fault must not hide behind
bounds that are merely loose, and more time could still tell what loose bounds could not."""


@dataclass(frozen=True, kw_only=True)
class Cascade(Certifier):
    """Each sample goes through `stages` until one decides it: attacks falsify, certifiers prove or falsify.

    `stages` are registered names, with parameters where wanted, or components themselves; at least one is a certifier.
    A stage sees only the samples that all before it left open; a sample that the model misclassifies goes to none.
    `Certificate.stages` has every stage's verdicts and time, `Certificate.decided_by` the stage that decided each
    sample. Witnesses are run on the model once more before they count, and a sample that no stage decides keeps the
    best margin that any proved. Of several certifiers' verdicts on it ERROR comes first, then TIMEOUT, UNKNOWN and
    UNSUPPORTED; the messages say which stage gave each. `seed` is that of all attacks.

    Each verdict is as sound as the stage that gave it, which `stages` states. `bounds` are those on which all
    certifiers of the list agree, which runs every one.
    """

    soundness = "that of the stage which decided the sample, as the certificate's `stages` state it"
    rounding = 1e-5  # of the clean logits alone: certified samples are settled by their stage

    stages: Sequence[str | Attack | Certifier] = BOUNDS
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        accepted, hint = "a list of registered names, attacks and certifiers", "For example ['interval:crown']."
        if isinstance(self.stages, str) or not isinstance(self.stages, Sequence) or not self.stages:
            raise ArgumentError("stages", repr(self.stages), accepted=accepted, hint=hint)
        object.__setattr__(self, "stages", tuple(self.stages))
        names = [str(stage) for stage in self.stages]
        if len(set(names)) < len(names):
            raise ArgumentError("stages", names, accepted="each stage once", hint="Drop the repetition.")
        components = [_resolved(stage, accepted, hint) for stage in self.stages]
        if not any(isinstance(component, Certifier) for component in components):
            raise ArgumentError(
                "stages", names, accepted="at least one certifier among them", hint="Attacks alone prove nothing."
            )
        # Built once, and no field: the names are the data.
        object.__setattr__(self, "_named", tuple(zip(names, components, strict=True)))

    def propagate(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"] | None,
    ) -> Interval:
        """The intersection of all certifiers' bounds; raises UnsupportedModelError where none can bound the model."""
        found: list[Interval] = []
        causes: list[str] = []
        for name, component in self._components:
            if isinstance(component, Certifier):
                try:
                    found.append(component.bounds(model, x, ball, spec))
                except UnsupportedModelError as error:
                    causes.append(f"{name}: {error}")
        if not found:
            raise UnsupportedModelError("; ".join(causes))
        return reduce(Interval.agreeing, found)

    def decide(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        y: Integer[Tensor, " batch"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"],
    ) -> Decision:
        logits = logits_of(model, x)
        run = _Run(model, x, y, ball, logits)
        for name, component in self._components:
            if isinstance(component, Attack):
                run.attack(name, component, self.seed)
            else:
                run.certify(name, component)
        # One number for all rows, the least of them; no more than what is seen at x, which rounding might place below.
        clean = (spec @ logits.unsqueeze(2)).squeeze(2)
        lower = torch.minimum(run.margin.unsqueeze(1).expand_as(clean), clean)
        return Decision(
            Interval(lower, torch.full_like(lower, torch.inf)), run.witness, messages=tuple(map("; ".join, run.said)),
            settled=run.settled, undecided=tuple(map(_left_open, run.given)), stages=tuple(run.stages),
        )  # fmt: skip

    def bytes_per_sample(self, activations: Sequence[int], classes: int, itemsize: int) -> int:
        """One byte: stages take as many samples at a time as suits each of them."""
        return 1

    @property
    def _components(self) -> tuple[tuple[str, Attack | Certifier], ...]:
        return self.__dict__["_named"]  # type: ignore[no-any-return]


class _Run:
    """The samples of one call on their way through the stages."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, logits: Tensor) -> None:
        self.model, self.x, self.y, self.ball = model, x, y, ball
        self.open: Bool[Tensor, " batch"] = logits.argmax(1) == y
        self.margin = x.new_full((len(x),), -torch.inf)
        self.witness = torch.full_like(x, torch.nan)
        self.settled = torch.zeros_like(self.open)
        self.stages: list[Stage] = []
        self.given: list[set[Verdict]] = [set() for _ in x]
        self.said: list[list[str]] = [[] for _ in x]

    def attack(self, name: str, component: Attack, seed: int) -> None:
        at = self.open.nonzero().flatten()
        seconds = 0.0
        verdicts: list[Verdict] = []
        if len(at):
            result = component(self.model, self.x[at], self.y[at], chosen(self.ball, at), seed=seed)
            seconds = result.seconds
            broken = self._falsify(at[result.success], result.x_adv[result.success])
            verdicts = [Verdict.FALSIFIED if i in broken else Verdict.UNKNOWN for i in at.tolist()]
        self._record(name, at, verdicts, seconds, WITNESS)

    def certify(self, name: str, component: Certifier) -> None:
        at = self.open.nonzero().flatten()
        if not len(at):
            self._record(name, at, [], 0.0, component.soundness)
            return
        found = component(self.model, self.x[at], self.y[at], chosen(self.ball, at))
        claimed = torch.tensor([v is Verdict.FALSIFIED for v in found.verdicts], device=at.device)
        broken = self._falsify(at[claimed], found.witness[claimed])
        verdicts = [
            Verdict.UNKNOWN if v is Verdict.FALSIFIED and i not in broken else v
            for i, v in zip(at.tolist(), found.verdicts, strict=True)
        ]
        # What is above zero by less than the stage's own rounding is no proof, here neither.
        margin = torch.where(found.certified, found.margin, found.margin.clamp(max=0))
        self.margin[at] = torch.maximum(self.margin[at], margin.nan_to_num(nan=-torch.inf))
        self.settled[at] = found.certified
        self.open[at[found.certified]] = False
        for i, verdict, message in zip(at.tolist(), verdicts, found.messages, strict=True):
            self.given[i].add(verdict)
            if message:
                self.said[i].append(f"{name}: {verdict.value}: {message}")
        self._record(name, at, verdicts, found.seconds, found.soundness)

    def _falsify(self, at: Tensor, candidates: Tensor) -> set[int]:
        """The samples of `at` whose candidates are inputs of the ball that the model misclassifies: decided."""
        if not len(at):
            return set()
        z = chosen(self.ball, at).project(candidates, self.x[at])
        logits = logits_of(self.model, z)
        confirmed = (logits.argmax(1) != self.y[at]) & ~logits.isnan().any(1)
        self.witness[at[confirmed]] = z[confirmed]
        self.open[at[confirmed]] = False
        return set(at[confirmed].tolist())

    def _record(self, name: str, at: Tensor, verdicts: Sequence[Verdict], seconds: float, soundness: str) -> None:
        of = dict(zip(at.tolist(), verdicts, strict=True))
        self.stages.append(Stage(name, tuple(of.get(i) for i in range(len(self.x))), seconds, soundness))


def cascade(stages: Sequence[str | Attack | Certifier], *, seed: int = 0, batch_size: int | None = None) -> Certifier:
    """A certifier that sends each sample as far as it must through `stages`, cheap ones first.

    - `stages`: attacks and certifiers, by registered name (`"interval:branch-and-bound(timeout=30)"`) or themselves; at
      least one is a certifier. A stage sees only the samples that those before it left open.
    - `seed`: of all attacks.
    - `batch_size`: samples that go through the cascade at a time; None lets each stage choose for itself.

    `rp.cascade(["art:pgd", "interval:crown", "interval:branch-and-bound"])(model, x, y, ball).decided_by` names the
    stage that decided each sample. Raises ArgumentError for stages that are none, UnknownNameError for unknown names.

    >>> model, x, y = torch.nn.Identity(), torch.tensor([[1.0, 0.0], [0.6, 0.4]]), torch.tensor([0, 0])
    >>> rp.cascade(["rp:fgsm", "interval:ibp"])(model, x, y, rp.Linf(eps=0.2, clip=(0, 1))).decided_by
    ('interval:ibp', 'rp:fgsm')
    """
    return Cascade(stages=stages, seed=seed, batch_size=batch_size)


def _resolved(stage: Any, accepted: str, hint: str) -> Attack | Certifier:
    if isinstance(stage, Attack | Certifier):
        return stage
    if not isinstance(stage, str):
        raise ArgumentError("stages", f"holding {stage!r}", accepted=accepted, hint=hint)
    attacks = registry().kind_of(stage, [Kind.ATTACK, Kind.CERTIFIER]) is Kind.ATTACK
    return build(Kind.ATTACK, Attack, stage) if attacks else build(Kind.CERTIFIER, Certifier, stage)


def chosen(ball: Ball, at: Tensor) -> Ball:
    """The ball of the samples with these indices."""
    radii = ball.radii
    return replace(ball, eps=tuple(radii[i] for i in at.tolist())) if isinstance(radii, tuple) else ball


def _left_open(given: set[Verdict]) -> Verdict:
    return next((verdict for verdict in ORDER if verdict in given), Verdict.UNKNOWN)


@hookimpl
def register_certifiers(register: Register) -> None:
    """Registers cascades, for the command line: `cascade(stages=["interval:crown", "interval:branch-and-bound"])`."""
    register("cascade", Cascade)
