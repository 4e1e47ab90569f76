"""Sums of a batch's per-sample gradients, computed a part at a time in plain torch.

For `terms`, pairs (sign, per-sample bounds), every sample has the two numbers per coordinate

    D_1 = sum_s sign_s U_s + offset        (upper ends)
    D_0 = sum_s -sign_s L_s + offset       (lower ends)

which the functions here add up, select from, or compare with thresholds: tensors of shape (2, *parameter).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.intervals import rounding
from robust_plugins.poisoning.box.sums.per_sample import PerSample, rows_of


@dataclass(frozen=True, eq=False)
class Deviations:
    """The numbers `D` of a batch, made in parts that fit into `memory` bytes.

    `floor` is 0 where only positive ones count, else minus infinity. `samples` is the number of samples of the whole
    batch, of which this process may hold a part: the length of the sums that outward rounding has to cover.
    """

    terms: tuple[tuple[float, PerSample], ...]
    offset: float
    floor: float
    samples: int
    memory: int

    @property
    def first(self) -> PerSample:
        """The first term, of the shape and batch of all."""
        return self.terms[0][1]

    def empty(self, value: float) -> Tensor:
        """A tensor of the results' shape, (2, *shape), filled with `value`."""
        return self.first.like.new_full((2, *self.first.shape), value)

    def part(self, samples: slice, rows: slice) -> Tensor:
        """(2, samples, rows, *shape[1:]), lower ends first; rounded outward where that is active."""
        sums: Tensor | None = None
        slack: Tensor | float = 0.0
        for sign, g in self.terms:
            values = g.part(samples, rows)
            ends = torch.stack([-sign * values.lower, sign * values.upper])
            sums = ends if sums is None else sums.add_(ends)
            if rounding.active():
                slack = slack + abs(sign) * values.magnitude
        assert sums is not None
        if self.offset:
            sums += self.offset
        if rounding.active():
            # Pays for these sums, for those over the batch, and for the network's own sum over the batch.
            kappa = rounding.kappa(self.samples + len(self.terms), sums.dtype)
            sums += kappa * (slack + abs(self.offset)) + rounding.underflow(self.samples, sums.dtype)
        return sums.clamp_(min=self.floor) if self.floor > -math.inf else sums

    def parts(self, keep: int = 0) -> Iterator[tuple[slice, Iterator[Tensor]]]:
        """All parts: for each block of rows, those of all samples. `keep` samples more are held at a time."""
        rows, samples = self._plan(keep)
        for start in range(0, rows_of(self.first.shape), rows):
            block = slice(start, min(start + rows, rows_of(self.first.shape)))
            yield (
                block,
                (
                    self.part(slice(i, min(i + samples, self.first.batch)), block)
                    for i in range(0, self.first.batch, samples)
                ),
            )

    def _plan(self, keep: int) -> tuple[int, int]:
        """How many rows, and of how many samples, fit into memory."""
        g = self.first
        # Ends, their products and the sums of one entry.
        cells = self.memory // (g.like.element_size() * (10 + 2 * len(self.terms)))
        rows, batch = rows_of(g.shape), max(g.batch, 1)
        per_row = max(g.shape[1:].numel(), 1)
        if all(term.by_rows for _, term in self.terms):
            block = min(max(cells // (batch * per_row), 1), rows)
            return block, min(max(cells // (block * per_row) - keep, 1), batch)
        # Every part makes all rows, so they are divided only where what is kept would not fit.
        block = min(max(cells // (max(keep, 1) * per_row), 1), rows)
        return block, min(max(cells // (rows * per_row), 1), batch)

    def _collected(self, reduce: Callable[[Iterator[Tensor]], Tensor], keep: int = 0) -> Tensor:
        result = self.empty(0.0)
        rows = result.view(2, rows_of(self.first.shape), *self.first.shape[1:])
        for block, parts in self.parts(keep):
            rows[:, block] = reduce(parts)
        return result

    def sums(self) -> Tensor:
        """The sum over the samples."""
        return self._collected(lambda parts: sum((part.sum(1) for part in parts), start=torch.zeros(())))

    def topk(self, k: int) -> Tensor:
        """The sum of the k largest, k at most the batch."""

        def merged(parts: Iterator[Tensor]) -> Tensor:
            best: Tensor | None = None
            for part in parts:
                held = part if best is None else torch.cat([best, part], 1)
                best = held if held.shape[1] <= k else held.topk(k, 1, sorted=False).values
            assert best is not None
            return best.sum(1)

        return self._collected(merged, keep=k)

    def moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The sums of D and of its square, and the smallest and largest D. An empty batch: 0, 0, inf, -inf."""
        results = [self.empty(v) for v in (0.0, 0.0, math.inf, -math.inf)]
        rows = [r.view(2, rows_of(self.first.shape), *self.first.shape[1:]) for r in results]
        for block, parts in self.parts():
            for part in parts:
                rows[0][:, block] += part.sum(1)
                rows[1][:, block] += part.square().sum(1)
                rows[2][:, block] = torch.minimum(rows[2][:, block], part.amin(1))
                rows[3][:, block] = torch.maximum(rows[3][:, block], part.amax(1))
        return results[0], results[1], results[2], results[3]

    def excess(self, t: Float[Tensor, "2 *parameter"]) -> tuple[Tensor, Tensor]:
        """`sum (D - t)^+` and the number of `D > t`, for thresholds t of shape (2, *shape)."""
        over, count = self.empty(0.0), self.empty(0.0)
        split = (2, rows_of(self.first.shape), *self.first.shape[1:])
        over_rows, count_rows, t_rows = over.view(split), count.view(split), t.view(split)
        for block, parts in self.parts():
            for part in parts:
                part -= t_rows[:, block].unsqueeze(1)
                count_rows[:, block] += (part > 0).sum(1)
                over_rows[:, block] += part.clamp_(min=0).sum(1)
        return over, count
