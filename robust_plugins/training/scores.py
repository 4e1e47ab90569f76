"""`Scores`: clean, attacked and certified accuracy in the course of training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.decisions.registered import attack, certifier
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.component import chunks
from robust_plugins.harness.evaluation import evaluating
from robust_plugins.harness.wrappers import TwoLogits


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """A function from a model to its accuracies on these samples, to be passed to `rp.fit` as `evaluate`.

    `attack` and `certifier` are registered names, with parameters, or None to leave that column out. The attack starts
    from `seed` every time, and what was wrong without it counts as broken. Certified accuracy counts what is proved and
    correct. A model of one output z has the logits (-z/2, z/2). Raises ArgumentError for an empty batch and
    UnknownNameError for an unknown component.
    """

    x: Float[Tensor, "batch *features"]
    y: Int[Tensor, " batch"]
    ball: Ball
    attack: str | None = "art:pgd(steps=10)"
    certifier: str | None = "interval:ibp"
    seed: int = 0
    batch_size: int = 1000

    def __post_init__(self) -> None:
        if not len(self.x) or len(self.x) != len(self.y):
            raise ArgumentError(
                "x, y", f"of {len(self.x)} and {len(self.y)} samples", accepted="as many labels as samples, at least 1",
                hint="Evaluate on some samples.",
            )  # fmt: skip
        for make, name in ((attack, self.attack), (certifier, self.certifier)):
            if name is not None:
                make(name)  # a misspelt name is found before the training, not after its first epoch

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
                logits = model(x)
                if logits.dim() == 2 and logits.shape[1] == 1:
                    model = TwoLogits(model)
                    logits = model(x)
                right = (logits.argmax(1) == y) & logits.isfinite().all(1)
            count("clean", right)
            if self.attack is not None:
                count(_bare(self.attack), right & ~attack(self.attack)(model, x, y, ball, seed=self.seed).success)
            if self.certifier is not None:
                count(_bare(self.certifier), certifier(self.certifier)(model, x, y, ball).certified)
        return {name: good / len(self.x) for name, good in counts.items()}


def _bare(name: str) -> str:
    return name.partition("(")[0]
