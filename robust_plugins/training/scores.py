"""`Scores`: clean, attacked and certified accuracy in the course of training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.decisions.registered import attack, certifier, first_available
from robust_plugins.decisions.results import Certificate, Verdict
from robust_plugins.errors import ArgumentError, ComponentError, UnsupportedModelError
from robust_plugins.harness.arguments import decided
from robust_plugins.harness.batches import as_batch
from robust_plugins.harness.call import calling
from robust_plugins.harness.component import chunks
from robust_plugins.losses.labels import Task, labels_of

MISSING = (Verdict.UNSUPPORTED, Verdict.ERROR, Verdict.TIMEOUT)
"""Verdicts that are no answer."""

ATTACKS = ("art:pgd(steps=10)", "rp:pgd(steps=10)")
"""What attacks where nothing else is said: the first that is installed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """A function from a model to its accuracies on these samples, to be passed to `rp.fit` as `evaluate`.

    - `y`: classes, in floating point too, or one-hot rows.
    - `attack` and `certifier` are registered names, with parameters, or None to leave that column out. Without a name
      the attack is `art:pgd(steps=10)`, or `rp:pgd(steps=10)` where ART is not installed. It starts from `seed` every
      time, and what was wrong without it counts as broken. Certified accuracy counts what is proved and correct.

    A model of one output z has the logits (-z/2, z/2). Raises ArgumentError for an empty batch and for labels that are
    no classes, and UnknownNameError for an unknown component.

    - `x`: the inputs; x and y may be numpy arrays, which come in the model's dtype and on its device.
    - `ball`: the set around each input.
    - `batch_size`: how many samples go through the model at a time.
    """

    x: Float[Tensor, "batch *features"] | np.ndarray
    y: Shaped[Tensor, "batch *outputs"] | np.ndarray
    ball: Ball
    attack: str | None = field(default_factory=lambda: first_available(*ATTACKS))
    certifier: str | None = "interval:ibp"
    seed: int = 0
    batch_size: int = 1000

    def __post_init__(self) -> None:
        if not isinstance(self.ball, Ball):
            raise ArgumentError(
                "ball", repr(self.ball), accepted="rp.Linf, rp.L2, rp.L1 or rp.Box",
                hint="For example rp.Linf(eps=0.1, clip=(0, 1)).",
            )  # fmt: skip
        if not len(self.x) or len(self.x) != len(self.y):
            raise ArgumentError(
                "x, y", f"of {len(self.x)} and {len(self.y)} samples", accepted="as many labels as samples, at least 1",
                hint="Evaluate on some samples.",
            )  # fmt: skip
        for make, name in ((attack, self.attack), (certifier, self.certifier)):
            if name is not None:
                make(name)  # a misspelt name is found before the training, not after its first epoch

    def __call__(self, model: nn.Module) -> dict[str, float | str]:
        """`clean`, and under their components' names what they leave or prove: shares between 0 and 1.

        What could not be computed is said in words, with its cause: `"unsupported: ..."` where the certifier cannot
        bound the model, `"error: ..."` where a component failed, `"timeout: ..."`. The model is evaluated in evaluation
        mode, under any ambient mode, and left as found.
        """
        found: dict[str, _Count] = {"clean": _Count()}
        samples, labels = as_batch(self.x, self.y, model)
        for part in chunks(len(self.x), self.batch_size):
            x, y, ball = samples[part], labels[part], self.ball[part]
            with torch.no_grad(), calling(model, x, guarded=False) as call:
                logits = decided(call.model, call.x)[1]
                classes = _classes(y, logits)
                right = (logits.argmax(1) == classes) & logits.isfinite().all(1)
            found["clean"].add(right)
            if self.attack is not None:
                count = found.setdefault(_bare(self.attack), _Count())
                count.attempt(partial(self._withstood, model, x, classes, ball, right))
            if self.certifier is not None:
                count = found.setdefault(_bare(self.certifier), _Count())
                count.attempt(partial(self._proved, model, x, classes, ball))
        return {name: count.said(len(self.x)) for name, count in found.items()}

    def _withstood(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, right: Tensor) -> Tensor:
        assert self.attack is not None  # its column is there
        return right & ~attack(self.attack)(model, x, y, ball, seed=self.seed).success

    def _proved(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Certificate:
        assert self.certifier is not None  # its column is there
        return certifier(self.certifier)(model, x, y, ball)


class _Count:
    """How many samples are good, and for how many there is no answer, for which reasons."""

    def __init__(self) -> None:
        self.good = 0
        self.missing: Counter[str] = Counter()

    def add(self, good: Tensor) -> None:
        self.good += int(good.sum())

    def attempt(self, answer: Callable[[], Tensor | Certificate]) -> None:
        try:
            found = answer()
        except UnsupportedModelError as error:
            self.missing[f"{Verdict.UNSUPPORTED}: {error}"] += 1
        except ComponentError as error:
            self.missing[f"{Verdict.ERROR}: {error}"] += 1
        else:
            self.add(found.certified if isinstance(found, Certificate) else found)
            if isinstance(found, Certificate):
                causes = zip(found.verdicts, found.messages, strict=True)
                self.missing.update(f"{v}: {message}" for v, message in causes if v in MISSING)

    def said(self, total: int) -> float | str:
        """The share of good samples; where some have no answer, the most frequent reason why."""
        return self.missing.most_common(1)[0][0] if self.missing else self.good / total


def _classes(y: Tensor, logits: Tensor) -> Tensor:
    task: Task = "binary" if logits.shape[1] == 2 else "classification"
    labels = labels_of(y, logits, task)
    if labels.shares is not None:
        raise ArgumentError(
            "y", "shares of classes", accepted="one class per sample: shares are neither right nor wrong",
            hint="Take those with the largest share, y.argmax(1), or (y > 0.5) for shares of class 1.",
        )  # fmt: skip
    assert labels.classes is not None  # the task has classes
    return labels.classes


def _bare(name: str) -> str:
    return name.partition("(")[0]
