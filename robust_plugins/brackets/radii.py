"""`CriticalRadius`: the radii between which each sample's critical radius lies, as a bracket, a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.balls import Ball
from robust_plugins.brackets.answers import closing, gathered
from robust_plugins.brackets.ball_names import ball_name
from robust_plugins.brackets.crossing import Crossing
from robust_plugins.harness.bracket import Bracket
from robust_plugins.harness.result import Result
from robust_plugins.harness.stored import stored
from robust_plugins.harness.table import Table
from robust_plugins.registry.information import Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@stored
@dataclass(frozen=True, eq=False, repr=False)
class RadiusRow:
    """The radii of one component, from its own bisection.

    - `name`: the component's name.
    - `kind`: attack or certifier.
    - `broken`: the distance of the nearest witness that it found, inf where it found none; None for certifiers that
      search for none.
    - `certified`: the largest radius that it certified; None for attacks, and where it had no answer on any sample.
    - `calls`: of the component.
    - `asked`: samples, over all calls.
    - `seconds`: wall-clock time, loading and warming up included.
    - `causes`: why samples had no answer just above the radius that is stated, with their number.
    """

    name: str
    kind: Kind
    broken: Float[Tensor, " batch"] | None
    certified: Float[Tensor, " batch"] | None
    calls: int
    asked: int
    seconds: float
    causes: tuple[str, ...]

    def __repr__(self) -> str:
        """One line."""
        return f"<RadiusRow {self.name}: {self.kind}, {self.calls} calls, {self.seconds:.2g} s>"


class CriticalRadius(Bracket[Tensor], Result):
    """The bracket of each sample's critical radius, up to which its decision is proved and from which it is broken.

    `empirical` holds the distances of the nearest witnesses, inf where none was found; `certified` the largest radii
    that were certified. Both are zero where the model misclassifies `x` itself. Printing it gives a table.

    - `ball`: the largest radius that was asked for, and the clip range.
    - `seed`: the seed of all attacks.
    - `witness`: the nearest misclassified inputs that were found, (batch, *features); NaN where there is none.
    - `crossings`: witnesses nearer than a certified radius: an attack or a certifier is wrong.
    """

    ball: Ball
    seed: int
    witness: Tensor
    rows: tuple[RadiusRow, ...]
    crossings: tuple[Crossing, ...]

    @classmethod
    def joined(
        cls, rows: Sequence[RadiusRow], *, ball: Ball, seed: int, witness: Tensor, crossings: Sequence[Crossing]
    ) -> CriticalRadius:
        """The bracket of all components: the nearest witness of any, and the largest radius that any certified."""
        broken = [row.broken for row in rows if row.broken is not None]
        certified = [row.certified for row in rows if row.certified is not None]
        nearest = torch.stack(broken).amin(0) if broken else None
        found = cast(CriticalRadius, cls(nearest, torch.stack(certified).amax(0) if certified else None))
        found.ball, found.seed, found.witness = ball, seed, witness
        found.rows, found.crossings = tuple(rows), tuple(crossings)
        return found

    def plot(self) -> Figure:
        """The distribution of the critical radius: for each radius, the share of samples whose own is below it.

        A curve for each component: of a certifier from above, of an attack from below; the truth lies in the shaded
        band. Raises PluginError without matplotlib.
        """
        from robust_plugins.brackets.radius_plots import radius_figure

        curves = [(row.name, row.kind, half) for row in self.rows for half in _halves(row)]
        return radius_figure(self, curves, axis=f"radius ({type(self.ball).__name__}, input units)")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the witnesses, ready for JSON; None for infinite radii and halves without an answer."""
        return {
            "ball": self.ball.to_dict(),
            "bracket": {name: _finite(half) for name, half in (("empirical", self[0]), ("certified", self[1]))},
            "seed": self.seed,
            "rows": [
                {
                    "name": row.name, "kind": row.kind.value, "broken": _finite(row.broken),
                    "certified": _finite(row.certified), "calls": row.calls, "asked": row.asked,
                    "seconds": row.seconds, "causes": list(row.causes),
                }
                for row in self.rows
            ],
            "crossings": [crossing.to_dict() for crossing in self.crossings],
        }  # fmt: skip

    def __str__(self) -> str:
        return "\n".join([str(self.parts()[0]), "", *map(str, self.parts()[1:])])

    def to_records(self) -> list[dict[str, Any]]:
        """For each sample: the distance of the nearest witness and the largest certified radius."""
        halves = [[None] * len(self.witness) if half is None else half.tolist() for half in self]
        return [{"sample": i, "broken": b, "certified": c} for i, (b, c) in enumerate(zip(*halves, strict=True))]

    def state(self) -> dict[str, Any]:
        """Everything that `from_state` makes it of, for files."""
        return {
            "rows": self.rows, "ball": self.ball, "seed": self.seed, "witness": self.witness,
            "crossings": self.crossings,
        }  # fmt: skip

    @classmethod
    def from_state(cls, values: dict[str, Any]) -> CriticalRadius:
        """The inverse of `state`."""
        return cls.joined(**values)

    def parts(self) -> list[Table | str]:
        """The table, and the conclusion."""
        rows = []
        for row in self.rows:
            for half in _halves(row):
                known = half[half.isfinite()].double()
                level = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
                figures = known.cpu().quantile(level).tolist() if len(known) else []
                what = "certified up to" if half is row.certified else "broken at"
                cells = [f"{value:.4g}" for value in figures] or [""] * 3
                rows.append((row.name, what, *cells, f"{len(known)} of {len(half)}", f"{row.seconds:.2f}"))
        columns = ("radius of", "is", "smallest", "median", "largest", "samples", "seconds")
        causes = gathered((row.name, cause) for row in self.rows for cause in row.causes)
        said = [f"at {ball_name(self.ball)}, {crossing}" for crossing in self.crossings]
        return [Table(columns, tuple(rows)), "\n".join([*causes, *closing(said, self.complete)])]


def _halves(row: RadiusRow) -> list[Tensor]:
    return [half for half in (row.broken, row.certified) if half is not None]


def _finite(half: Tensor | None) -> list[float | None] | None:
    return None if half is None else [value if value < float("inf") else None for value in half.tolist()]
