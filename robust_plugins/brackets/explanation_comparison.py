"""`ExplanationComparison`: what attacks and certifiers found of the same explanations, as data, table and words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robust_plugins.balls import Ball
from robust_plugins.brackets.answers import closing, gathered, silence
from robust_plugins.brackets.ball_names import ball_name
from robust_plugins.brackets.crossing import Crossing
from robust_plugins.brackets.explanation_crossings import explanation_crossings
from robust_plugins.brackets.explanation_row import ExplanationRow, figure, share
from robust_plugins.brackets.one_ball import OneBall, held
from robust_plugins.explanations import ExplanationAttackResult, ExplanationCertificate
from robust_plugins.explanations.explained import Of
from robust_plugins.harness.bracket import Bracket
from robust_plugins.harness.pictures import Bar
from robust_plugins.harness.table import Table
from robust_plugins.registry.information import Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Statement = Literal["keeps_top_1", "keeps_top_k", "robust"]
Half = Literal["neither", "attack", "certificate"]

ROUNDING = 1e-5
"""Ends of the relative deviation that differ by no more count as equal."""


@dataclass(frozen=True, eq=False, repr=False)
class ExplanationComparison(OneBall):
    """The bracket of the explanations of one batch: what attacks reached, and what certifiers proved.

    Printing it gives the table; `crossings` are contradictions, which mean that an attack or a certifier is wrong.

    - `x`: the inputs.
    - `y`: their classes.
    - `ball`: the set around each input.
    - `of`: whose gradient is the explanation.
    - `k`: how many of the largest features have to stay.
    - `delta`: the width that is allowed to each component; None where none was asked for.
    - `radius`: how far every parameter may be off besides, relative to its size.
    - `seed`: the seed of all attacks.
    - `value`: the explanation at `x`.
    - `rows`: one for each component.
    - `crossings`: where an attack contradicts a certificate.
    """

    measure: ClassVar[str] = "median relative deviation"
    share_of_samples: ClassVar[bool] = False

    x: Float[Tensor, "batch *features"]
    y: Int[Tensor, " batch"]
    ball: Ball
    of: Of
    k: int
    delta: float | None
    radius: float
    seed: int
    value: Float[Tensor, "batch *features"]
    rows: tuple[ExplanationRow, ...]
    crossings: tuple[Crossing, ...]

    @property
    def deviation(self) -> Bracket[Float[Tensor, " batch"]]:
        """For each sample the largest relative deviation that was reached, and the smallest that is proved.

        A half is None where no component of its kind ran or has an answer; the proved one is infinite for samples of
        which nothing is proved.
        """
        attacked = [row.deviation for row in self._of(Kind.EXPLANATION_ATTACK) if row.deviation is not None]
        proved = [row.deviation for row in self._of(Kind.EXPLANATION_CERTIFIER) if row.deviation is not None]
        return Bracket(
            torch.stack(attacked).amax(0) if attacked else None, torch.stack(proved).amin(0) if proved else None
        )

    @property
    def loose(self) -> tuple[Half, ...] | None:
        """For each sample which half of the deviation's bracket is likely the loose one; None without such a hint.

        "neither" where they are at most 10 % apart. Else "attack", where fewer than two of the independent ascents of
        the best attack came within 1 % of what it found, so that others may find more; and "certificate" where two or
        more did. Ascents that agree are no proof of the maximum: they may share a blind spot.
        """
        low, high = self.deviation
        known = [
            result
            for row in self._of(Kind.EXPLANATION_ATTACK)
            for result in row.results
            if row.deviation is not None and isinstance(result, ExplanationAttackResult) and result.agreeing is not None
        ]
        if low is None or high is None or not known:
            return None
        # An attack that was itself surpassed by more than 1 %, by another one or for another goal, was not at its end.
        agreed = torch.stack([
            (result.agreeing >= 2) & (result.deviation >= 0.99 * low)  # type: ignore[operator]
            for result in known
        ]).any(0)  # fmt: skip
        apart = (high > 1.1 * low + ROUNDING).tolist()
        return tuple(
            ("certificate" if a else "attack") if far else "neither"
            for far, a in zip(apart, agreed.tolist(), strict=True)
        )

    def share(self, what: Statement) -> Bracket[float]:
        """The share of samples of which `"keeps_top_1"`, `"keeps_top_k"` or `"robust"` withstood, and is proved."""
        withstood, proved = (
            [flags for row in self._of(kind) if (flags := getattr(row, what)) is not None]
            for kind in (Kind.EXPLANATION_ATTACK, Kind.EXPLANATION_CERTIFIER)
        )
        return Bracket(
            share(torch.stack(withstood).all(0)) if withstood else None,
            share(torch.stack(proved).any(0)) if proved else None,
        )

    def __getitem__(self, name: str) -> ExplanationRow:
        """The row of one component, by the name that it was asked for."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.parts()))

    def __repr__(self) -> str:
        """One line; printing gives the table."""
        what = f"{ball_name(self.ball)}, {self.subject}"
        low, high = self.deviation
        ends = [figure(low, attacked=True)] if low is not None else []
        proved = [figure(high, attacked=False)] if high is not None else []
        said = f"the median relative deviation is {_range(ends, proved)}" if ends or proved else "nothing is known"
        return f"<ExplanationComparison of the {self.of}: {what}; {said}>"

    @property
    def subject(self) -> str:
        """So many samples, and so many components."""
        return f"{len(self.y)} samples, {len(self.rows)} components"

    @property
    def band(self) -> Bracket[float]:
        """The medians of the deviation's bracket."""
        return Bracket(*(None if half is None else half.nanmedian().item() for half in self.deviation))

    def heights(self) -> list[Bar]:
        """The median of each component's deviations."""
        return [
            Bar(row.name, row.said, None if row.deviation is None else row.deviation.nanmedian().item())
            for row in self.rows
        ]

    def against(self, other: ExplanationComparison) -> tuple[Crossing, ...]:
        """Where an input of another ball has an explanation that bounds of that ball leave out."""
        found = []
        for name, result, _ in attacked_of(self.rows):
            every = torch.ones(len(other.y), dtype=torch.bool, device=other.x.device)
            inside = held(other.ball, result.x_adv, other.x, every)
            found.append((f"{name} at {ball_name(self.ball)}", result, inside))
        proved = [(f"{name} at {ball_name(other.ball)}", proof) for name, proof in certified_of(other.rows)]
        return explanation_crossings(found, proved, self.k)

    def concluded(self, comparisons: Sequence[ExplanationComparison]) -> str:
        """The conclusion of all balls."""
        return explanation_conclusion(comparisons)

    @property
    def tightest(self) -> ExplanationRow | None:
        """The certifier with the smallest deviations; None where none has an answer with finite bounds."""
        rows = [
            row
            for row in self._of(Kind.EXPLANATION_CERTIFIER)
            if row.deviation is not None and bool(row.results[0].gradient.width.flatten(1).isfinite().all(1).any())  # type: ignore[union-attr]
        ]
        return min(rows, key=_mean_deviation, default=None)

    def plot(self, *, samples: int = 6, feature_names: Sequence[str] = ()) -> Figure:
        """A picture: the attributions of `samples` samples, the tightest bounds, and what the strongest attack found.

        Of images the bounds are drawn as images, and what attacks found is left out where there are bounds. Raises
        PluginError without matplotlib.
        """
        from robust_plugins.explanations.pictures import Explanations, explained_figure

        proved = self.tightest
        found = [row for row in self._of(Kind.EXPLANATION_ATTACK) if row.deviation is not None]
        strongest = max(found, key=_mean_deviation, default=None)
        if strongest is not None and proved is not None and self.x.dim() == 4:
            strongest = None
        return explained_figure(
            Explanations(
                value=self.value,
                bounds=None if proved is None else proved.results[0].gradient,  # type: ignore[arg-type]
                found=None if strongest is None else strongest.results[0].gradient,  # type: ignore[arg-type]
                found_by="" if strongest is None else strongest.name,
                x=self.x,
                titles=[f"sample {i}, y = {int(label)}" for i, label in enumerate(self.y)],
                clip=self.ball.clip,
            ),
            samples,
            feature_names,
        )

    def parts(self) -> list[Table | str]:
        """The table, and the conclusion."""
        return [explanation_table(self), explanation_conclusion([self])]

    def to_records(self) -> list[dict[str, Any]]:
        """For each component: the median deviation, the shares of samples that are kept, and why there is no answer."""
        return [
            {
                "ball": type(self.ball).__name__, "eps": self.ball.largest, "samples": len(self.y),
                "component": row.name, "is": row.said,
                "deviation": None if row.deviation is None else row.deviation.nanmedian().item(),
                "top_1_kept": None if row.keeps_top_1 is None else share(row.keeps_top_1),
                "top_k_kept": None if row.keeps_top_k is None else share(row.keeps_top_k),
                "robust": None if row.robust is None else share(row.robust),
                "seconds": row.seconds, "cause": "; ".join(row.causes),
            }
            for row in self.rows
        ]  # fmt: skip

    @property
    def known(self) -> str:
        """The explanations' robustness in words, as far as it is known, and which side has no answer."""
        low, high = self.deviation
        statements: dict[Statement, str] = {"keeps_top_1": "the top 1 are kept"}
        if self.k > 1:
            statements["keeps_top_k"] = f"the top {self.k} are kept"
        if self.delta is not None:
            statements["robust"] = f"no width exceeds {self.delta:.4g}"
        found = [] if low is None else [figure(low, attacked=True)]
        proved = [] if high is None else [figure(high, attacked=False)]
        parts = []
        if found or proved:
            parts.append(f"the median relative deviation is {_range(found, proved)}")
            parts += [f"{text} for {_shares(self.share(what))} of the samples" for what, text in statements.items()]
        if self.loose is not None and (apart := sum(half != "neither" for half in self.loose)):
            parts.append(
                f"of {apart} samples with ends more than 10 % apart the loose end is likely the certificate for "
                f"{self.loose.count('certificate')}, where ascents of the attack agree, and the attack for "
                f"{self.loose.count('attack')}, where at most one came so far"
            )
        if not found:
            parts.append(silence("attack", len(self._of(Kind.EXPLANATION_ATTACK))))
        if not proved:
            parts.append(silence("certifier", len(self._of(Kind.EXPLANATION_CERTIFIER))))
        return "; ".join(parts)

    def _of(self, kind: Kind) -> list[ExplanationRow]:
        return [row for row in self.rows if row.kind is kind]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the explanations themselves, ready for JSON: per-sample lists in the order of the samples.

        What has no answer is None, with its `causes` beside it; so are numbers that are not finite, which JSON lacks.
        """
        statements: list[Statement] = ["keeps_top_1", "keeps_top_k"]
        statements += [] if self.delta is None else ["robust"]
        deviation = {half: _numbers(values) for half, values in self.deviation.to_dict().items()}
        return {
            "samples": len(self.y),
            "ball": self.ball.to_dict(),
            "of": self.of,
            "k": self.k,
            "delta": self.delta,
            "radius": self.radius,
            "seed": self.seed,
            "bracket": {"deviation": deviation} | {what: self.share(what).to_dict() for what in statements},
            "loose": None if self.loose is None else list(self.loose),
            "known": self.known,
            "rows": [
                {
                    "name": row.name,
                    "kind": row.kind.value,
                    "deviation": _numbers(row.deviation),
                    "keeps_top_1": None if row.keeps_top_1 is None else row.keeps_top_1.tolist(),
                    "keeps_top_k": None if row.keeps_top_k is None else row.keeps_top_k.tolist(),
                    "robust": None if row.robust is None else row.robust.tolist(),
                    "seconds": row.seconds,
                    "causes": list(row.causes),
                    "error": row.error,
                }
                for row in self.rows
            ],
            "crossings": [crossing.to_dict() for crossing in self.crossings],
        }


def attacked_of(rows: Sequence[ExplanationRow]) -> list[tuple[str, ExplanationAttackResult, None]]:
    """The results of attacks, each behind its component's name; all samples count."""
    return [(row.name, r, None) for row in rows for r in row.results if isinstance(r, ExplanationAttackResult)]


