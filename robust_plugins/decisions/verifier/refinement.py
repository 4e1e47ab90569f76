"""When all layers' bounds are refined, and by what: a strategy that anybody can exchange.

To write one, implement `Refinement.plan` and `Refinement.keeps`, and hand it to `BranchAndBound(refinement=...)`. As
with branching, a strategy decides what a verification costs, never what it proves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from robust_plugins.decisions.verifier.trees import Trees
from robust_plugins.intervals.methods.compact import Compact


class Plan(NamedTuple):
    """The next refinement, and how much is searched before it, in multiplications."""

    trees: Trees
    search: float
    promising: float
    """As much again, where the search has come more than half of the way from the box's bound to zero."""


class Refined(NamedTuple):
    """A refinement that was made, with the lowest bound of the whole box before it and after it."""

    trees: Trees
    before: float
    after: float


@runtime_checkable
class Refinement(Protocol):
    """A choice of trees for the layers' bounds, between searches."""

    def plan(self, compact: Compact, made: Sequence[Refined], seconds: float) -> Plan | None:
        """Says what is refined next, after what was; None for nothing more, so that the search goes on to the end.

        `compact` is the network as it is searched now, `seconds` the time that the whole verification may take.
        """

    def keeps(self, made: Refined) -> bool:
        """Whether the search begins again on the refined network, rather than go on with the one before."""


@dataclass(frozen=True, kw_only=True)
class GrowingTrees:
    """Trees of `first` leaves, then of `growth` times as many each time, up to `most`.

    Before each of them is searched: as much as `search` of what the trees need at most, and where that is promising as
    much as they need. A refinement that brings the box's bound less than `gain` of its way is not searched: the search
    before goes on, for as much work as the next trees need, and after `patience` such refinements to its end. Trees
    that would take more than `share` of all the time, at `speed` multiplications a second, are not grown.
    """

    first: int = 4
    growth: int = 4
    most: int = 4096
    search: float = 0.2
    gain: float = 0.15
    patience: int = 2
    share: float = 0.3
    speed: float = 1e10

    def plan(self, compact: Compact, made: Sequence[Refined], seconds: float) -> Plan | None:  # noqa: D102 (inherited)
        trees = Trees(leaves=self.first * self.growth ** len(made))
        failures = 0
        while failures < len(made) and not self.keeps(made[-1 - failures]):
            failures += 1
        if trees.leaves > self.most or failures >= self.patience:
            return None
        work = trees.work(compact)
        if work > self.share * self.speed * seconds:
            return None
        return Plan(trees, work if failures else self.search * work, work)

    def keeps(self, made: Refined) -> bool:  # noqa: D102 (inherited)
        return made.after >= (1 - self.gain) * made.before
