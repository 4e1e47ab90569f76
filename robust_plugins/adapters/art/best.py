"""The best iterate of a search for adversarial examples, sample by sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Best:
    """Keeps, for each sample, the best point offered: success first, then loss; the later one of equals.

    `y` are labels to leave (the loss is raised), or with `targeted` classes to reach (the loss is lowered). Before
    any offer, and where every offer has a NaN loss, the best point is `x`.
    """

    def __init__(self, x: Tensor, y: Tensor, *, targeted: bool) -> None:
        self.x = x.clone()
        self._y = y.long()
        self._targeted = targeted
        self._success = torch.zeros_like(y, dtype=torch.bool)
        self._gain = torch.full_like(x.flatten(1)[:, 0], -torch.inf)

    @torch.no_grad()
    def offer(self, z: Tensor, logits: Tensor) -> None:
        """Takes each sample of `z`, shaped like `x`, that beats the best one; `logits` are the model's on `z`."""
        hit = logits.argmax(1) == self._y
        loss = F.cross_entropy(logits, self._y, reduction="none")
        success, gain = (hit, -loss) if self._targeted else (~hit, loss)
        better = (success & ~self._success) | ((success == self._success) & (gain >= self._gain))
        better &= gain == gain  # NaN is no success
        self._success |= success & better
        self._gain = torch.where(better, gain, self._gain)
        torch.where(better.view(-1, *[1] * (z.dim() - 1)), z, self.x, out=self.x)
