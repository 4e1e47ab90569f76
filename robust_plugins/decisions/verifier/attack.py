"""`MarginDescent`: a search for inputs of a box that reach an unsafe set, by steps down the constraints' values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robust_plugins.decisions.verifier.clock import Clock
from robust_plugins.decisions.verifier.properties import Unsafe


@runtime_checkable
class Attack(Protocol):
    """Proposes an input of a box that may reach the unsafe set; the caller checks it."""

    def __call__(
        self, model: nn.Module, lower: Tensor, upper: Tensor, unsafe: Unsafe, generator: torch.Generator, clock: Clock
    ) -> Tensor | None:
        """The most promising input between `lower` and `upper`, all of shape (1, *features); None for none."""


@dataclass(frozen=True, kw_only=True)
class MarginDescent:
    """Signed gradient descent on the largest row of every conjunction at once, from `restarts` random inputs each.

    Step sizes fall from a quarter of the box to a fortieth. `rows_at_once` bounds the batch.
    """

    restarts: int = 5
    steps: int = 20
    rows_at_once: int = 512

    def __call__(  # noqa: D102 (inherited)
        self, model: nn.Module, lower: Tensor, upper: Tensor, unsafe: Unsafe, generator: torch.Generator, clock: Clock
    ) -> Tensor | None:
        conjunctions = len(unsafe.member)
        restarts = max(1, min(self.restarts, self.rows_at_once // conjunctions))
        goals = torch.arange(conjunctions).repeat(restarts)[: self.rows_at_once].to(lower.device)
        noise = torch.rand((len(goals), *lower.shape[1:]), generator=generator, dtype=torch.float64).to(lower)
        x = torch.minimum(lower + (upper - lower) * noise, upper)
        x[:1] = lower + (upper - lower) / 2
        least, found = torch.inf, None
        for step in range(self.steps + 1):
            excess, gradient = slope(model, x, unsafe, goals, step < self.steps)
            value, at = excess.amin(1).min(0)
            if not float(value) >= least:
                least, found = float(value), x[at : at + 1].clone()
            if least <= 0 or gradient is None or clock.left <= 0:
                break
            size = (upper - lower) * (0.25 if step < self.steps // 2 else 0.025)
            x = torch.maximum(torch.minimum(x - size * gradient.sign(), upper), lower)
        return found


def slope(model: nn.Module, x: Tensor, unsafe: Unsafe, goals: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """The excess of each input, and the gradient of that of its goal; None where layers in place have left it none."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(wanted)
        excess = unsafe.excess(unsafe.values(model(x)))
        if not wanted:
            return excess.detach(), None
        try:
            (gradient,) = torch.autograd.grad(excess.gather(1, goals.unsqueeze(1)).sum(), x)
        except RuntimeError as error:
            if "place" not in str(error):
                raise
            return excess.detach(), None
    return excess.detach(), gradient


Confirm = Callable[[Tensor], bool]
"""Whether the model itself reaches the unsafe set on these inputs, (1, *features)."""
