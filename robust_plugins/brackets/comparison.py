"""`Comparison`: what attacks and certifiers found on the same model and inputs, as data, as a table and in words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robust_plugins.balls import Ball
from robust_plugins.brackets.answers import causes, closing, gaps, gathered, silence, verdict_counts
from robust_plugins.brackets.ball_names import ball_name
from robust_plugins.brackets.crossing import Crossing, crossings
from robust_plugins.brackets.one_ball import OneBall, held
from robust_plugins.decisions.results import AttackResult, Certificate
from robust_plugins.harness.bracket import Bracket
from robust_plugins.harness.pictures import Bar, Half, bars
from robust_plugins.harness.stored import stored
from robust_plugins.harness.table import Table
from robust_plugins.harness.wilson import Share
from robust_plugins.registry.information import Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@stored
@dataclass(frozen=True, eq=False)
class Row:
    """The answer of one component on all samples, or why it has none.

    - `name`: the component's name.
    - `kind`: attack or certifier.
    - `accuracy`: of an attack, the share that is still classified correctly, an upper bound of the robust accuracy; of
      a certifier, the share that is certified, a lower bound. None where there is no answer: the component
      failed, could treat no sample, or there is no sample.
    - `seconds`: wall-clock time of this one run, loading and warming up included: too noisy to compare components
      by.
    - `result`: its whole answer; None where it failed.
    - `error`: what a component raised, in words, with file and line.
    - `health`: of an attack, reasons to doubt its number, in sentences.
    - `exception`: what a component raised, with its traceback; files do not keep it.
    """

    name: str
    kind: Kind
    accuracy: float | None
    seconds: float
    result: AttackResult | Certificate | None
    error: str = ""
    health: tuple[str, ...] = ()
    exception: BaseException | None = field(default=None, repr=False, metadata={"stored": False})

    @property
    def half(self) -> Half:
        """The word for its number: it was found by attacking, or it is certified."""
        return "attacked" if self.kind is Kind.ATTACK else "certified"

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of `accuracy`, for data of which these samples are a random part; None as there."""
        samples = 0 if self.result is None else len(self.result.logits)
        return None if self.accuracy is None else Share(round(self.accuracy * samples), samples).interval

    @property
    def causes(self) -> tuple[str, ...]:
        """Why there is no answer, or none for some samples: a sentence for each cause."""
        if self.error:
            return (f"failed: {self.error}",)
        if isinstance(self.result, Certificate):
            return tuple(causes(self.result.verdicts, self.result.messages))
        return ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """These stand beside the number: reasons to doubt it, and what the attack tells of its search."""
        doubts = tuple(f"doubtful: {reason}" for reason in self.health)
        return doubts + (self.result.notes if isinstance(self.result, AttackResult) else ())

    @property
    def cell(self) -> str:
        """The share as tables have it; in words where there is no answer, and with those samples counted beside it."""
        verdicts = self.result.verdicts if isinstance(self.result, Certificate) else ()
        if self.accuracy is None:
            return "failed" if self.error else gaps(verdicts, counted=False) or "no samples"
        missing = gaps(verdicts, counted=True) or ("doubtful" if self.health else "")
        return f"{self.accuracy:.3f} ({missing})" if missing else f"{self.accuracy:.3f}"


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(OneBall):
    """The bracket of one model on one batch: clean accuracy, accuracy under each attack, certified accuracy.

    Printing it gives the table. `bracket` is what is known of the robust accuracy, `crossings` the contradictions,
    which mean that an attack or a certifier is wrong.

    - `x`: the inputs.
    - `y`: their classes.
    - `ball`: the set around each input.
    - `seed`: the seed of all attacks.
    - `correct`: which samples the model classifies as `y`, unattacked.
    - `rows`: one for each component: its name, kind, accuracy, time and result.
    - `crossings`: where an attack contradicts a certificate.
    - `undecided`: for so many samples the model's logits are NaN, unattacked: no decision, which counts as a wrong one.
    """

    measure: ClassVar[str] = "accuracy"

    x: Float[Tensor, "batch *features"]
    y: Int[Tensor, " batch"]
    ball: Ball
    seed: int
    correct: Bool[Tensor, " batch"]
    rows: tuple[Row, ...]
    crossings: tuple[Crossing, ...]
    undecided: int = 0

    @property
    def clean(self) -> float | None:
        """The share of samples that the model classifies as `y`; None for an empty batch."""
        return share(self.correct)

    @cached_property
    def bracket(self) -> Bracket[float]:
        """The robust accuracy: correct under every attack, and certified by any certifier.

        A half is None where no component of its kind ran or has an answer. `clean` bounds it from above in any case.
        """
        certified, resisted = torch.zeros_like(self.correct), self.correct
        for row in self.rows:
            if isinstance(row.result, AttackResult):
                resisted = resisted & ~row.result.success
            elif row.result is not None:
                certified = certified | row.result.certified
        attacked, proved = (any(r.accuracy is not None for r in self._of(k)) for k in (Kind.ATTACK, Kind.CERTIFIER))
        return Bracket(share(resisted) if attacked else None, share(certified) if proved else None)

    def __getitem__(self, name: str) -> Row:
        """The row of one component, by the name that it was asked for."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.parts()))

    def __repr__(self) -> str:
        """One line; printing gives the table."""
        crossed = f"; {len(self.crossings)} CONTRADICTIONS" if self.crossings else ""
        return f"<Comparison: {ball_name(self.ball)}, {self.subject}; {self.known}{crossed}>"

    @property
    def subject(self) -> str:
        """So many samples, and so many components."""
        return f"{len(self.y)} samples, {len(self.rows)} components"

    @property
    def band(self) -> Bracket[float]:
        """The bracket of the accuracy."""
        return self.bracket

    def heights(self) -> list[Bar]:
        """The accuracies, with Wilson's intervals."""
        clean = Share(int(self.correct.sum()), len(self.y)).interval if len(self.y) else None
        rows = [Bar(row.name, row.half, row.accuracy, row.interval) for row in self.rows]
        return [Bar("the model", "clean", self.clean, clean), *rows]

    def against(self, other: Comparison) -> tuple[Crossing, ...]:
        """Where an input that changes a decision lies in another ball, in which that decision is certified."""
        found: list[Crossing] = []
        for row in self.rows:
            broken, points = _broken(row.result)
            if points is None or not bool(broken.any()):
                continue
            inside = torch.zeros_like(broken)
            inside[broken] = held(other.ball, points, other.x, broken)
            for proof in other.rows:
                if isinstance(proof.result, Certificate):
                    found += crossings(
                        f"{row.name} at {ball_name(self.ball)}", f"{proof.name} at {ball_name(other.ball)}",
                        "the decision", ~inside, proof.result.certified, side="at least",
                    )  # fmt: skip
        return tuple(found)

    def tabled(self, comparisons: Sequence[Comparison]) -> Table:
        """A table with a column for each ball."""
        return comparison_table(comparisons)

    def concluded(self, comparisons: Sequence[Comparison]) -> str:
        """The conclusion of all balls."""
        return conclusion(comparisons)

    def parts(self) -> list[Table | str]:
        """The table, and the conclusion."""
        return [comparison_table([self]), conclusion([self])]

    def plot(self) -> Figure:
        """A picture: the accuracies with Wilson's intervals. Raises PluginError without matplotlib."""
        high, low = self.bracket
        band = None if low is None or high is None else (low, high)
        return bars(self.heights(), f"accuracy at {ball_name(self.ball)}, {len(self.y)} samples", bracket=band)

    def to_records(self) -> list[dict[str, Any]]:
        """For the model and each component: its accuracy with Wilson's 95 % interval, and why there is none."""
        count = len(self.y)
        shared: dict[str, Any] = {"ball": type(self.ball).__name__, "eps": self.ball.largest, "samples": count}
        clean = None if self.clean is None else Share(int(self.correct.sum()), count).interval
        entries: list[tuple[str, str, float | None, tuple[float, float] | None, float | None, str]]
        entries = [("the model", "clean", self.clean, clean, None, "")]
        for row in self.rows:
            entries.append((row.name, row.half, row.accuracy, row.interval, row.seconds, "; ".join(row.causes)))
        return [
            shared | {
                "component": name, "is": said, "accuracy": accuracy, "low": ends and ends[0], "high": ends and ends[1],
                "seconds": seconds, "cause": cause,
            }
            for name, said, accuracy, ends, seconds, cause in entries
        ]  # fmt: skip

    @property
    def known(self) -> str:
        """The robust accuracy in words, as far as it is known, and which side has no answer."""
        (high, low), clean = self.bracket, self.clean
        if clean is None:
            return "nothing is known of the robust accuracy: there is no sample"
        no_attack = silence("attack", len(self._of(Kind.ATTACK)))
        no_certifier = silence("certifier", len(self._of(Kind.CERTIFIER)))
        if low is not None and high is not None:
            return f"the robust accuracy is between {low:.3f} and {high:.3f}"
        if high is not None:
            return f"the robust accuracy is at most {high:.3f}; {no_certifier}"
        if low is not None:
            return f"the robust accuracy is at least {low:.3f}, and at most {clean:.3f}, which is clean; {no_attack}"
        return f"the robust accuracy is at most {clean:.3f}, which is clean; {no_attack}, and {no_certifier}"

    def _of(self, kind: Kind) -> list[Row]:
        return [row for row in self.rows if row.kind is kind]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, ready for JSON: shares in [0, 1], seconds of wall-clock time.

        What has no answer is None, with its `causes` beside it; so are numbers that are not finite, which JSON lacks.
        """
        return {
            "samples": len(self.y),
            "ball": self.ball.to_dict(),
            "seed": self.seed,
            "clean": self.clean,
            "undecided": self.undecided,
            "bracket": self.bracket.to_dict(),
            "known": self.known,
            "rows": [
                {
                    "name": row.name,
                    "kind": row.kind.value,
                    "accuracy": row.accuracy,
                    "interval": row.interval and list(row.interval),
                    "seconds": row.seconds,
                    "verdicts": verdict_counts(row.result.verdicts) if isinstance(row.result, Certificate) else None,
                    "causes": list(row.causes),
                    "health": list(row.health),
                    "notes": list(row.result.notes) if isinstance(row.result, AttackResult) else [],
                    "error": row.error,
                }
                for row in self.rows
            ],
            "crossings": [crossing.to_dict() for crossing in self.crossings],
        }


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Clean, attacked and certified accuracy: a row per component, a column per comparison.

    The comparisons are of the same samples and components, one per ball; raises IndexError for none.
    """
    clean = ("the model", "clean", *(_clean_cell(c) for c in comparisons))
    rows = [
        (row.name, row.half, *(c.rows[index].cell for c in comparisons))
        for index, row in enumerate(comparisons[0].rows)
    ]
    return Table(("accuracy of", "is", *(ball_name(c.ball) for c in comparisons)), (clean, *rows))


