"""`BallsComparison`: comparisons over several balls, held together: what holds in one ball holds in those inside it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from robust_plugins.balls import Ball
from robust_plugins.brackets.ball_names import ball_name
from robust_plugins.brackets.comparison import Comparison
from robust_plugins.brackets.crossing import Crossing
from robust_plugins.brackets.one_ball import OneBall
from robust_plugins.decisions.results import Certificate
from robust_plugins.harness.result import Result
from robust_plugins.harness.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

C = TypeVar("C", bound=OneBall)


@dataclass(frozen=True, eq=False, repr=False)
class BallsComparison(Result, Generic[C]):
    """The brackets of one model on one batch, one for each of several balls. Printing it gives the table.

    It is a sequence of comparisons, in the order of the balls: of decisions, of labels, of errors or of explanations.

    - `comparisons`: the comparison in each ball, on the same samples and with the same components.
    """

    comparisons: tuple[C, ...]

    @property
    def balls(self) -> tuple[Ball, ...]:
        """The balls."""
        return tuple(c.ball for c in self.comparisons)

    @property
    def crossings(self) -> tuple[Crossing, ...]:
        """The contradictions: those in each ball, and those between balls.

        What an attack reached, it reached in every ball that holds its input, so where one of them is certified, the
        attack or the certifier is wrong.
        """
        own = [crossing for c in self.comparisons for crossing in c.crossings]
        return (*own, *self.between)

    @property
    def between(self) -> tuple[Crossing, ...]:
        """Inputs found for one ball that lie in another one, where what they show is certified not to be."""
        return tuple(x for one, other in itertools.permutations(self.comparisons, 2) for x in one.against(other))

    @property
    def looser(self) -> tuple[str, ...]:
        """Certifiers that prove a sample in one ball and not in a narrower one, whose bounds are looser than they need
        be, in sentences. That contradicts nothing.
        """
        said = []
        for wide, narrow in itertools.permutations(self.comparisons, 2):
            if not isinstance(narrow, Comparison) or not isinstance(wide, Comparison):
                continue
            if not _narrower(narrow.ball, wide.ball):
                continue
            for row, other in zip(narrow.rows, wide.rows, strict=True):
                if isinstance(row.result, Certificate) and isinstance(other.result, Certificate):
                    lost = int((other.result.certified & ~row.result.certified).sum())
                    if lost:
                        said.append(f"{row.name}: certifies {lost} samples at {ball_name(wide.ball)} that it does not "
                                    f"at {ball_name(narrow.ball)}, which lies inside")  # fmt: skip
        return tuple(said)

    def __len__(self) -> int:
        return len(self.comparisons)

    def __iter__(self) -> Iterator[C]:
        return iter(self.comparisons)

    @overload
    def __getitem__(self, place: int) -> C: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[C, ...]: ...
    def __getitem__(self, place: int | slice) -> C | tuple[C, ...]:
        """The comparison of one ball, by its place."""
        return self.comparisons[place]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.parts()))

    def __repr__(self) -> str:
        """One line; printing gives the table."""
        names = ", ".join(map(ball_name, self.balls))
        first = self.comparisons[0]
        crossed = f"; {len(self.crossings)} CONTRADICTIONS" if self.crossings else ""
        return f"<BallsComparison of {first.subject}; {names}{crossed}>"

    def parts(self) -> list[Table | str]:
        """The table, a column for each ball or a part for each, and the conclusion."""
        return [self.comparisons[0].tabled(self.comparisons), self.conclusion()]

    def conclusion(self) -> str:
        """In words: what is known in each ball, and what contradicts what, in a ball and between balls."""
        said = self.comparisons[0].concluded(self.comparisons).splitlines()
        crossed = [f"CONTRADICTION between balls, {crossing}" for crossing in self.between]
        if not crossed:
            return "\n".join([*said[:-1], *self.looser, *said[-1:]])
        kept = said if any(c.crossings for c in self.comparisons) else said[:-1]
        return "\n".join([*kept, *self.looser, *crossed])

    def plot(self) -> Figure:
        """A picture against eps; of balls that have no one number for it, that of the first one.

        Raises PluginError without matplotlib.
        """
        first = self.comparisons[0]
        return first.curves(self.comparisons) or first.plot()

    def to_records(self) -> list[dict[str, Any]]:
        """The records of every comparison, with its ball."""
        return [record for c in self.comparisons for record in c.to_records()]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, ready for JSON."""
        return {
            "comparisons": [c.to_dict() for c in self.comparisons],
            "between": [crossing.to_dict() for crossing in self.between],
            "looser": list(self.looser),
        }


def _narrower(narrow: Ball, wide: Ball) -> bool:
    """Whether the first ball lies in the second and is another one, as far as their radii tell."""
    if type(narrow) is not type(wide) or narrow.scaled(0) != wide.scaled(0) or narrow == wide:
        return False
    ends = [radii if isinstance(radii, tuple) else (radii,) for radii in (narrow.radii, wide.radii)]
    return len(ends[0]) == len(ends[1]) and all(a <= b for a, b in zip(*ends, strict=True))
