"""Which samples carry which change: sums that the effect of all poisoned samples of a batch never exceeds."""

from __future__ import annotations

from typing import Literal

from robust_plugins.poisoning.budget import PoisoningBudget

Change = Literal["features", "labels", "both"]
"""What a sample's effect comes from: moved features, a changed label, or both together."""

Term = tuple[dict[Change, float], int]
"""Effects with their signs, and a count: the sum over the samples, at most so many, where these are largest."""


def accounts(budget: PoisoningBudget) -> list[list[Term]]:
    """Several lists of terms: the terms of each add up to a bound on what the poisoned samples add, so the least holds.

    With f, l and b the effects of a sample whose features move, whose label changes, and of both: samples chosen freely
    add at most top_n(f) + top_m(l) + top_min(n, m)(b - f - l), and at most top_{n+m}(b). For nested choices the smaller
    set adds b instead of what the larger one adds.
    """
    n, m = budget.points, budget.labels
    if not n or not m:
        return [[({"features" if n else "labels": 1.0}, max(n, m))]]
    together: list[Term] = [({"both": 1.0}, max(n, m) if budget.paired else n + m)]
    if not budget.paired:
        rest: Term = ({"both": 1.0, "features": -1.0, "labels": -1.0}, min(n, m))
        return [together, [({"features": 1.0}, n), ({"labels": 1.0}, m), rest]]
    if n == m:
        return [together]
    larger: Change = "features" if n > m else "labels"
    return [together, [({larger: 1.0}, max(n, m)), ({"both": 1.0, larger: -1.0}, min(n, m))]]
