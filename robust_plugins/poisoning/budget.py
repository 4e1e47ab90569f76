"""`PoisoningBudget`: what the poisoner may do to the training data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.stored import stored
from robust_plugins.intervals import Interval
from robust_plugins.poisoning.columns import Columns, as_columns, chosen

Norm = Literal["linf", "l2", "l1"]
Change = Literal["none", "substitution", "addition", "removal"]

if TYPE_CHECKING:
    Count = int
    Radii = float | Sequence[float] | Tensor
    Given = Iterable[int] | Tensor
else:  # numpy's numbers and arrays are neither int nor sequences, and are taken all the same
    Count, Radii, Given = Integral, object, object

_COUNTED = {"points": ("eps", "norm", "columns", "clip"), "labels": ("label_radius", "target")}
"""The fields that say how the samples of a count may change."""


@stored
@dataclass(frozen=True, kw_only=True)
class PoisoningBudget:
    """All data sets that the poisoner can turn the training data into, batch by batch.

    In every batch, the features of at most `points` samples move by at most `eps` in `norm`, and at most `labels`
    samples get another label; where a batch holds fewer, all of them. The order of the data, the batches and the
    initial parameters are fixed. A budget per batch covers the same budget for the whole data set, which is what a
    poisoner has. Sets of features are evaluated in the dtype of the data. A field that would have no effect is refused.

    - `eps` is in the units of the features: a number, or one per feature (an array of one sample's shape, or a
      sequence of its entries), which scales the norm's axes. `columns` are the features that may move, by their indices
      in the flattened sample or as a mask over all of them; None: all. `clip` is the valid range of the features; moved
      ones stay in it.
    - With `label_radius` (regression) a label moves by at most that; without it (classification) it becomes any other
      class, or `target` alone.
    - `paired`: the samples with moved features and those with changed labels are nested, the larger set around the
      smaller one, as where a poisoner controls max(points, labels) samples. Otherwise both sets are chosen freely.

    `substitution(k)`, `addition(k)`, `removal(k)` and `privacy(k)` make budgets without limit on what the samples hold.

    - `change`: `"none"`, or the kind of a budget without limit on what samples hold: `"substitution"`, `"addition"`,
      `"removal"`.
    - `k`: the number of samples of such a budget, in every batch.

    >>> budget = rp.PoisoningBudget(points=20, eps=0.01, labels=5)  # 20 samples move a little, 5 labels change
    >>> budget.points, budget.labels
    (20, 5)
    """

    points: Count = 0
    eps: Radii = 0.0
    norm: Norm = "linf"
    columns: Given | None = None
    clip: tuple[float, float] | None = None
    labels: Count = 0
    label_radius: float | None = None
    target: Count | None = None
    paired: bool = False
    change: Change = "none"
    k: Count = 0

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "points": _count("points", self.points),
            "labels": _count("labels", self.labels),
            "k": _count("k", self.k),
            "eps": _plain(self.eps),
            "columns": as_columns(self.columns),
            "clip": None if self.clip is None else _range(self.clip),
            "label_radius": None if self.label_radius is None else _label_radius(self.label_radius),
            "target": None if self.target is None else _class(self.target),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        for name, accepted in (
            ("norm", ("linf", "l2", "l1")),
            ("change", ("none", "substitution", "addition", "removal")),
            ("paired", (False, True)),
        ):
            value = getattr(self, name)
            if value not in accepted or (name == "paired" and not isinstance(value, bool)):
                names = [repr(a) for a in accepted]
                raise ArgumentError(name, repr(value), accepted=f"{', '.join(names[:-1])} or {names[-1]}",
                                    hint="Choose one of them.")  # fmt: skip
        self._check_use()

    def _check_use(self) -> None:
        """Raises ArgumentError for fields that contradict each other, or that would have no effect."""
        if self.change != "none":
            self._check_unlimited()
        elif self.k:
            raise ArgumentError("k", self.k, accepted="0 but for samples substituted, added or removed",
                                hint="Use PoisoningBudget.substitution(k) and the like.")  # fmt: skip
        for counted, others in _COUNTED.items():
            for field in others:
                if not getattr(self, counted) and self._given(field):
                    raise ArgumentError(field, repr(getattr(self, field)), accepted=f"only with {counted} above 0",
                                        hint=f"Say of how many samples of a batch: {counted}=1.")  # fmt: skip
        if self.paired and not (self.points and self.labels):
            raise ArgumentError("paired", True, accepted="only with points and labels, both above 0",
                                hint="Otherwise there is only one set of samples.")  # fmt: skip
        if self.label_radius is not None and self.target is not None:
            raise ArgumentError("target", self.target, accepted="None with label_radius",
                                hint="Classes have a target, numbers a radius.")  # fmt: skip
        for name, count, size in (("eps", self.points, self.largest), ("label_radius", self.labels, self.label_radius)):
            if count and size == 0:
                counted = "points" if name == "eps" else "labels"
                raise ArgumentError(
                    counted, f"{count}, but {name}, how far they may move, is {size}",
                    accepted=f"{name} above 0 with it",
                    hint=f"Give both, for example {counted}={count} and {name}=0.01.",
                )  # fmt: skip

    def _check_unlimited(self) -> None:
        if not self.k:
            raise ArgumentError("k", 0, accepted=f"an integer of at least 1 for a {self.change}",
                                hint="Count samples per batch, or allow nothing: PoisoningBudget().")  # fmt: skip
        for name in [f.name for f in fields(self) if f.name not in ("change", "k") and self._given(f.name)]:
            raise ArgumentError(name, repr(getattr(self, name)), accepted=f"no such field for a {self.change}",
                                hint="Such a sample can hold anything, so limits add nothing.")  # fmt: skip

    def _given(self, name: str) -> bool:
        default = {f.name: f.default for f in fields(self)}[name]
        return bool(getattr(self, name) != default)

    @classmethod
    def substitution(cls, k: Count) -> PoisoningBudget:
        """At most `k` samples of every batch are replaced by any others.

        An empty batch has none to replace; its bounds are those for `k` samples added, so that they hold for `privacy`.
        """
        return cls(change="substitution", k=_count("k", k, 1))

    @classmethod
    def addition(cls, k: Count) -> PoisoningBudget:
        """At most `k` samples are added to every batch; the step takes the mean over what the batch then holds."""
        return cls(change="addition", k=_count("k", k, 1))

    @classmethod
    def removal(cls, k: Count) -> PoisoningBudget:
        """At most `k` samples are taken out of every batch, as by requests to be forgotten (unlearning).

        The gradient is the mean over what is left, and zero where nothing is (momentum and weight decay go on).
        """
        return cls(change="removal", k=_count("k", k, 1))

    @classmethod
    def privacy(cls, k: Count) -> PoisoningBudget:
        """Data sets at distance `k`, for `private_prediction`: samples added, removed or replaced, k in all.

        With per-sample clipping the bounds for k replaced samples hold for the k added and the k removed too: the mean
        of a batch in which the smallest value is replaced by the largest possible one is at least the mean with that
        value removed, or with the largest one added. A batch that is empty, or may become so, has any clipped mean.
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
            radius = radius * chosen(cast("Columns", self.columns), shape.numel()).to(radius)
            if not bool((radius > 0).any()):
                raise ArgumentError("columns", self.columns, accepted="some feature whose eps is above 0",
                                    hint="As it is, none may move: leave points out.")  # fmt: skip
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

    def project(
        self, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"]
    ) -> Float[Tensor, "batch *features"]:
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


