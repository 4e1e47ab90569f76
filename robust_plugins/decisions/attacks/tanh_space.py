"""The change of variables under which a box has no borders, and Adam for each sample by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_plugins.balls import Ball
from robust_plugins.decisions.attacks.closest import per_sample
from robust_plugins.decisions.attacks.objectives import Objective


class TanhSpace:
    """`z = middle + radius * tanh(w)`, over the smallest box around a ball and its clip range.

    Carlini and Wagner 2017, "Towards evaluating the robustness of neural networks", section V.B.
    """

    def __init__(self, x: Tensor, ball: Ball) -> None:
        box = ball.box(x)
        self.x, self.middle, self.radius = x, (box.lower + box.upper) / 2, (box.upper - box.lower) / 2

    def start(self, inside: float) -> Tensor:
        """The `w` of `x`, or of what lies at the part `inside` of the way to the border, where the tanh has a slope."""
        share = (self.x - self.middle) / torch.where(self.radius > 0, self.radius, 1)
        return torch.atanh(share.clamp(-inside, inside))

    def inputs(self, w: Tensor) -> Tensor:
        """The points of the box that `w` stands for."""
        return self.middle + self.radius * torch.tanh(w)

    def slope(self, w: Tensor) -> Tensor:
        """How fast each coordinate of the point moves with that of `w`."""
        return self.radius * (1 - torch.tanh(w).square())

    def of(self, samples: Tensor) -> TanhSpace:
        """The space of some of the samples, by index or mask."""
        found = object.__new__(TanhSpace)
        found.x, found.middle, found.radius = self.x[samples], self.middle[samples], self.radius[samples]
        return found


def lacking(raised: Objective) -> Objective:
    """The margin where it is below zero, which is what an example lacks to be adversarial; zero for one that is."""
    return lambda logits: raised(logits).clamp(max=0)


class Adam:
    """Adam, whose moments and step count belong to each sample, so that samples can begin again on their own."""

    def __init__(self, w: Tensor, learning_rate: float) -> None:
        self._rate = learning_rate
        self._first, self._second = torch.zeros_like(w), torch.zeros_like(w)
        self._count = w.new_zeros(len(w))

    def step(self, w: Tensor, gradient: Tensor, *, rate: float = 1.0, again: Tensor | None = None) -> Tensor:
        """Moves against the gradient, by `rate` times the learning rate. The samples `again` forget their moments."""
        if again is not None:
            kept = per_sample((~again).to(w), w)
            self._first, self._second = self._first * kept, self._second * kept
            self._count = torch.where(again, 0, self._count)
        gradient = gradient.nan_to_num(0.0)
        self._count = self._count + 1
        self._first = torch.lerp(gradient, self._first, 0.9)
        self._second = torch.lerp(gradient.square(), self._second, 0.999)
        first, second = (per_sample(1 - decay**self._count, w) for decay in (0.9, 0.999))
        return w - rate * self._rate * (self._first / first) / ((self._second / second).sqrt() + 1e-8)

    def of(self, samples: Tensor) -> Adam:
        """The state of some of the samples, by index or mask."""
        found = object.__new__(Adam)
        found._rate, found._first, found._second = self._rate, self._first[samples], self._second[samples]
        found._count = self._count[samples]
        return found
