"""`Trees`: tighter bounds of a layer's neurons, each by a small branch and bound of its own, all at once.

A mixed-integer programme for each neuron would give the same at a higher price. In every round the worst leaf of each
bound is split at the unit that costs it most, and the bound is the least over its leaves. These are bounded in float32,
and count with what their duals prove in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robust_plugins.decisions.verifier.branching import Branching, GapAndIntercept, Seen
from robust_plugins.decisions.verifier.clock import Clock
from robust_plugins.decisions.verifier.domains import Domains, DualAscent, lower_bound
from robust_plugins.intervals.methods.compact import Compact


@dataclass(frozen=True, kw_only=True)
class Trees:
    """Trees of up to `leaves` leaves; the whole box is bounded by `start`, leaves by `ascent`, split at `branching`."""

    leaves: int
    start: DualAscent = field(default_factory=lambda: DualAscent(steps=20))
    ascent: DualAscent = field(default_factory=lambda: DualAscent(steps=5))
    branching: Branching = field(default_factory=GapAndIntercept)

    def work(self, compact: Compact) -> float:
        """Multiplications that trees for both bounds of every unit need, at most."""
        size = total = 0
        for block, work in zip(compact.blocks, compact.work(), strict=True):
            total += 2 * (block.last - block.first) * size
            size += work
        return total * (2.0 * self.start.steps + 2 * self.leaves * (2 * self.ascent.steps + 2))

    @torch.no_grad()
    def grow(
        self, compact: Compact, rows: Float[Tensor, "state rows"], const: Float[Tensor, " rows"], clock: Clock
    ) -> tuple[Domains, Tensor]:
        """The leaves of the trees for lower bounds of `rows^T s + const`, and the row of each.

        Together the leaves of a row cover the box. Leaves above zero are not split.
        """
        count, units = len(const), len(compact.offset)
        none = torch.zeros((units, count))
        start = Domains(none, compact.usual_slopes().repeat(1, count), none, torch.ones((1, count)))
        bounds, start = self.start.improve(compact, rows, const, start)
        tree = _Leaves(start, bounds, torch.arange(count), self._choice(compact, rows, const, start))
        for _ in range(self.leaves - 1):
            clock.check()
            at = tree.worst(count)
            if not len(at):
                break
            owners = tree.about[at].repeat(2)
            halves = tree.take(at).split(tree.choice[at], torch.arange(len(at)))
            better, halves = self.ascent.improve(compact, rows[:, owners], const[owners], halves)
            better = torch.maximum(better, tree.bounds[at].repeat(2))
            tree.replace(at, halves, better, owners, self._choice(compact, rows[:, owners], const[owners], halves))
        return tree.take(torch.arange(len(tree))), tree.about[: len(tree)]

    def _choice(self, compact: Compact, rows: Tensor, const: Tensor, leaves: Domains) -> Tensor:
        """The unit to split each leaf at, -1 for none."""
        bound = lower_bound(compact, rows, const, leaves)
        _, z = compact.minimiser(bound)
        return self.branching.candidates(Seen(compact, leaves, rows, const, bound, z), 1)[:, 0]


class _Leaves:
    """The leaves of all trees, a row of the tables for each, so that splitting moves no others."""

    def __init__(self, leaves: Domains, bounds: Tensor, about: Tensor, choice: Tensor) -> None:
        self.signs, self.slopes, self.multipliers = (
            t.t().contiguous() for t in (leaves.signs, leaves.slopes, leaves.multipliers)
        )
        self.bounds, self.about, self.choice = bounds, about, choice
        self._count = len(leaves)

    def __len__(self) -> int:
        return self._count

    def worst(self, trees: int) -> Int[Tensor, " leaves"]:
        """One leaf of each tree whose least bound is below zero and whose leaf of that bound can be split."""
        bounds, about = self.bounds[: self._count], self.about[: self._count]
        least = torch.full((trees,), torch.inf).scatter_reduce_(0, about, bounds, "amin")
        at = ((bounds <= least[about]) & (bounds < 0) & (self.choice[: self._count] >= 0)).nonzero().flatten()
        last = torch.full((trees,), -1).scatter_(0, about[at], at)  # one of equals
        return last[last >= 0]

    def take(self, at: Tensor) -> Domains:
        """The domains of some leaves."""
        signs, slopes, multipliers = (t[at].t().contiguous() for t in (self.signs, self.slopes, self.multipliers))
        return Domains(signs, slopes, multipliers, torch.ones((1, len(at))))

    def replace(self, at: Tensor, halves: Domains, bounds: Tensor, about: Tensor, choice: Tensor) -> None:
        """Puts the first halves in the places of the leaves that were split, and the second ones behind all."""
        places = torch.cat([at, self._count + torch.arange(len(at))])
        self._count += len(at)
        found = {"signs": halves.signs.t(), "slopes": halves.slopes.t(), "multipliers": halves.multipliers.t()}
        for name, values in {**found, "bounds": bounds, "about": about, "choice": choice}.items():
            table: Tensor = getattr(self, name)
            if len(table) < self._count:
                table = torch.cat([table, table.new_empty((max(len(table), len(at)), *table.shape[1:]))])
                setattr(self, name, table)
            table[places] = values
