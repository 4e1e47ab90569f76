"""`Moves`: where the poisoner can move a sample's features, by its support function."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.intervals import Interval


@dataclass(frozen=True)
class Moves:
    """The displacements u of one sample's features: lower <= u <= upper, and for l2 and l1 |u / radius| <= 1.

    The first axis is the batch, or of length 1 where all samples have the same set. Zero is always among them.
    """

    lower: Float[Tensor, "#batch features"]
    upper: Float[Tensor, "#batch features"]
    norm: str = "linf"
    radius: Float[Tensor, "1 features"] | None = None

    @property
    def magnitude(self) -> Float[Tensor, "#batch features"]:
        """The largest |u_i|."""
        return torch.maximum(self.upper, -self.lower)

    def support(self, a: Float[Tensor, "*rows batch features"]) -> Interval:
        """The range of a u, shape (*rows, batch)."""
        middle, half = (self.upper + self.lower) / 2, (self.upper - self.lower) / 2
        radius = (a.abs() * half).sum(-1)
        center = (a * middle).sum(-1)
        found = Interval(center - radius, center + radius)
        if self.radius is not None:
            scaled = a * self.radius
            longest = scaled.norm(dim=-1) if self.norm == "l2" else scaled.abs().amax(-1)
            found = found.sharpened(Interval(-longest, longest))
        return found
