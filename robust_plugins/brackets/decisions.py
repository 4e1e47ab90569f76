"""`compare`: attacks and certifiers on the same model and inputs, and whether they contradict each other."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.brackets.observing import observed
from robust_plugins.brackets.table import comparison_table, conclusion, rendered
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.decisions.results import AttackResult, Certificate
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.arguments import check_inputs, check_labels, logits_of
from robust_plugins.harness.component import ERRORS
from robust_plugins.harness.evaluation import evaluating, evaluation_error, fresh_seed
from robust_plugins.registry.information import Kind
from robust_plugins.registry.registry import registry

T = TypeVar("T")

ROUNDING = 1e-6
"""Relative to the logits' scale: how far an attack's margin may lie below a proved one before it is a contradiction.
The margins of both sides are computed in floating point; the measured rounding error of the model is added."""


@dataclass(frozen=True, eq=False)
class Row:
    """What one component found on all samples, or why it failed."""

    name: str
    kind: Kind
    accuracy: float | None
    """An attack's: the share that is still classified correctly, an upper bound of the robust accuracy. A
    certifier's: the share that is certified, a lower bound. None where the component failed."""
    seconds: float
    result: AttackResult | Certificate | None
    error: str = ""


@dataclass(frozen=True)
class Crossing:
    """A contradiction: on this sample, an attack's margin lies below the one that a certifier proved."""

    sample: int
    attack: str
    certifier: str
    achieved: float
    proved: float

    def __str__(self) -> str:
        return (
            f"sample {self.sample}: {self.attack} reached the margin {self.achieved:.6g}, "
            f"but {self.certifier} proved at least {self.proved:.6g}"
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """The bracket of one model on one batch: clean accuracy, accuracy under each attack, certified accuracy.

    Printing it gives the table. `bracket` is what is known of the robust accuracy, `crossings` the contradictions,
    which mean that an attack or a certifier is wrong.
    """

    x: Float[Tensor, "batch *features"]
    y: Int[Tensor, " batch"]
    ball: Ball
    seed: int
    correct: Bool[Tensor, " batch"]
    """Which samples the model classifies as `y`, unattacked."""
    rows: tuple[Row, ...]
    crossings: tuple[Crossing, ...]

    @property
    def clean(self) -> float:
        """The share of samples that the model classifies as `y`; 0 for an empty batch."""
        return _share(self.correct)

    @property
    def bracket(self) -> tuple[float, float]:
        """Proved and empirical robust accuracy: certified by any certifier, and correct under every attack."""
        certified, resisted = torch.zeros_like(self.correct), self.correct
        for row in self.rows:
            if isinstance(row.result, AttackResult):
                resisted = resisted & ~row.result.success
            elif row.result is not None:
                certified = certified | row.result.certified
        return _share(certified), _share(resisted)

    def __getitem__(self, name: str) -> Row:
        """The row of one component, by the name that it was asked for."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __str__(self) -> str:
        return f"{rendered(comparison_table([self]))}\n\n{conclusion([self])}"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, ready for JSON: shares in [0, 1], seconds of wall-clock time.

        Numbers that are not finite, which JSON lacks, are None.
        """
        low, high = self.bracket
        return {
            "samples": len(self.y),
            "ball": {
                "norm": str(self.ball.norm),
                "eps": self.ball.radii,
                "clip": self.ball.clip and [_finite(end) for end in self.ball.clip],
            },
            "seed": self.seed,
            "clean": self.clean,
            "bracket": {"certified": low, "attacked": high},
            "rows": [
                {
                    "name": row.name,
                    "kind": row.kind.value,
                    "accuracy": row.accuracy,
                    "seconds": row.seconds,
                    "verdicts": verdict_counts(row.result) if isinstance(row.result, Certificate) else None,
                    "error": row.error,
                }
                for row in self.rows
            ],
            "crossings": [
                {**asdict(c), "achieved": _finite(c.achieved), "proved": _finite(c.proved)} for c in self.crossings
            ],
        }


def compare(
    model: nn.Module,
    x: Float[Tensor, "batch *features"],
    y: Int[Tensor, " batch"],
    ball: Ball,
    components: Sequence[str | Attack | Certifier],
    *,
    seed: int | None = None,
    progress: bool = False,
) -> Comparison:
    """Runs every attack and certifier of `components` on the same samples and holds their answers together.

    `components` are registered names, with parameters where wanted (`"art:pgd(steps=100)"`), or components
    themselves. Attacks are untargeted and all get the same `seed`; None draws one, which the result states. All of
    it happens in evaluation mode. A component that raises is a row with its error; the others go on. `progress`
    shows a bar on standard error, or a line per component where that is no terminal. Observers (`on_run_start`,
    `on_record`, `on_run_end`) are told.

    Raises ArgumentError for an unusable model, batch or ball, UnknownNameError for an unknown component.
    """
    check_inputs(model, x, ball)
    if isinstance(components, str):
        raise ArgumentError("components", repr(components), accepted="a list of names", hint=f"Pass [{components!r}].")
    with evaluating(model), torch.no_grad():
        clean = logits_of(model, x)
        rounding = evaluation_error(model, x, clean)
    check_labels(y, x, clean.shape[1])
    named = [_resolved(component) for component in components]
    if len({name for name, _ in named}) < len(named):
        raise ArgumentError(
            "components", [n for n, _ in named], accepted="each component once", hint="Drop the repetition."
        )
    seed = fresh_seed() if seed is None else seed
    rows: list[Row] = []
    with observed([name for name, _ in named], ball, seed=seed, samples=len(x)) as tell:
        for name, component in with_bar(named, progress):
            row = _run(name, component, model, x, y, ball, seed)
            rows.append(row)
            if row.result is not None:
                tell(name, row.result)
    return Comparison(x, y, ball, seed, clean.argmax(1) == y, tuple(rows), _crossings(rows, y, rounding))


def verdict_counts(certificate: Certificate) -> dict[str, int]:
    """How often each verdict occurs, in the order of first occurrence."""
    counts: dict[str, int] = {}
    for verdict in certificate.verdicts:
        counts[verdict.value] = counts.get(verdict.value, 0) + 1
    return counts


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _share(flags: Tensor) -> float:
    return flags.double().mean().item() if len(flags) else 0.0


def _resolved(component: str | Attack | Certifier) -> tuple[str, Attack | Certifier]:
    if isinstance(component, Attack | Certifier):
        return str(component), component
    if not isinstance(component, str):
        raise ArgumentError(
            "components",
            repr(component),
            accepted="registered names, attacks and certifiers",
            hint="List the names with rp.attacks() and rp.certifiers().",
        )
    kind = registry().kind_of(component, [Kind.ATTACK, Kind.CERTIFIER])
    return component, registry().create(kind, component)


def _run(
    name: str, component: Attack | Certifier, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, seed: int
) -> Row:
    kind = Kind.ATTACK if isinstance(component, Attack) else Kind.CERTIFIER
    start = time.perf_counter()
    try:
        result: AttackResult | Certificate
        if isinstance(component, Attack):
            result = component(model, x, y, ball, seed=seed)
            good = ~result.success
        else:
            result = component(model, x, y, ball)
            good = result.certified
    except (Exception, SystemExit) as error:  # one backend's failure must not lose the others' results
        return Row(name, kind, None, time.perf_counter() - start, None, f"{type(error).__name__}: {error}")
    return Row(name, kind, _share(good), result.seconds, result)


def _crossings(rows: Iterable[Row], y: Tensor, rounding: Tensor) -> tuple[Crossing, ...]:
    rows = list(rows)
    found = []
    for attack in rows:
        if not isinstance(attack.result, AttackResult):
            continue
        logits = attack.result.logits
        others = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
        achieved = logits.gather(1, y.unsqueeze(1)).squeeze(1) - others
        slack = ROUNDING * logits.abs().amax(1) + ERRORS * rounding
        for certifier in rows:
            if isinstance(certifier.result, Certificate):
                proved = certifier.result.margin
                wrong = (achieved < proved - slack) | (certifier.result.certified & attack.result.success)
                found += [
                    Crossing(i, attack.name, certifier.name, achieved[i].item(), proved[i].item())
                    for i in wrong.nonzero().flatten().tolist()
                ]
    return tuple(found)


def with_bar(named: list[tuple[str, T]], progress: bool) -> Iterator[tuple[str, T]]:
    """`named`, with a bar on standard error where `progress`, or a line for each where that is no terminal."""
    if not progress:
        yield from named
        return
    from rich.console import Console  # here, so that importing the package stays quick
    from rich.progress import Progress, SpinnerColumn

    console = Console(file=sys.stderr)
    with Progress(SpinnerColumn(), *Progress.get_default_columns(), console=console, transient=True) as bar:
        task = bar.add_task("", total=len(named))
        for name, component in named:
            bar.update(task, description=name)
            if not console.is_terminal:
                console.print(f"comparing: {name}", highlight=False)
            yield name, component
            bar.advance(task)
