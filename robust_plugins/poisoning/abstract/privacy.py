"""Private predictions from certificates of stability: noise by smooth sensitivity.

Sosnin et al. 2024, "Certification for differentially private prediction in gradient-based training", section 5; the
noise is that of Nissim et al. 2007, "Smooth sensitivity and sampling in private data analysis", lemma 2.6 for
densities in `1 / (1 + z^2)`.

That lemma wants a scale that differs by at most a factor `exp(epsilon / 6)` between neighbours. One certificate cannot
promise it, as it may hold for a data set and fail for the neighbour. So privacy is proved directly. A response that is
stable is also that of all neighbours: only the scales may differ, and where they do by a factor r, so do the Cauchy
densities at most, for which `r <= exp(epsilon)` is enough. Where both are unstable the scales are equal, and the lemma
applies. Distances beyond 6 therefore do not lower the noise further.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.result import SampleResult

DISTANCE = 6
"""The largest distance of stability that lowers the noise; see above."""


@dataclass(frozen=True, eq=False, repr=False)
class PrivatePrediction(SampleResult):
    """Classes 0 and 1 of one response per sample, each released with epsilon-differential privacy.

    Data sets are neighbours when one sample is added, removed or replaced. A response that every data set within
    distance k shares has smooth sensitivity at most `exp(-epsilon k / 6)`, of which at most k = 6 is used; any other
    has at most 1. It is released as `response + 6 / epsilon * sensitivity * Cauchy noise > 1/2`. Each of n released
    predictions costs epsilon.

    - `released`: the classes to publish.
    - `sensitivity`: the smooth sensitivity of each response.
    - `stable`: where the certificate holds at distance k.
    - `epsilon`: the privacy that each release costs.
    """

    released: Int[Tensor, " batch"]
    sensitivity: Float[Tensor, " batch"]
    stable: Bool[Tensor, " batch"]
    epsilon: float

    def __repr__(self) -> str:
        """One line."""
        stable = int(self.stable.sum())
        return f"<PrivatePrediction: {len(self.stable)} samples, {stable} stable, epsilon {self.epsilon:g} each>"

    def to_records(self) -> list[dict[str, Any]]:
        """For each sample: the released class, the sensitivity, whether it is stable, how likely it is the model's."""
        columns = {
            "sample": range(len(self.stable)), "released": self.released.tolist(),
            "sensitivity": self.sensitivity.tolist(), "stable": self.stable.tolist(), "keeps": self.keeps.tolist(),
        }  # fmt: skip
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    @property
    def keeps(self) -> Float[Tensor, " batch"]:
        """The probability that the released class is the model's own."""
        return 0.5 + torch.atan(self.epsilon / (12 * self.sensitivity)) / math.pi


def private_response(
    response: Bool[Tensor, " batch"],
    stable: Bool[Tensor, " batch"],
    *,
    k: int,
    epsilon: float,
    generator: torch.Generator | None,
) -> PrivatePrediction:
    """Releases the responses of which those marked `stable` are the same for all data sets within distance k."""
    if not 0 < epsilon < math.inf:
        raise ArgumentError("epsilon", epsilon, accepted="a finite number above 0", hint="1 is a common choice.")
    sensitivity = torch.where(stable, math.exp(-epsilon * min(k, DISTANCE) / 6), 1.0).double()
    uniform = torch.rand(len(response), generator=generator, dtype=torch.float64).to(sensitivity.device)
    noise = torch.tan(math.pi * (uniform - 0.5))
    noisy = response.double() + 6 / epsilon * sensitivity * noise
    return PrivatePrediction((noisy > 0.5).long(), sensitivity, stable, epsilon)
