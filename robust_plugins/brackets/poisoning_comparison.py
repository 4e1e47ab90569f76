"""`PoisoningBracket`: what attacks achieved against a training, and what is certified of it, side by side."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from robust_plugins.brackets.crossing import Crossing
from robust_plugins.harness.bracket import Bracket
from robust_plugins.harness.result import Result
from robust_plugins.harness.stored import stored
from robust_plugins.harness.table import Table
from robust_plugins.poisoning.abstract.run import PoisoningRun
from robust_plugins.poisoning.attacks.interface import PoisonedTrainings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@stored
@dataclass(frozen=True)
class PoisoningRow:
    """A row holds what one attack achieved.

    - `attack`: its name.
    - `trainings`: how many it poisoned.
    - `score`: the worst accuracy (for regression the largest mean squared error) of its trainings; None without
      validation.
    - `width`: the range that its trainings and the clean one reach in the pushed parameters, summed.
    - `outside`: how far a trained parameter lies outside its bounds, beyond rounding; 0 where none does.
    - `seconds`: wall-clock time.
    """

    attack: str
    trainings: int
    score: float | None
    width: float
    outside: float
    seconds: float


@dataclass(frozen=True, eq=False, repr=False)
class PoisoningBracket(Result):
    """The truth about a training lies between what poisoners achieved and what is certified against all of them.

    - `run`: the training on intervals.
    - `trainings`: the poisoned trainings of each attack.
    - `rows`: one for each attack: what it reached.
    - `pushed`: the entries of theta (all trained parameters, flattened) that attacks tried to move farthest.
    - `measure`: what `score` is: `"accuracy"` or `"mse"`.
    - `nominal`: the score without poison; None without validation data.
    - `score`: the accuracy or mean squared error that attacks left, and the one that no poison can pass; None without
      validation.
    - `width`: of the pushed parameters' ranges, summed: what attacks reached, and the bounds'.
    - `crossings`: where an attack contradicts a certificate: one of the two is wrong.

    `save` keeps the weights of the networks, and `load(path, model)` puts them into copies of a network like them.
    """

    run: PoisoningRun
    trainings: tuple[PoisonedTrainings, ...]
    rows: tuple[PoisoningRow, ...]
    pushed: tuple[int, ...]
    measure: Literal["accuracy", "mse"]
    nominal: float | None
    score: Bracket[float] | None
    width: Bracket[float]
    crossings: tuple[Crossing, ...]

    @property
    def accuracy(self) -> Bracket[float] | None:
        """`score` of a classification: the worst accuracy that attacks left, and the certified one."""
        return self.score if self.measure == "accuracy" else None

    @property
    def ratio(self) -> float:
        """The part of the certified width that attacks reach: 1 says that bounds cannot be tighter."""
        achieved, certified = self.width
        assert achieved is not None  # an attack has run, and the training has bounds
        assert certified is not None
        return 1.0 if achieved == certified else achieved / certified

    def to_dict(self) -> dict[str, Any]:
        """Everything but the trainings, ready for JSON but for infinite numbers."""
        return {
            "budget": asdict(self.run.budget),
            "measure": self.measure,
            "nominal": self.nominal,
            "score": None if self.score is None else self.score.to_dict(),
            "width": self.width.to_dict(),
            "ratio": self.ratio,
            "pushed": list(self.pushed),
            "crossings": [crossing.to_dict() for crossing in self.crossings],
            "attacks": [asdict(row) for row in self.rows],
            "epochs": [asdict(record) for record in self.run.history],
        }

    def __str__(self) -> str:
        return "\n".join(map(str, self.parts()))

    def __repr__(self) -> str:
        """One line; printing gives the table."""
        score = "" if self.score is None else f"{self.measure} {self.score}, "
        crossed = f"; {len(self.crossings)} CONTRADICTIONS" if self.crossings else ""
        return f"<PoisoningBracket: {len(self.rows)} attacks; {score}width {self.width}{crossed}>"

    def plot(self) -> Figure:
        """A picture: the pushed parameters in their bounds, with what attacks reached; and the widths by epoch.

        Raises PluginError without matplotlib.
        """
        from robust_plugins.brackets.poisoning_plots import bracket_figure

        return bracket_figure(self.run, self.trainings, self.pushed)

    def to_records(self) -> list[dict[str, Any]]:
        """For the clean training, each attack, and any poison: trainings, score and width; None where not known."""
        proved = None if self.score is None or not self._bounded else self.score.certified
        entries: list[tuple[str, int | None, float | None, float | None, float | None]] = [
            ("none", 1, self.nominal, 0.0, None),
            *((row.attack, row.trainings, row.score, row.width, row.seconds) for row in self.rows),
            ("any (certified)", None, proved, self.width.certified, None),
        ]
        names = ("poison", "trainings", self.measure, "width", "seconds")
        return [dict(zip(names, entry, strict=True)) for entry in entries]

    def parts(self) -> list[Table | str]:
        """The table, and the conclusion."""
        certified = self.width.certified
        rows = []
        for record in self.to_records():
            width = record["width"]
            known = record["seconds"] is not None and certified and math.isfinite(certified)
            rows.append((
                record["poison"], "" if record["trainings"] is None else str(record["trainings"]),
                _number(record[self.measure]), "0" if record["poison"] == "none" else _number(width),
                f"{width / certified:.1%}" if known else "",
            ))  # fmt: skip
        score = "accuracy" if self.measure == "accuracy" else "MSE"
        said = [f"CONTRADICTION: {crossing}" for crossing in self.crossings]
        if not self._bounded:
            said.append("The training has no bounds: nothing is certified, and an attack can contradict nothing.")
        ends = "\n".join(said or ["No attack contradicts the certificate."])
        return [Table(("poison", "trainings", score, "width", "of certified"), tuple(rows), words=1), ends]

    @property
    def _bounded(self) -> bool:
        return self.width.certified is not None and math.isfinite(self.width.certified)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if math.isfinite(value) else "unbounded"
