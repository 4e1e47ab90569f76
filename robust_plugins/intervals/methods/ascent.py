"""Projected Adam on the slopes of relaxations, for many rows at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.intervals import rounding

MOMENTS = (0.9, 0.999)


Gradient = Callable[[Tensor | None], Tensor]
"""The derivative of bounds by the slopes, (units, rows), for the rows of these indices; for all of them for None."""


class Dual(ABC):
    """Lower bounds that hold for every choice of slopes between `least` and `most`, (units, 1)."""

    least: Tensor
    most: Tensor

    @abstractmethod
    def usual_slopes(self) -> Float[Tensor, "units 1"]:
        """CROWN's choice."""

    @abstractmethod
    def evaluate(
        self, rows: Float[Tensor, "entries rows"], const: Float[Tensor, " rows"], slopes: Float[Tensor, "units rows"]
    ) -> tuple[Float[Tensor, " rows"], Gradient]:
        """Lower bounds of `rows^T s + const`, s the dual's variables, without history; and their gradient."""

    @abstractmethod
    def differentiable_bound(
        self, rows: Float[Tensor, "entries rows"], const: Float[Tensor, " rows"], slopes: Float[Tensor, "units rows"]
    ) -> Float[Tensor, " rows"]:
        """The same bounds, differentiable in all that the dual was made from."""

    @abstractmethod
    def outward_bound(
        self, rows: Float[Tensor, "entries rows"], const: Float[Tensor, " rows"], slopes: Float[Tensor, "units rows"]
    ) -> Float[Tensor, " rows"]:
        """The same bounds, without history, rounded outward."""


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """The parameters of the search for slopes: every one of its steps gives sound bounds, and the best is kept.

    Step t moves a slope by about `learning_rate * decay ** t`.
    """

    steps: int
    learning_rate: float
    decay: float

    def bounds(
        self,
        dual: Dual,
        rows: Float[Tensor, "entries rows"],
        const: Float[Tensor, " rows"],
        threshold: Float[Tensor, " rows"] | None = None,
        *,
        at_once: int,
        differentiable: bool,
    ) -> Float[Tensor, " rows"]:
        """The best bounds that `maximise` finds, `at_once` rows at a time; `differentiable` for the slopes found."""
        found = [const.new_zeros(0)]
        for part in torch.arange(len(const), device=const.device).split(max(1, min(at_once, len(const)))):
            c, k = rows[:, part], const[part]
            enough, outward = None if threshold is None else threshold[part], rounding.active()
            best, slopes = self._searched(dual, c, k, enough, keep_slopes=differentiable or outward)
            if slopes is not None:
                bound = dual.differentiable_bound(c, k, slopes) if differentiable else best
                best = _rounded(bound, dual.outward_bound(c, k, slopes)) if outward else bound
            found.append(best)
        return torch.cat(found)

    def maximise(
        self,
        dual: Dual,
        rows: Float[Tensor, "entries rows"],
        const: Float[Tensor, " rows"],
        threshold: Float[Tensor, " rows"] | None = None,
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, "units rows"]]:
        """The best lower bounds of `rows^T s + const` that were found, s the dual's variables; and their slopes.

        Starts from CROWN's slopes. A row whose bound exceeds its `threshold` is decided, and is not improved further.
        Kingma and Ba 2015, "Adam: a method for stochastic optimization", for each slope of each row on its own.
        """
        best, slopes = self._searched(dual, rows, const, threshold, keep_slopes=True)
        assert slopes is not None  # they were kept
        return best, slopes

    @torch.no_grad()
    def _searched(
        self, dual: Dual, rows: Tensor, const: Tensor, threshold: Tensor | None, *, keep_slopes: bool
    ) -> tuple[Tensor, Tensor | None]:
        slopes = dual.usual_slopes().repeat(1, rows.shape[1])
        best, found = torch.full_like(const, -torch.inf), slopes.clone() if keep_slopes else None
        open_rows = torch.arange(len(const), device=const.device)
        mean, square = torch.zeros_like(slopes), torch.zeros_like(slopes)
        first, second = MOMENTS
        for step in range(self.steps + 1):
            value, derivative = dual.evaluate(rows, const, slopes)
            better, keep = value > best[open_rows], None
            at = open_rows[better]
            best[at] = value[better]
            if found is not None:
                found[:, at] = slopes[:, better]
            if step == self.steps:
                break
            if threshold is not None:
                stay = ~(best[open_rows] > threshold[open_rows])
                if not bool(stay.any()):
                    break
                if int(stay.sum()) * 4 <= 3 * len(stay):
                    keep = stay.nonzero().flatten()
                    open_rows, rows, const = open_rows[keep], rows[:, keep], const[keep]
                    slopes, mean, square = slopes[:, keep], mean[:, keep], square[:, keep]
            gradient = derivative(keep)
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            rate = min(self.learning_rate, 1e6) * self.decay**step  # slopes are in [0, 1]
            rate *= math.sqrt(1 - second ** (step + 1)) / (1 - first ** (step + 1))
            slopes.addcdiv_(mean, square.sqrt().add_(1e-8), value=rate)
            torch.minimum(torch.maximum(slopes, dual.least, out=slopes), dual.most, out=slopes)
        return best, found


def _rounded(bound: Tensor, outward: Tensor) -> Tensor:
    """`outward`, or a little less, with the gradient of `bound`: whatever the slopes are, only this has to be right."""
    if not bound.requires_grad:
        return outward
    nothing = torch.zeros_like(outward)
    return rounding.lessened(bound + rounding.lessened(outward - bound.detach(), nothing), nothing)
