"""Combiners of the worst case with other losses: alone, or with those of adversarial examples and clean inputs.

A combiner is a frozen dataclass with a method `loss(batch, worst)`, which returns the robust loss R of the mixed loss
`gamma * L(y, f(x)) + (1 - gamma) * R`, and what R consists of. Write your own by subclassing `Combiner`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from robust_plugins.decisions.attack import Attack
from robust_plugins.errors import ArgumentError
from robust_plugins.losses.batch import Batch, WorstCase
from robust_plugins.losses.divergence import Diverging
from robust_plugins.losses.worst import Attacked


class Combined(NamedTuple):
    """A robust loss, and the losses that it consists of, by name.

    - `total`: the loss to train on.
    - `parts`: the losses, by name.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]


@dataclass(frozen=True, kw_only=True)
class Combiner(ABC):
    """Turns worst outputs into a robust loss."""

    uses_clean: ClassVar[bool] = False
    """Whether gradients flow through the outputs on clean inputs, too."""

    @abstractmethod
    def loss(self, batch: Batch, worst: WorstCase) -> Combined:
        """The robust loss of the batch, a scalar with gradients."""


@dataclass(frozen=True, kw_only=True)
class Worst(Combiner):
    """`L(y, y_worst)`: the lecture's convex sum of clean and worst loss."""

    def loss(self, batch: Batch, worst: WorstCase) -> Combined:  # noqa: D102 (inherited)
        return Combined(batch.loss(batch.worst(worst)), {})


@dataclass(frozen=True, kw_only=True)
class _WithAttack(Combiner):
    attack: Attack
    alpha: float

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ArgumentError("alpha", self.alpha, accepted="a number in [0, 1]", hint="1 is the bounds alone.")

    def _losses(self, batch: Batch, worst: WorstCase) -> dict[str, Tensor]:
        return {
            "adversarial": batch.loss(batch.adversarial(self.attack)),
            "certified": batch.loss(batch.worst(worst)),
        }


@dataclass(frozen=True, kw_only=True)
class ThreeTerm(_WithAttack):
    """`alpha * L(certified) + (1 - alpha) * L(adversarial)`: MTL-IBP, and with gamma > 0 three weights.

    De Palma et al. 2024, "Expressive losses for verified robustness via convex combinations".
    """

    def loss(self, batch: Batch, worst: WorstCase) -> Combined:  # noqa: D102 (inherited)
        parts = self._losses(batch, worst)
        return Combined(self.alpha * parts["certified"] + (1 - self.alpha) * parts["adversarial"], parts)


@dataclass(frozen=True, kw_only=True)
class MixedMargins(_WithAttack):
    """`L(alpha * certified margins + (1 - alpha) * adversarial margins)`: CC-IBP. De Palma et al. 2024."""

    def loss(self, batch: Batch, worst: WorstCase) -> Combined:  # noqa: D102 (inherited)
        # The worst logits are zero at the true class, so these must be too before they are mixed.
        adversarial = batch.mixable(batch.adversarial(self.attack))
        mixed = self.alpha * batch.worst(worst) + (1 - self.alpha) * adversarial
        with torch.no_grad():
            parts = self._losses(batch, worst)
        return Combined(batch.loss(mixed), parts)


@dataclass(frozen=True, kw_only=True)
class Powers(_WithAttack):
    """`L(certified)^alpha * L(adversarial)^(1 - alpha)`: Exp-IBP. De Palma et al. 2024.

    Of the batch's mean losses, as in the authors' code: two accumulated batches are not quite one of twice the size.
    """

    def loss(self, batch: Batch, worst: WorstCase) -> Combined:  # noqa: D102 (inherited)
        parts = self._losses(batch, worst)
        # A loss of zero, which saturated softmax has in floating point, would have an infinite slope here.
        certified, adversarial = (
            parts[name].clamp(min=torch.finfo(parts[name].dtype).tiny) for name in ("certified", "adversarial")
        )
        return Combined(certified**self.alpha * adversarial ** (1 - self.alpha), parts)


@dataclass(frozen=True, kw_only=True)
class TRADES(Combiner):
    """`L(y, f(x)) + beta * KL(f(x) || f(x'))`, where x' maximises the divergence (`Diverging`), or an attack's loss.

    Zhang et al. 2019, "Theoretically principled trade-off between robustness and accuracy", equation 5.
    """

    beta: float = 6.0

    uses_clean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_weight("beta", self.beta)

    def loss(self, batch: Batch, worst: WorstCase) -> Combined:  # noqa: D102 (inherited)
        clean, attacked = batch.clean.log_softmax(1), _pair(batch, worst).log_softmax(1)
        divergence = F.kl_div(attacked, clean, log_target=True, reduction="batchmean")
        return Combined(batch.loss(batch.clean) + self.beta * divergence, {"divergence": divergence})


@dataclass(frozen=True, kw_only=True)
class MART(Combiner):
    """`BCE(f(x'), y) + weight * KL(f(x) || f(x')) * (1 - p_y(x))`, where x' is the adversarial example of an attack.

    BCE is `-log p_y(x') - log(1 - max_{k != y} p_k(x'))`. Wang et al. 2020, "Improving adversarial robustness requires
    revisiting misclassified examples".
    """

    weight: float = 5.0

    uses_clean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_weight("weight", self.weight)

    def loss(self, batch: Batch, worst: WorstCase) -> Combined:  # noqa: D102 (inherited)
        if batch.shares is not None:
            raise ArgumentError(
                "y", "shares of classes, with MART", accepted="one class per sample",
                hint="Its loss sets one class against all others: take y.argmax(1), or TRADES.",
            )  # fmt: skip
        clean, attacked = batch.clean.log_softmax(1), _pair(batch, worst).log_softmax(1)
        rival = attacked.masked_fill(~batch.wrong, -torch.inf).argmax(1, keepdim=True)
        # log(1 - p) of the rival as the log of the sum of the others: exact where p is near one.
        others = attacked.scatter(1, rival, -torch.inf).logsumexp(1)
        boosted = -attacked.gather(1, batch.y.unsqueeze(1)).squeeze(1) - others
        doubt = 1 - clean.gather(1, batch.y.unsqueeze(1)).squeeze(1).exp()
        divergence = F.kl_div(attacked, clean, log_target=True, reduction="none").sum(1)
        weighted = (divergence * doubt).mean()
        return Combined(boosted.mean() + self.weight * weighted, {"divergence": weighted})


def _pair(batch: Batch, worst: WorstCase) -> Tensor:
    if not isinstance(worst, Attacked | Diverging) or batch.continuous:
        raise ArgumentError(
            "worst",
            worst,
            accepted="an attack or Diverging, and classes as labels",
            hint="TRADES and MART compare two inputs.",
        )
    return batch.worst(worst)


def _check_weight(name: str, value: float) -> None:
    if not value >= 0:
        raise ArgumentError(name, value, accepted="a number >= 0", hint="0 switches the divergence off.")
