"""`Corners`: random search over the corners of the ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust_plugins as rp


@dataclass(frozen=True, kw_only=True)
class Corners(rp.Attack):
    """Draws `tries` corners of the ball for each sample and keeps the one with the worst loss. Needs no gradient."""

    tries: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tries < 1:
            raise rp.ArgumentError("tries", self.tries, accepted="an integer of at least 1", hint="Try one or more.")

    @torch.no_grad()
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        """The worst corners found, shaped like `x`."""
        worst = x
        for z in ball.sample(x, self.tries, draw="corner"):
            loss, best = (F.cross_entropy(model(v), y, reduction="none") for v in (z, worst))
            better = loss < best if targeted else loss > best
            worst = torch.where(better.view(-1, *[1] * (x.dim() - 1)), z, worst)
        return worst
