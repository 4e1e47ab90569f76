"""The training losses: torch's own, their derivatives by the outputs as intervals, and what a label can become."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import Interval
from robust_plugins.intervals.methods import loss_gradients
from robust_plugins.poisoning.budget import PoisoningBudget

Loss = Literal["cross_entropy", "binary_cross_entropy", "mse", "hinge"]


class Objective(ABC):
    """One loss, a mean over the batch of every sample's own."""

    classifies = True
    pairwise = False
    """Whether only differences of the outputs count, as for a softmax."""

    @abstractmethod
    def losses(self, z: Float[Tensor, "batch outputs"], y: Shaped[Tensor, "batch *labels"]) -> Tensor:
        """The loss of each sample, shape (batch,)."""

    @abstractmethod
    def mean(self, z: Float[Tensor, "batch outputs"], y: Shaped[Tensor, "batch *labels"]) -> Tensor:
        """Their mean, by torch's own function where it has one."""

    @abstractmethod
    def decides(self, z: Interval, differences: Interval | None) -> Tensor:
        """The class that each sample gets for certain, -1 where none does; for regression all -1."""

    @abstractmethod
    def gradient(
        self, z: Interval, y: Shaped[Tensor, "batch *labels"] | Interval, differences: Interval | None
    ) -> Interval:
        """Each sample's dL/dz, for outputs z and, where known, their differences `z_j - z_i` at [batch, i, j]."""

    @abstractmethod
    def worst(self, z: Interval, y: Shaped[Tensor, "batch *labels"], differences: Interval | None) -> Tensor:
        """Each sample's largest loss over the outputs."""

    @abstractmethod
    def relabelled(
        self, y: Shaped[Tensor, "batch *labels"], outputs: int, budget: PoisoningBudget
    ) -> list[Tensor | Interval]:
        """Labels, or intervals of them, that together cover what the poisoner can make of each label."""

    @abstractmethod
    def checked(self, y: Shaped[Tensor, "batch *labels"], outputs: int) -> Tensor:
        """`y` in the shape that this class takes. Raises ArgumentError for labels that do not fit."""

    def check(self, budget: PoisoningBudget) -> None:
        """Raises ArgumentError for label changes that do not fit the loss."""
        if budget.labels and budget.label_radius is not None:
            raise ArgumentError("label_radius", budget.label_radius, accepted='None but for loss="mse"',
                                hint="Labels of a classification change to another class.")  # fmt: skip


class _CrossEntropy(Objective):
    """`log sum_j exp(z_j - z_y)`."""

    pairwise = True

    def mean(self, z: Float[Tensor, "batch outputs"], y: Shaped[Tensor, "batch *labels"]) -> Tensor:
        return F.cross_entropy(z, y)

    def decides(self, z: Interval, differences: Interval | None) -> Tensor:
        same = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
        # Of class i over class j, at [i, j].
        lead = z.lower.unsqueeze(2) - z.upper.unsqueeze(1) if differences is None else -differences.upper
        wins = (lead > 0).masked_fill(same, True).all(2)
        return torch.where(wins.any(1), wins.long().argmax(1), -1)

    def losses(self, z: Float[Tensor, "batch outputs"], y: Shaped[Tensor, "batch *labels"]) -> Tensor:
        return F.cross_entropy(z, y, reduction="none")

    def gradient(
        self, z: Interval, y: Shaped[Tensor, "batch *labels"] | Interval, differences: Interval | None
    ) -> Interval:
        assert isinstance(y, Tensor)
        return loss_gradients.cross_entropy(z, y, differences=differences)

    def worst(self, z: Interval, y: Shaped[Tensor, "batch *labels"], differences: Interval | None) -> Tensor:
        own = F.one_hot(y, z.shape[-1]).bool()
        above = z.upper - z.lower.gather(1, y[:, None])
        if differences is not None:
            row = y.view(-1, 1, 1).expand(-1, 1, z.shape[-1])
            above = torch.minimum(above, differences.upper.gather(1, row).squeeze(1))
        return above.masked_fill(own, 0.0).logsumexp(1)

    def relabelled(
        self, y: Shaped[Tensor, "batch *labels"], outputs: int, budget: PoisoningBudget
    ) -> list[Tensor | Interval]:
        if budget.target is not None:
            if budget.target not in range(outputs):
                raise ArgumentError(
                    "target", budget.target, accepted=f"a class from 0 to {outputs - 1}", hint="Or None."
                )
            return [y, torch.full_like(y, budget.target)]
        return [torch.full_like(y, label) for label in range(outputs)]

    def checked(self, y: Shaped[Tensor, "batch *labels"], outputs: int) -> Tensor:
        if outputs < 2:
            raise ArgumentError("loss", "'cross_entropy' for one output", accepted="two or more logits",
                                hint='Use "binary_cross_entropy" for a single one.')  # fmt: skip
        if y.is_floating_point() or y.dim() != 1 or (len(y) and not 0 <= int(y.min()) <= int(y.max()) < outputs):
            raise ArgumentError("y", _described(y), accepted=f"class indices from 0 to {outputs - 1}, shape (batch,)",
                                hint="Convert one-hot rows with y.argmax(1).")  # fmt: skip
        return y.long()


