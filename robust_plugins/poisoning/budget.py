"""`PoisoningBudget`: what the poisoner may do to the training data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import Interval

Norm = Literal["linf", "l2", "l1"]
Change = Literal["none", "substitution", "addition", "removal"]


@dataclass(frozen=True, kw_only=True)
class PoisoningBudget:
    """All data sets that the poisoner can turn the training data into, batch by batch.

    In every batch, the features of at most `points` samples move by at most `eps` in `norm`, and at most `labels`
    samples get another label. The order of the data, the batches and the initial parameters are fixed. A budget per
    batch covers the same budget for the whole data set, which is what a poisoner has. With a count of 0 what belongs
    to it has no effect. Sets of features are evaluated in the dtype of the data.

    - `eps` is in the units of the features: a number, or one per feature (a tensor of one sample's shape, or a
      sequence of its entries), which scales the norm's axes. `columns` are the indices, in the flattened sample, of
      the features that may move; None: all. `clip` is the valid range of the features; moved ones stay in it.
    - With `label_radius` (regression) a label moves by at most that; without it (classification) it becomes any other
      class, or `target` alone.
    - `paired`: the samples with moved features and those with changed labels are nested, the larger set around the
      smaller one, as where a poisoner controls max(points, labels) samples. Otherwise both sets are chosen freely.

    `substitution(k)`, `addition(k)`, `removal(k)` and `privacy(k)` make budgets without limit on what the samples hold.
    """

    points: int = 0
    eps: float | Sequence[float] | Tensor = 0.0
    norm: Norm = "linf"
    columns: tuple[int, ...] | None = None
    clip: tuple[float, float] | None = None
    labels: int = 0
    label_radius: float | None = None
    target: int | None = None
    paired: bool = False
    change: Change = "none"
    k: int = 0

    def __post_init__(self) -> None:
        for name, count in (("points", self.points), ("labels", self.labels), ("k", self.k)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise ArgumentError(name, repr(count), accepted="an integer >= 0", hint="Count samples per batch.")
        if self.norm not in ("linf", "l2", "l1"):
            raise ArgumentError("norm", repr(self.norm), accepted="'linf', 'l2' or 'l1'", hint="Choose one of them.")
        object.__setattr__(self, "eps", _plain(self.eps))
        object.__setattr__(self, "columns", _columns(self.columns))
        if self.clip is not None and not (len(self.clip) == 2 and self.clip[0] < self.clip[1]):
            raise ArgumentError("clip", repr(self.clip), accepted="a pair (low, high), low < high", hint="Or None.")
        if self.label_radius is not None and not (math.isfinite(self.label_radius) and self.label_radius >= 0):
            raise ArgumentError(
                "label_radius", self.label_radius, accepted="a finite number >= 0, or None", hint="In units of labels."
            )
        if self.label_radius is not None and self.target is not None:
            raise ArgumentError(
                "target",
                self.target,
                accepted="None with label_radius",
                hint="Classes have a target, numbers a radius.",
            )
        if self.change not in ("none", "substitution", "addition", "removal"):
            raise ArgumentError("change", repr(self.change), accepted="'substitution', 'addition', 'removal' or 'none'",
                                hint="Use PoisoningBudget.substitution(k) and the like.")  # fmt: skip
        if (self.change == "none") != (self.k == 0) or (self.k and (self.points or self.labels)):
            raise ArgumentError(
                "k",
                self.k,
                accepted="with substitution, addition or removal only, and then without points and labels",
                hint="A replaced sample can hold anything, so limits on features and labels add nothing.",
            )
        for name, count, size in (("eps", self.points, self.largest), ("label_radius", self.labels, self.label_radius)):
            if count and size == 0:
                raise ArgumentError(name, size, accepted="above 0 where samples may change", hint="Or allow none.")

    @classmethod
    def substitution(cls, k: int) -> PoisoningBudget:
        """At most `k` samples of every batch are replaced by any others."""
        return cls(change="substitution", k=_positive(k))

    @classmethod
    def addition(cls, k: int) -> PoisoningBudget:
        """At most `k` samples are added to every batch; the step takes the mean over what the batch then holds."""
        return cls(change="addition", k=_positive(k))

    @classmethod
    def removal(cls, k: int) -> PoisoningBudget:
        """At most `k` samples are taken out of every batch, as by requests to be forgotten (unlearning).

        The gradient is the mean over what is left, and zero where nothing is (momentum and weight decay go on).
        """
        return cls(change="removal", k=_positive(k))

    @classmethod
    def privacy(cls, k: int) -> PoisoningBudget:
        """Data sets at distance `k`, for `private_prediction`: samples added, removed or replaced, k in all.

        With per-sample clipping the bounds for k replaced samples hold for the k added and the k removed too: the mean
        of a batch in which the smallest value is replaced by the largest possible one is at least the mean with that
        value removed, or with the largest one added.
        """
        return cls.substitution(k=k)

    @property
    def largest(self) -> float:
        """The largest of the features' radii."""
        return max(self.eps) if isinstance(self.eps, tuple) else cast("float", self.eps)

    @property
    def unbounded(self) -> bool:
        """Whether samples may hold anything, so that gradients must be clipped."""
        return self.change in ("substitution", "addition")

    @property
    def nothing(self) -> bool:
        """Whether nothing may change."""
        return not (self.points or self.labels or self.k)

    def radius(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "1 *features"]:
        """`eps` of every feature, 0 where it may not move, in x's dtype and on its device."""
        shape = x.shape[1:]
        if isinstance(self.eps, tuple):
            if len(self.eps) != shape.numel():
                raise ArgumentError("eps", f"{len(self.eps)} values for {shape.numel()} features",
                                    accepted="a number, or one per feature", hint="One radius for each.")  # fmt: skip
            radius = torch.tensor(self.eps, dtype=x.dtype, device=x.device)
        else:
            radius = x.new_full((shape.numel(),), cast("float", self.eps))
        if self.columns is not None:
            if self.columns[-1] >= shape.numel():
                raise ArgumentError("columns", self.columns[-1], accepted=f"below {shape.numel()}",
                                    hint="Indices count the entries of the flattened sample from 0.")  # fmt: skip
            chosen = torch.zeros_like(radius)
            chosen[list(self.columns)] = 1
            radius = radius * chosen
        return radius.view(1, *shape)

    def box(self, x: Float[Tensor, "batch *features"]) -> Interval:
        """The smallest box around every sample's poisoned features. For `linf` it is the set itself.

        A sample that lies outside `clip` stays in the box.
        """
        radius = self.radius(x)
        low, high = x - radius, x + radius
        if self.clip is not None:
            low, high = torch.minimum(low.clamp(*self.clip), x), torch.maximum(high.clamp(*self.clip), x)
        return Interval(low, high)

    def project(self, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"]) -> Tensor:
        """Points of the sets around `x` near those of `z`; for `linf` the nearest ones."""
        radius = self.radius(x)
        step = torch.where(radius > 0, (z - x) / torch.where(radius > 0, radius, 1), 0)  # in units of the radius
        flat = step.flatten(1)
        if self.norm == "linf":
            flat = flat.clamp(-1, 1)
        elif self.norm == "l2":
            flat = flat / flat.norm(dim=1, keepdim=True).clamp(min=1)
        else:
            flat = flat / flat.abs().sum(1, keepdim=True).clamp(min=1)
        box = self.box(x)
        return torch.minimum(torch.maximum(x + flat.view_as(x) * radius, box.lower), box.upper)


def _plain(eps: object) -> float | tuple[float, ...]:
    values = torch.as_tensor(eps, dtype=torch.float64).flatten().tolist() if not isinstance(eps, str) else [math.nan]
    if not values or not all(math.isfinite(v) and v >= 0 for v in values):
        raise ArgumentError(
            "eps", repr(eps), accepted="a finite number >= 0, or one per feature", hint="In the units of the features."
        )
    single = isinstance(eps, int | float) or (isinstance(eps, Tensor) and eps.dim() == 0)
    return values[0] if single else tuple(values)


def _columns(columns: Sequence[int] | None) -> tuple[int, ...] | None:
    if columns is None:
        return None
    indices = tuple(sorted({int(c) for c in columns}))
    if not indices or indices[0] < 0:
        raise ArgumentError("columns", repr(columns), accepted="indices >= 0, at least one", hint="Or None for all.")
    return indices


def _positive(k: int) -> int:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ArgumentError("k", repr(k), accepted="an integer of at least 1", hint="Count samples per batch.")
    return k
