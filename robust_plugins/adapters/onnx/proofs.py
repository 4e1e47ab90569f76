"""`unproved`: what proofs leave open of a property."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import numpy as np

from robust_plugins.adapters.onnx.properties import Case, Property
from robust_plugins.adapters.onnx.properties.rows import halfspaces
from robust_plugins.proof_check.reading import Record


def unproved(property: Property, proofs: Iterable[Record]) -> list[int]:
    """The cases, counted from one, about which none of some proofs is that hold.

    A proof is about a case whose box its own box contains, and whose conjunctions are its own.
    """
    proofs = list(proofs)
    return [
        number
        for number, case in enumerate(property.cases, start=1)
        if case.unsafe and not any(_is_about(proof, property, case) for proof in proofs)
    ]


def _is_about(proof: Record, property: Property, case: Case) -> bool:
    sets = halfspaces(case, property.outputs)
    if proof.about["property"] != {"conjunctions": [len(offsets) for _, offsets in sets]}:
        return False
    wanted = np.concatenate([w.numpy() for w, _ in sets]), np.concatenate([o.numpy() for _, o in sets])
    rows, offsets = proof.arrays["rows"], proof.arrays["offsets"]
    if rows.shape != wanted[0].shape or not ((rows == wanted[0]).all() and (offsets == wanted[1]).all()):
        return False
    lower, upper = (list(map(Fraction, proof.arrays[side].tolist())) for side in ("lower", "upper"))
    if len(lower) != len(case.lower):
        return False
    ends = zip(lower, case.lower, case.upper, upper, strict=True)
    return all(low <= least and most <= up for low, least, most, up in ends)
