"""The unit at which a domain is split: a strategy that anybody can exchange.

To write one, implement `Branching.candidates` and hand it to `BranchAndBound(branching=...)`; `best_first` makes
candidates of a score. A strategy decides what a search costs, never what it proves: any unit is as good for soundness.
Registered under a name, it is compared with others on the same samples:

    from robust_plugins.decisions.verifier.branching import best_first
    from robust_plugins.decisions.verifier.certifier import BranchAndBound

    @dataclass(frozen=True)
    class Steepest:
        def candidates(self, seen, count):
            return best_first(seen, seen.compact.chord * seen.open, count)

    class Plugin:
        @rp.hookimpl
        def register_certifiers(self, register):
            register("mylab:steepest", lambda **options: BranchAndBound(branching=Steepest(), **options))

    rp.register(Plugin())
    ball = rp.Linf(eps=0.1, clip=(0.0, 1.0))
    rp.compare(model, x, y, ball, ["interval:branch-and-bound", "mylab:steepest"])

`attack` and `refinement` are exchanged in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robust_plugins.decisions.verifier.domains import Domains, lower_bound
from robust_plugins.intervals.methods.compact import Bound, Compact, Scratch


@dataclass(frozen=True, eq=False)
class Seen:
    """All that is known of open domains when they are split; tensors have a column for each."""

    compact: Compact
    domains: Domains
    rows: Float[Tensor, "state domains"]
    const: Float[Tensor, " domains"]
    bound: Bound
    z: Float[Tensor, "units domains"]
    """The units' inputs at the bound's minimiser, sent through the chosen lines."""

    @property
    def open(self) -> Float[Tensor, "units domains"]:
        """1 for the units that may still have either sign."""
        return self.compact.free * (1 - self.domains.signs.abs())

    def gaps(self) -> Float[Tensor, "units domains"]:
        """The cost of each unit's line to the bound, at its own minimiser: there h is not relu(z)."""
        a, chosen = self.bound.coefficients[self.compact.inputs :], self.bound.slopes * self.z + self.bound.intercepts
        return (a * (self.z.clamp(min=0) - chosen)).clamp_(min=0).mul_(self.open)

    def intercepts(self) -> Float[Tensor, "units domains"]:
        """The part that each unit's upper line takes from the bound by its intercept."""
        a = self.bound.coefficients[self.compact.inputs :]
        return (a * self.bound.intercepts).neg_().mul_(self.open)


@runtime_checkable
class Branching(Protocol):
    """A choice of units to split at."""

    def candidates(self, seen: Seen, count: int) -> Int[Tensor, "domains count"]:
        """For each domain up to `count` different open units, the best first; -1 in the place of missing ones."""


@dataclass(frozen=True, kw_only=True)
class BestChild:
    """The unit whose better half has the best bound, of the `shortlist` first by gap and by intercept.

    Which half is better is guessed at the bound's minimiser, and that one is bounded once, with its parent's duals. The
    better half counts, because one half is closed soon then, and the other keeps what was gained. Bunel et al. 2020,
    "Branch and bound for piecewise linear neural network verification", and De Palma et al. 2021, "Improved branch and
    bound for neural network verification via Lagrangian decomposition", on shortlists.
    """

    shortlist: int = 3
    at_once: int = 128
    """Halves bounded in one go."""

    def candidates(self, seen: Seen, count: int) -> Int[Tensor, "domains count"]:  # noqa: D102 (inherited)
        few = min(self.shortlist, len(seen.z))
        if not few:
            return torch.full((len(seen.domains), count), -1)
        floor = 1e-9 * seen.open
        short = torch.cat([s.add(floor).topk(few, 0).indices for s in (seen.gaps(), seen.intercepts())]).t()
        again = torch.stack([(short[:, :i] == short[:, i : i + 1]).any(1) for i in range(short.shape[1])], 1)
        worth = ~again & (seen.open.t().gather(1, short) > 0)
        gain, scratch = torch.full_like(short, -1, dtype=seen.z.dtype), Scratch()
        for domain, place in zip(*(at.split(self.at_once) for at in worth.nonzero().unbind(1)), strict=True):
            gain[domain, place] = self._gains(seen, domain, short[domain, place], scratch)
        best = gain.topk(min(count, gain.shape[1]), 1)
        chosen = short.gather(1, best.indices).masked_fill(best.values < 0, -1)
        return torch.nn.functional.pad(chosen, (0, count - chosen.shape[1]), value=-1)

    def _better_half(self, seen: Seen, domain: Tensor, unit: Tensor) -> Tensor:
        """Guesses the sign of the half with the better bound: the one in which the line of h lifts the minimiser more.

        There h is z or 0, and was on the chosen line before.
        """
        z, line = seen.z[unit, domain], seen.bound.slopes[unit, domain]
        chosen = line * z + seen.bound.intercepts[unit, domain]
        a = seen.bound.coefficients[seen.compact.inputs + unit, domain]
        return 2 * (a * (z - chosen) >= -a * chosen).to(a) - 1

    def _gains(self, seen: Seen, domain: Tensor, unit: Tensor, scratch: Scratch) -> Tensor:
        """How far above its parent the bound of the better half by one unit is, for domains with repetitions."""
        sign = self._better_half(seen, domain, unit)
        half = seen.domains.select(domain)
        column = torch.arange(len(domain))
        half.signs[unit, column], half.slopes[unit, column] = sign, sign.clamp(min=0)
        value = lower_bound(seen.compact, seen.rows[:, domain], seen.const[domain], half, scratch).value
        return (value.clamp(max=0) - seen.bound.value[domain]).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class GapAndIntercept:
    """The unit whose line costs the bound most, at its minimiser and by its intercept; as cheap, for small trees."""

    def candidates(self, seen: Seen, count: int) -> Int[Tensor, "domains count"]:  # noqa: D102 (inherited)
        return best_first(seen, seen.gaps() + seen.intercepts(), count)


def best_first(seen: Seen, score: Float[Tensor, "units domains"], count: int) -> Int[Tensor, "domains count"]:
    """The candidates by a score of each unit, at least zero; any open unit comes before none."""
    best = (score + 1e-9 * seen.open).t().topk(min(count, len(score)), 1)
    chosen = best.indices.masked_fill(best.values <= 0, -1)
    return torch.nn.functional.pad(chosen, (0, count - chosen.shape[1]), value=-1)
