"""Runs the fuzzer: models, balls and points are counted, and violations collected, by component."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import robust_plugins as rp
from support.fuzzing.checks import Outcome, Violation, check_certifier
from support.fuzzing.drawing import Case, draw_case, draw_recipe
from support.fuzzing.explained import check_explanations
from support.fuzzing.reaching import Reached, reach
from support.fuzzing.shrinking import shrunk
from support.fuzzing.source import Recipe, written

Certifiers = Mapping[str, rp.Certifier]
Check = Callable[[list[tuple[Case, Reached]]], Outcome]
MOST_SHRUNK = 1
"""Of the violations of one kind by one component: the others are reported as they were found."""
ExplanationCertifiers = Mapping[str, rp.ExplanationCertifier]


@dataclass(frozen=True)
class Finding:
    """A violation, with the case that shows it."""

    seed: int
    violation: Violation
    recipe: Recipe
    batch: int

    def __str__(self) -> str:
        v = self.violation
        case = draw_case(self.recipe, v.seed, batch=self.batch)
        code = written(self.recipe).text if case is None else case.report()
        return f"seed {self.seed}: {v.component}: {v.kind}: {v.detail}\n{code}\n"


@dataclass
class Tally:
    """What a run has tried and found."""

    models: int = 0
    balls: int = 0
    points: int = 0
    bounded: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def add(self, component: str, outcome: Outcome, seconds: float) -> None:
        (self.bounded if outcome.bounded else self.refused)[component] += 1
        self.seconds[component] += seconds

    def __str__(self) -> str:
        lines = [f"{self.models} models, {self.balls} balls, {self.points} points"]
        for name in sorted(self.bounded | self.refused):
            wrong = Counter(f.violation.kind for f in self.findings if f.violation.component == name)
            kinds = ", ".join(f"{count} {kind}" for kind, count in wrong.most_common()) or "no violation"
            lines.append(
                f"{name:40} bounded {self.bounded[name]:5} refused {self.refused[name]:5} "
                f"{self.seconds[name]:7.1f} s  {kinds}"
            )
        return "\n".join(lines)


def cases_of(recipe: Recipe, seed: int, *, balls: int, batch: int = 3) -> list[tuple[Case, Reached]]:
    """The recipe's model with several balls, and what is reached in each."""
    found = []
    for ball in range(balls):
        case = draw_case(recipe, seed + 7919 * ball, batch=batch)
        if case is not None:
            found.append((case, reach(case)))
    return found


def run(
    seeds: Iterator[int] | range, certifiers: Certifiers, explanation_certifiers: ExplanationCertifiers, *,
    balls: int = 2, full: bool = True, likely: dict[str, float] | None = None, shrink: bool = True,
    until: float = float("inf"), report: Callable[[Finding], None] | None = None, explain_every: int = 3,
    rare: bool = False,
) -> Tally:  # fmt: skip
    """Checks one model for each seed, until the clock `time.monotonic()` shows `until`; `rare` as in `draw_recipe`."""
    tally, seen = Tally(), Counter[tuple[str, str]]()
    for seed in seeds:
        if time.monotonic() > until:
            break
        recipe = draw_recipe(seed, likely=likely, rare=rare)
        cases = cases_of(recipe, seed, balls=balls)
        if not cases:
            continue
        tally.models += 1
        tally.balls += len(cases)
        tally.points += sum(reached.points for _, reached in cases)
        checks: dict[str, Check] = {
            name: lambda cases, name=name, c=c: check_certifier(name, c, cases, full=full)  # type: ignore[misc]
            for name, c in certifiers.items()
        }
        if recipe.double and explain_every and seed % explain_every == 0:
            for name, e in explanation_certifiers.items():
                checks[f"explanation {name}"] = lambda cases, name=name, e=e: check_explanations(  # type: ignore[misc]
                    f"explanation {name}", e, cases
                )
        for name, check in checks.items():
            start = time.monotonic()
            outcome = check(cases)
            tally.add(name, outcome, time.monotonic() - start)
            for violation in outcome.violations:
                small, batch = recipe, len(cases[0][0].x)
                if shrink and seen[name, violation.kind] < MOST_SHRUNK:
                    small, batch, violation = shrunk(recipe, batch, violation, partial(_violations, check))
                seen[name, violation.kind] += 1
                finding = Finding(seed, violation, small, batch)
                tally.findings.append(finding)
                if report is not None:
                    report(finding)
    return tally


def _violations(check: Check, recipe: Recipe, batch: int, seed: int) -> tuple[Violation, ...]:
    case = draw_case(recipe, seed, batch=batch)
    return () if case is None else check([(case, reach(case))]).violations
