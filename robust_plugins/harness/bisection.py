"""Bisection of one number per sample, for all samples at once."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Bisection:
    """Halves the interval between `low`, where something was not reached, and `high`, where it was or may be.

    The first question of each sample is its `high` itself; where that is not reached, the sample is done.
    """

    def __init__(self, high: Float[Tensor, " batch"]) -> None:
        self.low, self.high = torch.zeros_like(high), high.clone()
        self._first = True

    def next(self, width: Float[Tensor, " batch"]) -> tuple[Int[Tensor, " open"], Float[Tensor, " open"]]:
        """The samples whose interval is wider than `width`, by index, and the number that each is to be asked."""
        middle = self.high if self._first else (self.low + self.high) / 2
        between = (middle > self.low) & ((middle < self.high) | self._first)
        at = (between & (self.high - self.low > width)).nonzero().flatten()
        self._first = False
        return at, middle[at]

    def answer(
        self,
        at: Int[Tensor, " open"],
        asked: Float[Tensor, " open"],
        reached: Bool[Tensor, " open"],
        *,
        known: Float[Tensor, " open"],
    ) -> None:
        """Moves one end of each sample in `at`. `known` is the smallest number at which it is known to be reached."""
        self.low[at] = torch.where(reached, self.low[at], asked)
        self.high[at] = torch.minimum(torch.where(reached, asked, self.high[at]), known)
