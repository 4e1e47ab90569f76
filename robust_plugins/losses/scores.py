"""`Scores`: clean, attacked and certified accuracy in the course of training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.evaluation import evaluating
from robust_plugins.interfaces import chunks
from robust_plugins.plugins import attack, certifier


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """A function from a model to its accuracies on these samples, to be passed to `rp.fit` as `evaluate`.

    `attack` and `certifier` are registered names, with parameters, or None to leave that column out. The attack starts
    from `seed` every time. Certified accuracy counts what is proved and correct.
    """

    x: Float[Tensor, "batch *features"]
    y: Int[Tensor, " batch"]
    ball: Ball
    attack: str | None = "art:pgd(steps=10)"
    certifier: str | None = "interval:ibp"
    seed: int = 0
    batch_size: int = 1000

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """`clean`, and under their components' names what they leave or prove: shares between 0 and 1.

        The model is evaluated in evaluation mode and left as found; a model that the certifier cannot bound scores 0.
        """
        counts: dict[str, int] = {}

        def count(name: str, good: Tensor) -> None:
            counts[name] = counts.get(name, 0) + int(good.sum())

        for part in chunks(len(self.x), self.batch_size):
            x, y, ball = self.x[part], self.y[part], self.ball[part]
            with torch.no_grad(), evaluating(model):
                count("clean", model(x).argmax(1) == y)
            if self.attack is not None:
                count(_bare(self.attack), ~attack(self.attack)(model, x, y, ball, seed=self.seed).success)
            if self.certifier is not None:
                count(_bare(self.certifier), certifier(self.certifier)(model, x, y, ball).certified)
        return {name: good / len(self.x) for name, good in counts.items()}


def _bare(name: str) -> str:
    return name.partition("(")[0]
