"""`ErrorComparison`: the largest errors of a regressor that attacks reached and certifiers proved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.balls import Ball
from robust_plugins.brackets.answers import closing, gathered, silence
from robust_plugins.brackets.ball_names import ball_name
from robust_plugins.brackets.crossing import Crossing, crossings
from robust_plugins.brackets.one_ball import OneBall, held
from robust_plugins.harness.bracket import Bracket
from robust_plugins.harness.pictures import Bar, bars
from robust_plugins.harness.stored import stored
from robust_plugins.harness.table import Table
from robust_plugins.intervals import Interval
from robust_plugins.registry.information import Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@stored
@dataclass(frozen=True, eq=False, repr=False)
class ErrorRow:
    """The answer of one component on all samples, or why it has none.

    - `name`: the component's name.
    - `kind`: attack or certifier.
    - `errors`: of an attack, the largest error that it reached, the largest over the outputs; of a certifier, what no
      error exceeds. None where there is no answer.
    - `x_adv`: where an attack reached it.
    - `bounds`: a certifier's bounds on the outputs, (batch, outputs).
    - `seconds`: wall-clock time.
    - `error`: what a component raised, in words, with file and line.
    - `exception`: what a component raised, with its traceback; files do not keep it.
    """

    name: str
    kind: Kind
    errors: Float[Tensor, " batch"] | None
    x_adv: Float[Tensor, "batch *features"] | None
    bounds: Interval | None
    seconds: float
    error: str = ""
    exception: BaseException | None = field(default=None, metadata={"stored": False})

    def __repr__(self) -> str:
        """One line."""
        figures = "no answer" if self.errors is None else " and ".join(_figures(self.errors))
        return f"<ErrorRow {self.name}: mean and largest error {figures}>"


@dataclass(frozen=True, eq=False, repr=False)
class ErrorComparison(OneBall):
    """The bracket of a regressor's largest errors over a ball around each sample. Printing it gives the table.

    The error of a sample is the largest `|f_j(x') - y_j|` over outputs j and inputs x' of the ball.

    - `x`: the inputs.
    - `reference`: what the outputs are compared with: the labels, or the model's own predictions at `x`.
    - `ball`: the set around each input.
    - `seed`: the seed of all attacks.
    - `clean`: the error at `x` itself.
    - `rows`: one for each component: its name, kind, errors, time and result.
    - `crossings`: where an attack reached more than a certifier allows.
    - `slack`: how far an error may pass a proved one by rounding alone; None in files of older versions.
    """

    measure: ClassVar[str] = "mean of the largest errors"
    share_of_samples: ClassVar[bool] = False

    x: Float[Tensor, "batch *features"]
    reference: Float[Tensor, "batch outputs"]
    ball: Ball
    seed: int
    clean: Float[Tensor, " batch"]
    rows: tuple[ErrorRow, ...]
    crossings: tuple[Crossing, ...]
    slack: Float[Tensor, " batch"] | None = None

    @property
    def errors(self) -> Bracket[Tensor]:
        """For each sample the largest error that was reached, and the smallest that is proved not to be exceeded."""
        halves: list[Tensor | None] = []
        for kind in (Kind.ATTACK, Kind.CERTIFIER):
            found = [row.errors for row in self.rows if row.kind is kind and row.errors is not None]
            stacked = torch.stack(found) if found else None
            if stacked is None:
                halves.append(None)
            else:
                halves.append(stacked.amax(0) if kind is Kind.ATTACK else stacked.amin(0))
        return Bracket(*halves)

    @property
    def bracket(self) -> Bracket[float]:
        """The mean over the samples of their largest errors."""
        return Bracket(*(None if half is None or not len(half) else half.mean().item() for half in self.errors))

    def __getitem__(self, name: str) -> ErrorRow:
        """The row of one component, by the name that it was asked for."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    @property
    def known(self) -> str:
        """The mean of the largest errors in words, as far as it is known, and which side has no answer."""
        low, high = self.bracket
        if not len(self.clean):
            return "nothing is known of the largest error: there is no sample"
        counts = {kind: sum(row.kind is kind for row in self.rows) for kind in (Kind.ATTACK, Kind.CERTIFIER)}
        no_attack, no_certifier = silence("attack", counts[Kind.ATTACK]), silence("certifier", counts[Kind.CERTIFIER])
        least = self.clean.mean().item() if low is None else low
        if high is None:
            words = f"the mean of the largest errors is at least {least:.4g}; {no_certifier}"
            return words if low is not None else f"{words}; {no_attack}"
        words = f"the mean of the largest errors is between {least:.4g} and {high:.4g}"
        return words if low is not None else f"{words}; {no_attack}, and the lower end is the error at x itself"

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.parts()))

    def __repr__(self) -> str:
        """One line; printing gives the table."""
        return f"<ErrorComparison: {ball_name(self.ball)}, {self.subject}; {self.known}>"

    @property
    def subject(self) -> str:
        """So many samples, and so many components."""
        return f"{len(self.clean)} samples, {len(self.rows)} components"

    @property
    def band(self) -> Bracket[float]:
        """The bracket of the mean of the largest errors."""
        return self.bracket

    def heights(self) -> list[Bar]:
        """The mean of the largest errors: at x itself, reached, and proved not to be exceeded."""
        rows = [Bar("the model", "clean", self.clean.mean().item() if len(self.clean) else None)]
        for row in self.rows:
            mean = None if row.errors is None or not len(row.errors) else row.errors.mean().item()
            rows.append(Bar(row.name, "attacked" if row.kind is Kind.ATTACK else "certified", mean))
        return rows

    def against(self, other: ErrorComparison) -> tuple[Crossing, ...]:
        """Where an attack reached an error at an input of another ball, in which less is proved."""
        found: list[Crossing] = []
        slack = 0.0 if self.slack is None or other.slack is None else torch.maximum(self.slack, other.slack)
        for row in self.rows:
            if row.x_adv is None or row.errors is None or not len(row.errors):
                continue
            inside = held(other.ball, row.x_adv, other.x, torch.ones_like(row.errors, dtype=torch.bool))
            reached = row.errors.where(inside, math.nan)
            for proof in other.rows:
                if proof.kind is Kind.CERTIFIER and proof.errors is not None:
                    found += crossings(
                        f"{row.name} at {ball_name(self.ball)}", f"{proof.name} at {ball_name(other.ball)}",
                        "the error", reached, proof.errors, side="at most", slack=slack,
                    )  # fmt: skip
        return tuple(found)

    def concluded(self, comparisons: Sequence[ErrorComparison]) -> str:
        """In words: what is known in each ball, what has no answer and why, and what contradicts what."""
        known = [f"{ball_name(c.ball)}: {c.known}." for c in comparisons]
        missing = gathered((row.name, row.error) for c in comparisons for row in c.rows if row.error)
        where = (lambda c: f"at {ball_name(c.ball)}, ") if len(comparisons) > 1 else (lambda c: "")
        crossed = [f"{where(c)}{crossing}" for c in comparisons for crossing in c.crossings]
        ends = closing(crossed, any(c.bracket.complete for c in comparisons), "a bound")
        return "\n".join([*known, *missing, *ends])

    def plot(self) -> Figure:
        """A picture: the mean of the largest errors. Raises PluginError without matplotlib."""
        low, high = self.bracket
        band = None if low is None or high is None or high == float("inf") else (low, high)
        label = f"mean of the largest errors at {ball_name(self.ball)}, {len(self.clean)} samples"
        return bars(self.heights(), label, bracket=band, share=False)

    def to_records(self) -> list[dict[str, Any]]:
        """For the model and each component: the mean and the largest error, and why there is none."""
        words = {Kind.ATTACK: "reached", Kind.CERTIFIER: "at most"}
        every = [("the model", "clean", self.clean, None, ""),
                 *((r.name, words[r.kind], r.errors, r.seconds, r.error) for r in self.rows)]  # fmt: skip
        return [
            {
                "ball": type(self.ball).__name__, "eps": self.ball.largest, "samples": len(self.clean),
                "component": name, "is": said,
                "mean": errors.mean().item() if errors is not None and len(errors) else None,
                "largest": errors.max().item() if errors is not None and len(errors) else None,
                "seconds": seconds, "cause": cause,
            }
            for name, said, errors, seconds, cause in every
        ]  # fmt: skip

    def parts(self) -> list[Table | str]:
        """The table, and the conclusion."""
        rows = [("the model", "clean", *_figures(self.clean))]
        words = {Kind.ATTACK: "reached", Kind.CERTIFIER: "at most"}
        for row in self.rows:
            cells = ("error", "") if row.errors is None else _figures(row.errors)
            rows.append((row.name, words[row.kind], *cells))
        return [Table(("error of", "is", "mean", "largest"), tuple(rows)), self.concluded([self])]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors of inputs, ready for JSON; what has no answer is None."""
        return {
            "samples": len(self.clean),
            "ball": self.ball.to_dict(),
            "seed": self.seed,
            "clean": self.clean.tolist(),
            "bracket": self.bracket.to_dict(),
            "known": self.known,
            "rows": [
                {"name": row.name, "kind": row.kind.value, "errors": _finite(row.errors), "seconds": row.seconds,
                 "error": row.error}
                for row in self.rows
            ],
            "crossings": [crossing.to_dict() for crossing in self.crossings],
        }  # fmt: skip


def _figures(errors: Tensor) -> tuple[str, str]:
    return (f"{errors.mean().item():.4g}", f"{errors.max().item():.4g}") if len(errors) else ("no samples", "")


def _finite(errors: Tensor | None) -> Sequence[float | None] | None:
    return None if errors is None else [e if abs(e) != float("inf") and e == e else None for e in errors.tolist()]
