"""`TrainingRecord`: what happened in each epoch of a training, as a table, and ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from robust_plugins.errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch: means over its batches, the schedules at its last batch, and the scores after it."""

    epoch: int
    """From one."""
    loss: float
    clean: float | None
    """The loss on clean inputs; None where the loss does not say."""
    worst: float | None
    """The robust loss, over the batches in which it counted; None where there were none."""
    eps: float | None
    """The radius trained for; the largest one, where each sample has its own."""
    gamma: float | None
    seconds: float
    """Of training, without the scores."""
    scores: dict[str, float | str]
    """From `evaluate`, by name: a number, or in words why there is none, such as `unsupported: ...`."""


@dataclass(frozen=True)
class TrainingRecord:
    """The epochs of a training. Printed, it is a table.

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
    values = (epoch.loss, epoch.clean, epoch.worst, epoch.eps, epoch.gamma)
    texts = (str(epoch.epoch), *("" if v is None else f"{v:.4g}" for v in values), f"{epoch.seconds:.1f}")
    cells = [f"{text:>{width}}" for text, width in zip(texts, _COLUMNS.values(), strict=True)]
    scores = {name: v.partition(":")[0] if isinstance(v, str) else f"{v:.4f}" for name, v in epoch.scores.items()}
    return "".join(cells) + "".join(f"  {text:>{max(10, len(name))}}" for name, text in scores.items())