class _PerOutput(Objective):
    """A mean over the outputs of the loss of each, with labels of the outputs' shape."""

    def mean(self, z: Float[Tensor, "batch outputs"], y: Shaped[Tensor, "batch *labels"]) -> Tensor:
        return self.entries(z, y).mean()

    def decides(self, z: Interval, differences: Interval | None) -> Tensor:
        if not self.classifies:
            return torch.full((len(z),), -1, device=z.device)
        return torch.where(z.lower > 0, 1, torch.where(z.upper < 0, 0, -1)).flatten()

    @abstractmethod
    def entries(self, z: Tensor, y: Tensor) -> Tensor:
        """The loss of every output."""

    @abstractmethod
    def slopes(self, z: Interval, y: Tensor | Interval) -> Interval:
        """Its derivative by that output."""

    def losses(self, z: Float[Tensor, "batch outputs"], y: Shaped[Tensor, "batch *labels"]) -> Tensor:
        return self.entries(z, y).flatten(1).mean(1)

    def gradient(
        self, z: Interval, y: Shaped[Tensor, "batch *labels"] | Interval, differences: Interval | None
    ) -> Interval:
        found = self.slopes(z, y.to(z.dtype) if isinstance(y, Tensor) else y)
        outputs = z.lower[0].numel() if len(z) else 1
        return found if outputs == 1 else found * (1 / outputs)

    def worst(self, z: Interval, y: Shaped[Tensor, "batch *labels"], differences: Interval | None) -> Tensor:
        # Convex in every output, so that an end is worst.
        return torch.maximum(self.entries(z.lower, y), self.entries(z.upper, y)).flatten(1).mean(1)

    def checked(self, y: Shaped[Tensor, "batch *labels"], outputs: int) -> Tensor:
        shaped = y.view(-1, 1) if y.dim() == 1 else y
        if shaped.dim() != 2 or shaped.shape[1] != outputs or not bool(shaped.isfinite().all()):
            raise ArgumentError("y", _described(y), accepted=f"finite numbers, shape (batch, {outputs})",
                                hint="One label per output of the model.")  # fmt: skip
        return shaped

    def _one_of(self, y: Tensor, outputs: int, allowed: tuple[float, float]) -> Tensor:
        if outputs != 1:
            raise ArgumentError("model", f"with {outputs} outputs", accepted="one logit for this loss",
                                hint='Use "cross_entropy" for several.')  # fmt: skip
        shaped = _PerOutput.checked(self, y, outputs)
        if not bool(((shaped == allowed[0]) | (shaped == allowed[1])).all()):
            raise ArgumentError("y", _described(y), accepted=f"labels {allowed[0]:g} and {allowed[1]:g}",
                                hint="Recode the labels.")  # fmt: skip
        return shaped


