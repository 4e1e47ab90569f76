"""The radius of each sample at which an attack begins to succeed, by bisection that follows the margin."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SHIFT = 0.2
"""How far a question goes from the interpolated root towards the middle, in the square of what is left of the interval:
so that both of its ends move."""

LAST = 0.95
"""The part of the width that is wanted between the last question and the end of the interval that it lies next to."""


class RootSearch:
    """Narrows, for all samples at once, the interval between a radius that held and one at which an attack succeeded.

    Oliveira and Takahashi 2021, "An enhancement of the bisection method average performance preserving minmax
    optimality": the next question is where the margin's interpolation between the two is zero, moved a little towards
    the middle, and never so far from it that more than one question more than bisection's would be needed. `high` are
    the first radii that are asked; where an attack does not succeed there, the sample is done. `margins` are those at
    radius 0. What they are decides how soon the search ends, and never where.
    """

    def __init__(self, high: Float[Tensor, " batch"], margins: Float[Tensor, " batch"]) -> None:
        self.low, self.high = torch.zeros_like(high), high.clone()
        self._below, self._above = margins.clone(), torch.full_like(margins, torch.nan)
        self._asked = 0
        self._first = high.clone()

    def next(self, width: Float[Tensor, " batch"]) -> tuple[Int[Tensor, " open"], Float[Tensor, " open"]]:
        """The samples whose interval is wider than `width`, by index, and the radius that each is to be asked."""
        span = self.high - self.low
        ask = self.high if self._asked == 0 else self._interpolated(span, width)
        inside = (ask > self.low) & ((ask < self.high) | (self._asked == 0))
        at = (inside & (span > width)).nonzero().flatten()
        self._asked += 1
        return at, ask[at]

    def answer(
        self,
        at: Int[Tensor, " open"],
        asked: Float[Tensor, " open"],
        reached: Bool[Tensor, " open"],
        margin: Float[Tensor, " open"],
        *,
        known: Float[Tensor, " open"],
    ) -> None:
        """Moves one end of each sample in `at`. `margin` is the largest that was found; `known` the nearest success."""
        self.low[at] = torch.where(reached, self.low[at], asked)
        self._below[at] = torch.where(reached, self._below[at], margin)
        self._above[at] = torch.where(reached, margin, self._above[at])
        self.high[at] = torch.minimum(torch.where(reached, asked, self.high[at]), known)

    def nearer(self, known: Float[Tensor, " batch"]) -> None:
        """Takes the distances of examples on the boundary, whose margin is about zero."""
        closer = known < self.high
        self.high, self._above = torch.where(closer, known, self.high), torch.where(closer, 0.0, self._above)
        if self._asked == 1:
            self._first = self.high.clone()

    def _interpolated(self, span: Tensor, width: Tensor) -> Tensor:
        below, above = self._below.clamp(max=0), self._above.clamp(min=0)
        middle = self.low + span / 2
        root = self.low + span * below / (below - above)
        root = torch.where(root.isfinite(), root, middle)
        shift = (SHIFT * span.square() / self._first).minimum((middle - root).abs())
        ask = root + torch.sign(middle - root) * shift
        # Close to one end, ask just so far from it that the expected answer is the last.
        ask = torch.where(root - self.low < width, self.low + LAST * width, ask)
        # An example that was brought to the boundary has no margin to tell how far the root is from there.
        ask = torch.where((self.high - root < width) & (above > 0), self.high - LAST * width, ask)
        # Bisection is asked so often at most; here it is once more. Rounding is not to cost another.
        left = torch.log2(self._first / width).ceil().clamp(min=0) + 1 - (self._asked - 1)
        slack = (0.999 * width * torch.exp2(left) / 2 - span / 2).clamp(min=0)
        return torch.minimum(torch.maximum(ask, middle - slack), middle + slack)
