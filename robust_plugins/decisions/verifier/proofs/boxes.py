"""`BoxNotes`: what a search that halves boxes of inputs writes down for a proof."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from robust_plugins.decisions.verifier.boxes import Boxes


class BoxNotes:
    """Which boxes were halved, what was cut off them, and the combinations of rows that excluded others.

    Boxes are numbered in the order of their making. Whoever checks bounds them again: errors of rounding are taken to
    be `room` times as large there too, and a part of each bound and cut is `spared`, so that other sums do as well.
    """

    room = 2.0**8
    spared = 1e-8

    def __init__(self) -> None:
        self._halved: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._cut: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._combined: list[tuple[np.ndarray, np.ndarray]] = []
        self._sizes: tuple[int, int, int] | None = None
        self._gamma = 0.0

    def halve(self, number: Tensor, axis: Tensor, first: Tensor) -> None:
        """Boxes are halved along some of their inputs; `first` are the numbers of the lower halves."""
        self._halved.append(tuple(t.int().numpy() for t in (number, axis, first)))  # type: ignore[arg-type]

    def cut(self, whole: Boxes, left: Boxes) -> None:
        """Boxes are cut to what is left of them."""
        at = ((left.lower > whole.lower) | (left.upper < whole.upper)).any(1).nonzero().flatten()
        self._cut.append(tuple(t[at].numpy() for t in (whole.number, left.lower, left.upper)))  # type: ignore[arg-type]

    def combine(self, number: Tensor, weights: Tensor, value: Tensor, b: Tensor) -> None:
        """Combinations whose value is above zero exclude their boxes."""
        at = (value > 0).nonzero().flatten()
        largest = weights[at].amax(1, keepdim=True).clamp(min=1e-300)
        self._combined.append((number[at].numpy(), (weights[at] / largest).numpy()))

    def end(self, boxes: int, inputs: int, lines: int, gamma: float) -> None:
        """All is excluded, by so many boxes; each has so many inputs that vary, and lines of rows; and their gamma."""
        self._sizes, self._gamma = (boxes, inputs, lines), gamma

    def arrays(self) -> dict[str, np.ndarray] | None:
        """The list of all boxes, as a proof holds it; None where the search did not exclude them all."""
        if self._sizes is None:
            return None
        total, inputs, lines = self._sizes
        halves: Any = list(zip(*self._halved, strict=True)) or [[], [], []]
        number, axis, first = map(_joined, halves)
        found: dict[str, Any] = {"split": np.full(total, -1, np.int32), "child": np.zeros(total, np.int32)}
        found["split"][number], found["child"][number] = axis, first
        halved = found["split"] >= 0
        cuts: Any = list(zip(*self._cut, strict=True)) or [[], [], []]
        number, low, up = _joined(cuts[0]), _rows(cuts[1], inputs), _rows(cuts[2], inputs)
        kept = np.flatnonzero(halved[number])
        kept = kept[np.argsort(number[kept])]
        found |= {"cut": number[kept].astype(np.int32), "low": low[kept], "up": up[kept]}
        combined: Any = list(zip(*self._combined, strict=True)) or [[], []]
        number, weights = _joined(combined[0]), _rows(combined[1], lines)
        order = np.argsort(number)
        found |= {"weighted": number[order].astype(np.int32), "weights": weights[order]}
        found["gamma"] = np.array([self._gamma])
        return {f"boxes.{name}": array for name, array in found.items()}


def _joined(parts: Any) -> np.ndarray:
    return np.concatenate(parts) if len(parts) else np.zeros(0, int)


def _rows(parts: Any, size: int) -> np.ndarray:
    return np.concatenate(parts) if len(parts) else np.zeros((0, size))
