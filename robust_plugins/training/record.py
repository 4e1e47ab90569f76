"""`TrainingRecord`: what happened in each epoch of a training, as a table, a picture, a file, and ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.result import Result
from robust_plugins.harness.stored import stored
from robust_plugins.harness.table import Table
from robust_plugins.training.curve import curve_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@stored
@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch: means over its batches, the schedules at its last batch, and the scores after it.

    - `epoch`: from one.
    - `loss`: what was trained on.
    - `clean`: the loss on clean inputs; None where the loss does not say.
    - `worst`: the robust loss, over the batches in which it counted; None where there were none.
    - `eps`: the radius trained for; the largest one, where each sample has its own.
    - `gamma`: the clean loss's weight; None where the loss has none.
    - `seconds`: of training, without the scores.
    - `scores`: from `evaluate`, by name: a number, or in words why there is none, such as `unsupported: ...`.
    """

    epoch: int
    loss: float
    clean: float | None
    worst: float | None
    eps: float | None
    gamma: float | None
    seconds: float
    scores: dict[str, float | str]


@dataclass(frozen=True, repr=False)
class TrainingRecord(Result):
    """The epochs of a training. Printing it gives the table.

    - `epochs`: one record for each: losses, scores, weights of the terms and time.
    """

    epochs: tuple[EpochRecord, ...]

    @property
    def final(self) -> EpochRecord:
        """The last epoch."""
        return self.epochs[-1]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return {"epochs": [asdict(epoch) for epoch in self.epochs]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingRecord:
        """The inverse of `to_dict`."""
        return cls(tuple(EpochRecord(**epoch) for epoch in data["epochs"]))

    def __repr__(self) -> str:
        """One line; printing gives the table."""
        scores = self.final.scores if self.epochs else {}
        said = [f"{k} {v.partition(':')[0]}" if isinstance(v, str) else f"{k} {v:.4g}" for k, v in scores.items()]
        return f"<TrainingRecord: {len(self.epochs)} epochs{'; ' * bool(said)}{', '.join(said)}>"

    def to_records(self) -> list[dict[str, Any]]:
        """For each epoch its losses, the schedules, its time, and the scores behind the names of their components.

        A score without a number is None; `causes` says why.
        """
        return [
            {name: value for name, value in asdict(epoch).items() if name != "scores"}
            | {f"score {k}": None if isinstance(v, str) else v for k, v in epoch.scores.items()}
            for epoch in self.epochs
        ]

    def parts(self) -> list[Table | str]:
        """The table, and why scores are missing."""
        if not self.epochs:
            return [repr(self)]
        titles = (*_COLUMNS, *self.final.scores)
        table = Table(titles, tuple(cells(epoch) for epoch in self.epochs), words=0)
        return [table, *(["\n".join(self.causes)] if self.causes else [])]

    def plot(self) -> Figure:
        """A picture: the losses and the scores after each epoch. Raises PluginError without matplotlib."""
        return curve_figure(self.to_dict()["epochs"])

    def __str__(self) -> str:
        lines = [row(epoch) for epoch in self.epochs]
        return "\n".join([header(self.final.scores), *lines, *self.causes]) if lines else "no epoch"

    @property
    def causes(self) -> tuple[str, ...]:
        """Why the last epoch has no number for some of its scores, a line each."""
        scores = self.final.scores if self.epochs else {}
        return tuple(f"{name}: {value}" for name, value in scores.items() if isinstance(value, str))


_COLUMNS = {
    "epoch": 5, "loss": 10, "clean loss": 12, "worst loss": 12, "eps": 10, "gamma": 10, "seconds": 9,
}  # fmt: skip
"""The columns before the scores, one of which is called `clean`, and their widths."""


def checked_scores(scores: Mapping[str, Any]) -> dict[str, float | str]:
    """The scores as plain numbers and texts, which a checkpoint and JSON can hold; ArgumentError for anything else."""
    if not isinstance(scores, Mapping):
        raise ArgumentError(
            "evaluate", f"returning {scores!r}", accepted="scores by name", hint='For example {"clean": 0.9}.'
        )
    return {str(name): value if isinstance(value, str) else float(value) for name, value in scores.items()}


def header(scores: Mapping[str, float | str]) -> str:
    """The title line of a table whose last columns are these scores."""
    return "".join(f"{name:>{width}}" for name, width in _COLUMNS.items()) + "".join(f"  {n:>10}" for n in scores)


def row(epoch: EpochRecord) -> str:
    """One line of the table."""
    widths = (*_COLUMNS.values(), *(max(10, len(name)) + 2 for name in epoch.scores))
    return "".join(f"{text:>{width}}" for text, width in zip(cells(epoch), widths, strict=True))


def cells(epoch: EpochRecord) -> tuple[str, ...]:
    """The cells of one line: empty where there is no such loss, and a word where a score has no number."""
    values = (epoch.loss, epoch.clean, epoch.worst, epoch.eps, epoch.gamma)
    figures = ("" if v is None else f"{v:.4g}" for v in values)
    scores = (v.partition(":")[0] if isinstance(v, str) else f"{v:.4f}" for v in epoch.scores.values())
    return (str(epoch.epoch), *figures, f"{epoch.seconds:.1f}", *scores)