def _count(name: str, value: object, least: int = 0) -> int:
    """An integer, numpy's too, as Python's."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        at_least = ">= 0" if least == 0 else f"of at least {least}"
        raise ArgumentError(name, repr(value), accepted=f"an integer {at_least}", hint="Count samples per batch.")
    return int(value)


def _class(value: object) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ArgumentError("target", repr(value), accepted="a class, as an integer", hint="None for any class.")
    return int(value)


def _plain(eps: object) -> float | tuple[float, ...]:
    try:
        kind = torch.as_tensor(eps)
        found = kind if isinstance(eps, Tensor) else torch.as_tensor(eps, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):  # whatever torch says of things that are no numbers
        kind = found = torch.tensor(math.nan)
    values = [] if kind.dtype == torch.bool or kind.is_complex() else found.double().flatten().tolist()
    if not values or not all(math.isfinite(v) and v >= 0 for v in values):
        raise ArgumentError(
            "eps", repr(eps), accepted="a finite number >= 0, or one per feature", hint="In the units of the features."
        )
    return tuple(values) if found.dim() else values[0]


def _number(value: object) -> float:
    """NaN for what is no number."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def _range(clip: object) -> tuple[float, float]:
    ends = [_number(v) for v in clip] if isinstance(clip, Iterable) and not isinstance(clip, str) else []
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise ArgumentError("clip", repr(clip), accepted="a pair (low, high), low < high", hint="Or None.")
    return ends[0], ends[1]


def _label_radius(value: object) -> float:
    radius = _number(value)
    if not (math.isfinite(radius) and radius >= 0):
        raise ArgumentError(
            "label_radius", repr(value), accepted="a finite number >= 0, or None", hint="In units of labels."
        )
    return radius