class _BinaryCrossEntropy(_PerOutput):
    """`log(1 + exp(z)) - y z` of a logit, labels 0 and 1."""

    def mean(self, z: Float[Tensor, "batch outputs"], y: Shaped[Tensor, "batch *labels"]) -> Tensor:
        return F.binary_cross_entropy_with_logits(z, y.to(z.dtype))

    def entries(self, z: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(z, y.to(z.dtype), reduction="none")

    def slopes(self, z: Interval, y: Tensor | Interval) -> Interval:
        return loss_gradients.binary_cross_entropy_with_logits(z, y)

    def relabelled(
        self, y: Shaped[Tensor, "batch *labels"], outputs: int, budget: PoisoningBudget
    ) -> list[Tensor | Interval]:
        return _binary(y, budget, (0, 1))

    def checked(self, y: Shaped[Tensor, "batch *labels"], outputs: int) -> Tensor:
        return self._one_of(y, outputs, (0, 1))


class _Hinge(_PerOutput):
    """`max(0, 1 - y z)`, labels -1 and 1."""

    def entries(self, z: Tensor, y: Tensor) -> Tensor:
        return (1 - y.to(z.dtype) * z).clamp(min=0)

    def slopes(self, z: Interval, y: Tensor | Interval) -> Interval:
        return loss_gradients.hinge(z, y)

    def relabelled(
        self, y: Shaped[Tensor, "batch *labels"], outputs: int, budget: PoisoningBudget
    ) -> list[Tensor | Interval]:
        return _binary(y, budget, (-1, 1))

    def checked(self, y: Shaped[Tensor, "batch *labels"], outputs: int) -> Tensor:
        return self._one_of(y, outputs, (-1, 1))


class _SquaredError(_PerOutput):
    """`(z - y)^2`, for regression."""

    classifies = False

    def mean(self, z: Float[Tensor, "batch outputs"], y: Shaped[Tensor, "batch *labels"]) -> Tensor:
        return F.mse_loss(z, y.to(z.dtype))

    def entries(self, z: Tensor, y: Tensor) -> Tensor:
        return (z - y.to(z.dtype)) ** 2

    def slopes(self, z: Interval, y: Tensor | Interval) -> Interval:
        return loss_gradients.mse(z, y)

    def relabelled(
        self, y: Shaped[Tensor, "batch *labels"], outputs: int, budget: PoisoningBudget
    ) -> list[Tensor | Interval]:
        assert budget.label_radius is not None  # check
        y = y.double()  # in a narrower dtype the ends would be rounded by more than the outputs' dtype rounds
        return [Interval(y - budget.label_radius, y + budget.label_radius)]

    def check(self, budget: PoisoningBudget) -> None:
        if budget.labels and budget.label_radius is None:
            raise ArgumentError("label_radius", None, accepted='a number above 0 for loss="mse"',
                                hint="Say how far a label may move.")  # fmt: skip


_OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": _CrossEntropy(),
    "binary_cross_entropy": _BinaryCrossEntropy(),
    "mse": _SquaredError(),
    "hinge": _Hinge(),
}


def objective(loss: Loss) -> Objective:
    """The loss of that name. Raises ArgumentError for another one."""
    if loss not in _OBJECTIVES:
        raise ArgumentError(
            "loss", repr(loss), accepted=", ".join(map(repr, get_args(Loss))), hint="Choose one of them."
        )
    return _OBJECTIVES[loss]


def _binary(y: Tensor, budget: PoisoningBudget, labels: tuple[int, int]) -> list[Tensor | Interval]:
    if budget.target is None:
        return [torch.full_like(y, label) for label in labels]
    if budget.target not in labels:
        raise ArgumentError("target", budget.target, accepted=f"{labels[0]} or {labels[1]}", hint="Or None for both.")
    return [y, torch.full_like(y, budget.target)]


def _described(y: Tensor) -> str:
    ends = f" between {y.min().item():g} and {y.max().item():g}" if y.numel() else ""
    return f"{tuple(y.shape)} {y.dtype}{ends}"