def conclusion(comparisons: Sequence[Comparison]) -> str:
    """In words: what is known of the robust accuracy, what has no answer and why, and what contradicts what."""
    known = [f"{ball_name(c.ball)}: {c.known}." for c in comparisons]
    undecided = {
        f"The model's logits are NaN for {c.undecided} of {len(c.y)} samples, which count as wrong decisions."
        for c in comparisons
        if c.undecided
    }
    missing = gathered((row.name, cause) for c in comparisons for row in c.rows for cause in row.causes)
    remarks = gathered((row.name, remark) for c in comparisons for row in c.rows for remark in row.remarks)
    crossings = [f"at {ball_name(c.ball)}, {crossing}" for c in comparisons for crossing in c.crossings]
    return "\n".join(
        [
            *known,
            *undecided,
            *missing,
            *remarks,
            *_falling(comparisons),
            *closing(crossings, any(c.bracket.complete for c in comparisons)),
        ]
    )


def sampling(comparisons: Sequence[Comparison]) -> str:
    """In words: how far the shares of these samples may be from those of all data; empty where there is no sample."""
    first = comparisons[0]
    if first.clean is None:
        return ""
    count = len(first.y)
    said = [("clean", first.clean)]
    for c in comparisons:
        title = ball_name(c.ball)
        said += [(f"{word} at {title}", half) for word, half in zip(("attacked", "certified"), c.bracket, strict=True)
                 if half is not None]  # fmt: skip
    ends = ((word, *Share(round(value * count), count).interval) for word, value in said)
    listed = "; ".join(f"{word} {low:.3f} to {high:.3f}" for word, low, high in ends)
    return f"95 % intervals (Wilson), as {count} samples are a part of all data: {listed}."


