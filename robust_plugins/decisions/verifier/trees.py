"""`Trees`: tighter bounds of a layer's neurons, each by a small branch and bound of its own, all at once.

A mixed-integer programme for each neuron would give the same at a higher price. In every round the worst leaf of each
bound is split at the unit that costs it most, and the bound is the least over its leaves. These are bounded in float32,
and count with what their duals prove in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.decisions.verifier.branching import Seen
from robust_plugins.decisions.verifier.clock import Clock
from robust_plugins.decisions.verifier.domains import Domains, DualAscent, lower_bound
from robust_plugins.intervals.methods.compact import Compact


@dataclass(frozen=True, kw_only=True)
class Trees:
    """Trees of up to `leaves` leaves; the whole box is bounded by `start`, leaves by `ascent`."""

    leaves: int
    start: DualAscent = field(default_factory=lambda: DualAscent(steps=20))
    ascent: DualAscent = field(default_factory=lambda: DualAscent(steps=5))

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
        none, about = torch.zeros((units, count)), torch.arange(count)
        weights = torch.ones((1, count))
        leaves = Domains(none, compact.usual_slopes().repeat(1, count), none, weights)
        bounds, leaves = self.start.improve(compact, rows, const, leaves)
        choice = self._choice(compact, rows, const, leaves)
        for _ in range(self.leaves - 1):
            clock.check()
            worst = torch.full((count,), torch.inf).scatter_reduce_(0, about, bounds, "amin")
            splittable = (bounds <= worst[about]) & (bounds < 0) & (choice >= 0)
            at = splittable.nonzero().flatten()
            if not len(at):
                break
            last = torch.full((count,), -1).scatter_(0, about[at], at)  # one of equals
            at = last[last >= 0]
            halves, owners = leaves.split(choice[at], at), torch.cat([about[at], about[at]])
            better, halves = self.ascent.improve(compact, rows[:, owners], const[owners], halves)
            better = torch.maximum(better, bounds[at].repeat(2))
            next_choice = self._choice(compact, rows[:, owners], const[owners], halves)
            keep = torch.ones(len(bounds), dtype=torch.bool)
            keep[at] = False
            stay = keep.nonzero().flatten()
            leaves = Domains.cat(leaves.select(stay), halves)
            bounds, about = torch.cat([bounds[stay], better]), torch.cat([about[stay], owners])
            choice = torch.cat([choice[stay], next_choice])
        return leaves, about

    def _choice(self, compact: Compact, rows: Tensor, const: Tensor, leaves: Domains) -> Tensor:
        """The unit to split each leaf at, -1 for none."""
        bound = lower_bound(compact, rows, const, leaves)
        _, z = compact.minimiser(bound)
        seen = Seen(compact, leaves, rows, const, bound, z)
        score, unit = (seen.gaps() + seen.intercepts() + 1e-9 * seen.open).max(0)
        return unit.masked_fill(score <= 0, -1)
