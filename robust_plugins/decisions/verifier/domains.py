"""`Domains`: parts of the box, each with the signs of some units' inputs, and bounds on what is asked there.

The lower bound of a combination c of the state over such a part is, for any slopes in [0, 1] and multipliers >= 0, that
of the compact network with `h = z` for a unit whose z is >= 0, `h = 0` where it is <= 0, and `multiplier * sign * z`
taken away, which is not negative: the Lagrangian of the signs. Its derivative by a multiplier is `-sign * z` at the
bound's minimiser.

Wang et al. 2021, "Beta-CROWN: efficient bound propagation with per-neuron split constraints".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.intervals.methods.ascent import MOMENTS
from robust_plugins.intervals.methods.compact import Bound, Compact, Scratch


@dataclass(frozen=True, eq=False)
class Domains:
    """Parts of the box, one to a column of each tensor."""

    signs: Float[Tensor, "units domains"]
    """1 where z >= 0, -1 where z <= 0, 0 where neither is assumed."""
    slopes: Float[Tensor, "units domains"]
    multipliers: Float[Tensor, "units domains"]
    weights: Float[Tensor, "rows domains"]
    """How the rows of the domain's conjunction are combined: positive ones, zero for the rows of others."""

    def __len__(self) -> int:
        return self.signs.shape[1]

    def select(self, at: Tensor) -> Domains:
        """Those of some indices."""
        return Domains(*(getattr(self, f.name)[:, at] for f in fields(self)))

    @classmethod
    def cat(cls, *parts: Domains) -> Domains:
        """All of them in one."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts], 1) for f in fields(cls)))

    def split(self, units: Tensor, at: Tensor) -> Domains:
        """Two halves of the domains `at`, by the signs of one unit of each: all with z >= 0, then all with z <= 0."""
        half = self.select(at)
        found = Domains.cat(half, half)
        column = torch.arange(len(at))
        for sign, columns in ((1.0, column), (-1.0, column + len(at))):
            found.signs[units, columns] = sign
            found.slopes[units, columns] = max(sign, 0.0)
        return found


@dataclass(frozen=True, eq=False)
class Rows:
    """The question: `rows^T s + const` for rows of the state, in one precision."""

    rows: Float[Tensor, "state rows"]
    const: Float[Tensor, " rows"]

    def combined(self, weights: Float[Tensor, "rows domains"]) -> tuple[Tensor, Tensor]:
        """The combination of each domain."""
        return self.rows @ weights, self.const @ weights


def lower_bound(
    compact: Compact, rows: Tensor, const: Tensor, domains: Domains, scratch: Scratch | None = None
) -> Bound:
    """Bounds of one row for each domain; `rows` is (state, domains)."""
    above, pull = lines_above(compact, domains), domains.multipliers * domains.signs
    return compact.bound(rows, const, domains.slopes, above=above, pull=pull, scratch=scratch)


def lines_above(compact: Compact, domains: Domains) -> tuple[Float[Tensor, "units domains"], Tensor]:
    """The chords of units without a sign, and the unit itself where it has one; and their intercepts."""
    free = 1 - domains.signs.abs()
    return compact.chord * free + domains.signs.clamp(min=0), compact.intercept * free


@dataclass(frozen=True, kw_only=True)
class DualAscent:
    """Projected Adam on slopes, multipliers and the weights of rows; a domain whose bound is positive is left alone."""

    steps: int
    slope_rate: float = 0.1
    multiplier_rate: float = 0.1
    decay: float = 0.98
    row_rate: float = 2.0

    def maximise(
        self, compact: Compact, asked: Rows, domains: Domains, scratch: Scratch | None = None
    ) -> tuple[Float[Tensor, " domains"], Domains]:
        """The best bounds that were found, and the domains with the duals that they were found with last."""
        mixed = bool((domains.weights.count_nonzero(0) > 1).any())
        return self.improve(compact, *asked.combined(domains.weights), domains, asked if mixed else None, scratch)

    @torch.no_grad()
    def improve(
        self,
        compact: Compact,
        rows: Float[Tensor, "state domains"],
        const: Float[Tensor, " domains"],
        domains: Domains,
        asked: Rows | None = None,
        scratch: Scratch | None = None,
    ) -> tuple[Float[Tensor, " domains"], Domains]:
        """The same for a row of each domain's own; with `asked`, the combination of its rows is improved too."""
        best = torch.full((len(domains),), -torch.inf, dtype=const.dtype)
        live, now = torch.arange(len(domains)), domains.select(torch.arange(len(domains)))
        movable = compact.free * (1 - now.signs.abs())
        found = [torch.empty_like(t) for t in (now.slopes, now.multipliers, now.weights)]
        scratch, above = scratch or Scratch(), lines_above(compact, now)
        ascents = [_Adam(now.slopes, self.slope_rate, scratch), _Adam(now.multipliers, self.multiplier_rate, scratch)]
        for step in range(self.steps + 1):
            pull = torch.mul(now.multipliers, now.signs, out=scratch.take("pull", now.signs))
            bound = compact.bound(rows, const, now.slopes, above=above, pull=pull, scratch=scratch)
            best[live] = torch.maximum(best[live], bound.value)
            done = bound.value > 0
            count = int(done.sum())
            if step == self.steps or count == len(done) or (step and 4 * count > len(done)):
                leaving = torch.ones_like(done) if step == self.steps or count == len(done) else done
                for kept, t in zip(found, (now.slopes, now.multipliers, now.weights), strict=True):
                    kept[:, live[leaving]] = t[:, leaving]
                stay = (~leaving).nonzero().flatten()
                if not len(stay):
                    break
                live, now, bound, movable = live[stay], now.select(stay), bound.select(stay), movable[:, stay]
                rows, const, above = rows[:, stay], const[stay], (above[0][:, stay], above[1][:, stay])
                for ascent, t in zip(ascents, (now.slopes, now.multipliers), strict=True):
                    ascent.select(t, stay)
            state, z = compact.minimiser(bound, scratch)
            rate = self.decay**step
            gradient = torch.clamp(bound.coefficients[compact.inputs :], min=0, out=scratch.take("gradient", z))
            ascents[0].step(gradient.mul_(z).mul_(movable), rate)
            now.slopes.clamp_(0, 1)
            ascents[1].step(z.mul_(now.signs).neg_(), rate)
            now.multipliers.clamp_(min=0)
            if asked is not None:
                value = asked.rows.t() @ state + asked.const.unsqueeze(1)
                scale = value.abs().amax(0, keepdim=True).clamp(min=1e-9)
                moved = now.weights * torch.exp(self.row_rate / (1 + 0.3 * step) * value / scale)
                now.weights.copy_(moved / moved.sum(0, keepdim=True))
                rows, const = asked.combined(now.weights)
        return best, Domains(domains.signs, *found)


class _Adam:
    """Kingma and Ba 2015, "Adam: a method for stochastic optimization", upward; moves one tensor in place."""

    def __init__(self, values: Tensor, rate: float, scratch: Scratch) -> None:
        self.values, self.rate, self.scratch, self.steps = values, rate, scratch, 0
        self.mean, self.square = torch.zeros_like(values), torch.zeros_like(values)

    def step(self, gradient: Tensor, factor: float) -> None:
        self.steps += 1
        first, second = MOMENTS
        self.mean.lerp_(gradient, 1 - first)
        self.square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        rate = self.rate * factor * math.sqrt(1 - second**self.steps) / (1 - first**self.steps)
        size = torch.sqrt(self.square, out=self.scratch.take("root", self.square)).add_(1e-8)
        self.values.addcdiv_(self.mean, size, value=rate)

    def select(self, values: Tensor, at: Tensor) -> None:
        self.values, self.mean, self.square = values, self.mean[:, at], self.square[:, at]
