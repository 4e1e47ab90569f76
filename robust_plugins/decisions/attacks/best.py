"""The best iterate of a search for adversarial examples, sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_plugins.decisions.attacks.objectives import Objective


class Best:
    """Keeps, for each sample, the best point offered: success first, then the objective; the later one of equals.

    `y` are labels to leave, or with `targeted` classes to reach; `objective` maps logits to the values (batch,) that
    are raised. Before any offer, and where every offer has a NaN value, the best point is `x`.
    """

    def __init__(self, x: Tensor, y: Tensor, objective: Objective, *, targeted: bool) -> None:
        self.x = x.clone()
        self.success = torch.zeros_like(y, dtype=torch.bool)
        self.value = x.new_full((len(x),), -torch.inf)
        self._y = y.long()
        self.objective = objective
        self._targeted = targeted

    @torch.no_grad()
    def offer(self, z: Tensor, logits: Tensor, value: Tensor | None = None) -> Tensor:
        """Takes each sample of `z`, finite and shaped like `x`, that beats the best one, and returns which these are.

        `logits` are the model's on `z`, `value` is the objective of them where that is known already.
        """
        value = self.objective(logits) if value is None else value
        known = value == value  # NaN is no success
        decision = logits.argmax(1)
        success = (decision == self._y if self._targeted else decision != self._y) & known
        won = success > self.success
        better = ((value >= self.value) & (success == self.success) & known) | won
        self.success |= won
        self.value = torch.where(better, value, self.value)
        # Weights of 0 and 1 choose exactly, for a fifth of what torch.where costs.
        self.x.lerp_(z, better.to(z).view(-1, *[1] * (z.dim() - 1)))
        return better