def _falling(comparisons: Sequence[Comparison]) -> list[str]:
    """Attacks that break a sample in one ball and not in a wider one, which holds the first."""
    found = []
    ordered = sorted(comparisons, key=lambda c: c.ball.largest)
    for narrow, wide in itertools.pairwise(ordered):
        if type(narrow.ball) is not type(wide.ball) or narrow.ball.clip != wide.ball.clip:
            continue
        within = narrow.ball.eps_for(narrow.x).flatten() <= wide.ball.eps_for(wide.x).flatten()
        for row, other in zip(narrow.rows, wide.rows, strict=True):
            if isinstance(row.result, AttackResult) and isinstance(other.result, AttackResult):
                lost = int((row.result.success & ~other.result.success & within).sum())
                if lost:
                    found.append(
                        f"{row.name}: doubtful: success does not rise with the radius: {lost} samples are broken at "
                        f"{ball_name(narrow.ball)} and not at {ball_name(wide.ball)}"
                    )
    return found


def _clean_cell(comparison: Comparison) -> str:
    if comparison.clean is None:
        return "no samples"
    return f"{comparison.clean:.3f}" + (f" ({comparison.undecided} NaN)" if comparison.undecided else "")


def share(flags: Bool[Tensor, " batch"]) -> float | None:
    """The share that is True; None of nothing."""
    return flags.double().mean().item() if len(flags) else None


def _broken(result: AttackResult | Certificate | None) -> tuple[Tensor, Tensor | None]:
    """The samples for which another decision was found, and where."""
    if isinstance(result, AttackResult):
        return result.success, result.x_adv
    if isinstance(result, Certificate):
        return ~result.witness.flatten(1).isnan().any(1), result.witness
    return torch.zeros(0, dtype=torch.bool), None
