"""`Chord`: where branch and bound splits, as a strategy of our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

import robust_plugins as rp
from robust_plugins.decisions.verifier.branching import Seen, best_first
from robust_plugins.decisions.verifier.certifier import BranchAndBound


@dataclass(frozen=True)
class Chord:
    """Splits at the unit whose chord is steepest. Costs nothing to choose, and decides what a search costs alone."""

    def candidates(self, seen: Seen, count: int) -> Tensor:
        """For each domain up to `count` open units, the steepest chord first."""
        return best_first(seen, seen.compact.chord * seen.open, count)


def chords(**options: Any) -> rp.Certifier:
    """Complete verification that splits at the steepest chord; takes the parameters of `interval:branch-and-bound`."""
    return BranchAndBound(**{"branching": Chord(), **options})
