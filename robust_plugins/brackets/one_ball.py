"""`OneBall`: what a comparison in one ball offers, so that those in several balls can be held together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from robust_plugins.balls import Ball
from robust_plugins.brackets.ball_names import ball_name
from robust_plugins.brackets.crossing import Crossing
from robust_plugins.harness.bracket import Bracket
from robust_plugins.harness.pictures import Bar, Curve, against_radius, drawn, legend_below
from robust_plugins.harness.result import Result
from robust_plugins.harness.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


C = TypeVar("C", bound="OneBall")


class OneBall(Result):
    """A comparison of attacks and certifiers in one ball around each sample.

    Methods that take comparisons are asked of the first of them, and get all: the same samples and components.
    """

    measure: ClassVar[str]
    """What a picture against eps shows: the axis' label."""
    share_of_samples: ClassVar[bool] = True
    """Whether that is a share, between 0 and 1."""

    ball: Ball
    crossings: Any
    """The contradictions, a tuple of `Crossing`; a field or a property."""

    @property
    @abstractmethod
    def subject(self) -> str:
        """So many samples, and what else was compared, in words."""

    @property
    @abstractmethod
    def band(self) -> Bracket[float]:
        """The bracket of `measure`."""

    @abstractmethod
    def heights(self) -> list[Bar]:
        """The values of `measure`: unattacked where there is such a number, and by each component."""

    @abstractmethod
    def against(self: C, other: C) -> tuple[Crossing, ...]:
        """Contradictions between inputs that attacks found here, and certificates of another ball that holds them."""

    @abstractmethod
    def concluded(self: C, comparisons: Sequence[C]) -> str:
        """In words: what is known in each ball, and in the last lines what contradicts what."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Everything but the tensors, ready for JSON."""

    @abstractmethod
    def plot(self) -> Figure:
        """A picture. Raises PluginError without matplotlib."""

    def tabled(self: C, comparisons: Sequence[C]) -> Table:
        """A table with a part for each ball."""
        tables = [(ball_name(c.ball), part) for c in comparisons for part in c.parts() if isinstance(part, Table)]
        rows = tuple((name, *row) for name, table in tables for row in table.rows)
        first = tables[0][1]
        return Table(("ball", *first.columns), rows, words=first.words + 1)

    def curves(self: C, comparisons: Sequence[C]) -> Figure | None:
        """`measure` against eps; the truth lies in the shaded band.

        Comparisons with one eps per sample have no place on the axis and are left out. None where fewer than two
        remain. Raises PluginError without matplotlib.
        """
        points = sorted(
            ((c.ball.radii, c) for c in comparisons if not isinstance(c.ball.radii, tuple)), key=lambda point: point[0]
        )
        if len(points) < 2:
            return None
        ends = [[drawn(half) for half in halves] for halves in zip(*(c.band for _, c in points), strict=True)]
        rows = list(zip(*(c.heights() for _, c in points), strict=True))
        clean = [bars[0].value for bars in rows if bars[0].half == "clean"]
        curves = [
            Curve(bars[0].name, bars[0].half, [drawn(bar.value) for bar in bars])
            for bars in rows
            if bars[0].half != "clean"
        ]
        kind = type(points[0][1].ball).__name__
        figure, axes = against_radius(
            [radius for radius, _ in points], (ends[0], ends[1]), curves, axis=f"eps ({kind}, input units)",
            label=self.measure,
        )  # fmt: skip
        for value in clean:
            axes.axhline(drawn(value), color="0.4", linestyle=":", label="clean")
        if self.share_of_samples:
            axes.set_ylim(-0.02, 1.02)
        legend_below(figure, axes)
        return figure


def held(ball: Ball, points: Tensor, x: Tensor, chosen: Tensor) -> Tensor:
    """Which of the chosen points lie in the ball, without tolerance."""
    inside = ball.contains(torch.where(chosen.view(-1, *[1] * (x.dim() - 1)), points, x), x, tolerance=0.0)
    return inside[chosen]
