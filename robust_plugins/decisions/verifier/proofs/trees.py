"""`Leaves` of split trees as they are met, and the trees in preorder, rebuilt from them.

A leaf knows the sign of every unit that was split on its way. In a tree all leaves below a node have a sign for the
unit at which it was split; splitting them at any such unit makes a tree of the same leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from robust_plugins.decisions.verifier.domains import Domains


def coded(slopes: torch.Tensor) -> torch.Tensor:
    """Slopes in 255ths, as proofs keep them."""
    return (slopes.double() * 255).round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Leaves:
    """Some leaves, and the splits on their ways, ordered by leaf and unit."""

    slopes: np.ndarray
    """In 255ths, (leaves, units)."""
    weights: np.ndarray
    """Of the rows of a question, (leaves, rows)."""
    leaf: np.ndarray
    unit: np.ndarray
    positive: np.ndarray
    multiplier: np.ndarray

    @classmethod
    def of(cls, domains: Domains) -> Leaves:
        """The leaves that some domains are."""
        leaf, unit = domains.signs.t().nonzero(as_tuple=True)
        positive, multiplier = domains.signs[unit, leaf] > 0, domains.multipliers[unit, leaf].clamp(min=0)
        weights = domains.weights.t().contiguous()
        splits = [t.numpy().copy() for t in (leaf.int(), unit.int(), positive, multiplier)]
        return cls(coded(domains.slopes.t()).numpy().copy(), weights.numpy().copy(), *splits)

    def __len__(self) -> int:
        return len(self.slopes)

    @property
    def bytes(self) -> int:
        """The memory that they take."""
        return sum(array.nbytes for array in vars(self).values())

    def select(self, at: np.ndarray) -> Leaves:
        """Those of some rising indices."""
        place = np.full(len(self), -1)
        place[at] = np.arange(len(at))
        kept = place[self.leaf] >= 0
        splits = self.unit[kept], self.positive[kept], self.multiplier[kept]
        return Leaves(self.slopes[at], self.weights[at], place[self.leaf[kept]], *splits)

    @classmethod
    def cat(cls, parts: Sequence[Leaves]) -> Leaves:
        """All of them in one."""
        starts = np.cumsum([0, *(len(p) for p in parts)])
        leaf = np.concatenate([p.leaf + start for p, start in zip(parts, starts, strict=False)])
        slopes, weights, unit, positive, multiplier = (
            np.concatenate([getattr(p, name) for p in parts])
            for name in ("slopes", "weights", "unit", "positive", "multiplier")
        )
        return cls(slopes, weights, leaf, unit, positive, multiplier)


def preorder(leaves: Leaves, owner: np.ndarray, trees: int) -> dict[str, np.ndarray] | None:
    """So many trees as a proof holds them: `tree`, `multipliers`, `slopes` and `weights`.

    `owner` is the tree of each leaf. None where the leaves of some tree do not cover all there is, or do so twice.
    """
    if len(np.unique(owner)) != trees:
        return None
    splits = np.zeros(leaves.slopes.shape, np.int8)
    splits[leaves.leaf, leaves.unit] = np.where(leaves.positive, 1, -1)
    order = np.argsort(owner, kind="stable")
    group = owner[order].astype(np.int64)
    chosen, begins = [], []
    while True:
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        sizes = np.diff(np.append(starts, len(group)))
        begins.append(np.zeros(len(group), bool))
        begins[-1][starts] = True
        at = np.flatnonzero(np.repeat(sizes > 1, sizes))
        if not len(at):
            break
        firsts = np.flatnonzero(np.diff(group[at], prepend=-1))
        sizes = np.diff(np.append(firsts, len(at)))
        shared = np.logical_and.reduceat(splits[order[at]] != 0, firsts, axis=0)
        units = np.repeat(shared.argmax(1), sizes)
        negative = splits[order[at], units] < 0
        halves = np.add.reduceat(negative.astype(np.int64), firsts)
        if not (shared.any(1) & (halves > 0) & (halves < sizes)).all():
            return None
        splits[order[at], units] = 0
        level, key = np.full(len(group), -1), 2 * group
        level[at] = units
        key[at] += negative
        # Leaves change places within their group alone, which has one unit.
        again = np.argsort(key, kind="stable")
        order, group = order[again], np.unique(key[again], return_inverse=True)[1]
        chosen.append(level)
    if splits.any():
        return None  # of some split one half is not there
    levels = np.stack([*chosen, np.full(len(order), -1)], 1)
    written = np.stack(begins, 1) & (levels >= 0)
    written[:, -1] = True
    row, column = np.nonzero(levels >= 0)
    width = leaves.slopes.shape[1]
    place = np.searchsorted(
        leaves.leaf.astype(np.int64) * width + leaves.unit, order[row] * width + levels[row, column]
    )
    return {
        "tree": levels[written].astype(np.int32),
        "multipliers": _short(leaves.multiplier[place]),
        "slopes": leaves.slopes[order],
        "weights": _short(leaves.weights[order]),
    }


def _short(numbers: np.ndarray) -> np.ndarray:
    """The same in float32, where that holds them exactly."""
    short = numbers.astype(np.float32)
    return short if bool((short == numbers).all()) else numbers.astype(np.float64)
