"""`explanation_crossings`: the contradictions between explanations that attacks found and bounds that were proved."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jaxtyping import Bool
from torch import Tensor

from robust_plugins.brackets.crossing import Crossing, crossings
from robust_plugins.explanations import ExplanationAttackResult, ExplanationCertificate
from robust_plugins.explanations.attack import evicts

ROUNDING = 1e-5
"""Relative to the largest bound of a sample: how far an explanation that was found may leave the proved bounds before
it is a contradiction. Both are computed in floating point."""


def explanation_crossings(
    attacked: Sequence[tuple[str, ExplanationAttackResult, Bool[Tensor, " batch"] | None]],
    certified: Sequence[tuple[str, ExplanationCertificate]],
    k: int,
) -> tuple[Crossing, ...]:
    """Attacks against certificates: every explanation that was found, and what follows from the bounds.

    - `attacked`: names, results, and which of their samples count; None for all.
    - `certified`: names and certificates.
    - `k`: how many of the most important features are compared.
    """
    found: dict[Crossing, None] = {}  # an ordered set: the goals of one attack may meet the same bound
    for name, result, counting in attacked:
        for prover, certificate in certified:
            for crossing in _between(name, result, prover, certificate, k):
                if counting is None or crossing.sample is None or bool(counting[crossing.sample]):
                    found[crossing] = None
    return tuple(found)


def _between(
    name: str, result: ExplanationAttackResult, prover: str, certificate: ExplanationCertificate, k: int
) -> list[Crossing]:
    search = partial(crossings, name, prover)
    bounds = certificate.gradient
    slack = (ROUNDING * bounds.magnitude.flatten(1).amax(1)).nan_to_num(posinf=0.0)
    low, up, reached = (t.flatten(1) for t in (bounds.lower, bounds.upper, result.gradient))
    below, above = (low - reached).argmax(1, keepdim=True), (reached - up).argmax(1, keepdim=True)
    lowest, highest = (reached.gather(1, at).squeeze(1) for at in (below, above))
    what = "a component of the explanation"
    deviation, most = result.deviation, certificate.deviation
    kept = ~evicts(result.gradient, result.value, 1), ~evicts(result.gradient, result.value, k)
    return [
        *search(what, lowest, low.gather(1, below).squeeze(1), side="at least", slack=slack),
        *search(what, highest, up.gather(1, above).squeeze(1), side="at most", slack=slack),
        *search("the deviation", deviation, most, side="at most", slack=ROUNDING * (1 + most.nan_to_num())),
        *search("the most important feature", kept[0], certificate.keeps_top(1), side="at least"),
        *search(f"the {k} most important features", kept[1], certificate.keeps_top(k), side="at least"),
    ]