def certified_of(rows: Sequence[ExplanationRow]) -> list[tuple[str, ExplanationCertificate]]:
    """The certificates, each behind its component's name."""
    return [(row.name, r) for row in rows for r in row.results if isinstance(r, ExplanationCertificate)]


def explanation_table(comparison: ExplanationComparison) -> Table:
    """A row per component: the median deviation, and shares of samples."""
    k, delta = comparison.k, comparison.delta
    titles = ("deviation (median)", "top 1 kept", f"top {k} kept", f"width <= {delta or 0:.4g}")
    shown = [0, 1, *([2] if k > 1 else []), *([3] if delta is not None else [])]
    return Table(
        ("explanations", "are", *(titles[i] for i in shown)),
        tuple((row.name, row.said, *(row.cells[i] for i in shown)) for row in comparison.rows),
    )


def explanation_conclusion(comparisons: Sequence[ExplanationComparison]) -> str:
    """In words: what is known of the explanations, what has no answer and why, and what contradicts what."""
    known = [f"{ball_name(c.ball)}: {c.known}." for c in comparisons]
    missing = gathered((row.name, cause) for c in comparisons for row in c.rows for cause in row.causes)
    crossings = [f"at {ball_name(c.ball)}, {crossing}" for c in comparisons for crossing in c.crossings]
    return "\n".join([*known, *missing, *closing(crossings, any(c.deviation.complete for c in comparisons))])


def _range(low: Sequence[str], high: Sequence[str]) -> str:
    if low and high:
        return f"between {low[0]} and {high[0]}"
    return f"at least {low[0]}" if low else f"at most {high[0]}"


def _shares(bracket: Bracket[float]) -> str:
    high, low = bracket
    if low is not None and high is not None:
        return f"{low:.3f} to {high:.3f}"
    return f"at most {high:.3f}" if high is not None else f"at least {low or 0:.3f}"


def _mean_deviation(row: ExplanationRow) -> float:
    assert row.deviation is not None
    return row.deviation.nan_to_num(posinf=1e30).mean().item()


def _numbers(values: Tensor | None) -> list[float | None] | None:
    return None if values is None else [v if math.isfinite(v) else None for v in values.tolist()]
