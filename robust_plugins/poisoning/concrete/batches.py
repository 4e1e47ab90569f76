"""Concretely poisoned batches, and whether they are inside a budget."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from robust_plugins.poisoning.budget import PoisoningBudget

TOLERANCE = 1e-6
"""The part of a radius by which rounding may carry a poisoned sample out of its set."""


@dataclass(frozen=True, eq=False)
class PoisonedBatch:
    """One batch as each of several poisoners made it.

    - `x`: inputs, of every training.
    - `y`: labels, of every training.
    - `present`: false where there is no sample: batches with samples added or removed differ in length.

    Samples keep their places: entry i of every training is sample i of the clean batch, moved, relabelled, replaced or
    not `present`. Added samples come after all of these.
    """

    x: Shaped[Tensor, "trainings samples *features"]
    y: Shaped[Tensor, "trainings samples *labels"]
    present: Bool[Tensor, "trainings samples"]

    @classmethod
    def whole(cls, x: Shaped[Tensor, "samples *features"], y: Shaped[Tensor, "samples *labels"]) -> PoisonedBatch:
        """The clean batch, for one training."""
        return cls(x.unsqueeze(0), y.unsqueeze(0), torch.ones((1, len(x)), dtype=torch.bool, device=x.device))

    def of(self, training: int) -> tuple[Tensor, Tensor]:
        """The batch `(x, y)` of that training."""
        here = self.present[training]
        return self.x[training][here], self.y[training][here]


def violation(
    budget: PoisoningBudget,
    x: Shaped[Tensor, "samples *features"],
    y: Shaped[Tensor, "samples *labels"],
    batch: PoisonedBatch,
) -> str | None:
    """Says what the budget does not allow of the batches made of `x` and `y`; None where all are inside."""
    if batch.x.shape[2:] != x.shape[1:] or batch.y.shape[2:] != y.shape[1:]:
        shapes = tuple(batch.x.shape[2:]), tuple(batch.y.shape[2:])
        return f"samples and labels of shapes {shapes} for {tuple(x.shape[1:])} and {tuple(y.shape[1:])}"
    n, k = len(x), budget.k
    most = n + k if budget.change == "addition" else n
    if not n <= batch.x.shape[1] <= most:
        return f"{batch.x.shape[1]} places for a batch of {n} samples, at most {most} are allowed"
    own, added = batch.present[:, :n], batch.present[:, n:]
    removed = (~own).sum(1)
    if bool((removed > (k if budget.change == "removal" else 0)).any()):
        return f"{int(removed.max())} samples removed, {k if budget.change == 'removal' else 0} are allowed"
    if not bool(batch.x[:, n:][added].isfinite().all()) or not bool(batch.x[:, :n][own].isfinite().all()):
        return "features that are not finite"
    moved, changed = _differing(batch.x[:, :n], x) & own, _differing(batch.y[:, :n], y) & own
    if budget.change == "substitution":
        return _more("samples replaced", moved | changed, k)
    limits = (0, 0, 0) if budget.change != "none" else (
        budget.points, budget.labels,
        max(budget.points, budget.labels) if budget.paired else budget.points + budget.labels,
    )  # fmt: skip
    counted = (
        _more("samples moved", moved, limits[0])
        or _more("labels changed", changed, limits[1])
        or _more("samples changed in all", moved | changed, limits[2])
    )
    if counted is not None or budget.change != "none":
        return counted
    clean_x, clean_y = x.expand(len(batch.x), *x.shape)[moved], y.expand(len(batch.y), *y.shape)[changed]
    return _far(budget, clean_x, batch.x[moved]) or _relabelled(budget, clean_y, batch.y[changed])


def rounded_inside(
    budget: PoisoningBudget, x: Shaped[Tensor, "samples *features"], batch: PoisonedBatch
) -> PoisonedBatch:
    """The same batches, with moved samples that rounding carried out of their sets projected back onto these."""
    if not budget.points or not len(x):
        return batch
    box = budget.box(x)
    out = ((batch.x < box.lower) | (batch.x > box.upper)).flatten(2).any(2)
    if not bool(out.any()):
        return batch
    z = batch.x.clone()
    z[out] = budget.project(z[out], x.expand(len(z), *x.shape)[out])
    return replace(batch, x=z)


def inside(budget: PoisoningBudget, clean: tuple[Tensor, Tensor], poisoned: tuple[Tensor, Tensor]) -> bool:
    """Whether the poisoner may turn the batch `clean`, (x, y), into `poisoned`.

    Samples keep their order; replaced ones keep their places, added ones come anywhere.
    """
    if budget.change in ("addition", "removal"):
        longer, shorter = (poisoned, clean) if budget.change == "addition" else (clean, poisoned)
        return 0 <= len(longer[0]) - len(shorter[0]) <= budget.k and _subsequence(_rows(*shorter), _rows(*longer))
    return violation(budget, *clean, PoisonedBatch.whole(*poisoned)) is None


def _differing(
    poisoned: Shaped[Tensor, "trainings samples *rest"], clean: Shaped[Tensor, "samples *rest"]
) -> Bool[Tensor, "trainings samples"]:
    differs = poisoned != clean
    return differs.flatten(2).any(2) if differs.dim() > 2 else differs


def _more(what: str, where: Bool[Tensor, "trainings samples"], allowed: int) -> str | None:
    most = int(where.sum(1).max()) if where.numel() else 0
    return f"{most} {what}, {allowed} are allowed" if most > allowed else None


def _far(
    budget: PoisoningBudget, x: Float[Tensor, "moved *features"], z: Float[Tensor, "moved *features"]
) -> str | None:
    """How moved samples leave their sets."""
    if not len(x):
        return None
    radius, box = budget.radius(x), budget.box(x)
    rounding = 4 * torch.finfo(x.dtype).eps * torch.maximum(x.abs(), z.abs())
    slack = torch.where(radius > 0, TOLERANCE * radius + rounding, 0.0)
    out = torch.maximum(box.lower - z, z - box.upper)
    if bool((out > slack).any()):
        fixed = " in a feature that may not move" if bool((out[radius.expand_as(out) == 0] > 0).any()) else ""
        return f"features {out.max().item():.3g} outside their range{fixed}"
    if budget.norm == "linf":
        return None
    step = ((z - x).abs() - rounding).clamp(min=0) / torch.where(radius > 0, radius, 1.0)
    size = torch.linalg.vector_norm(step.flatten(1), {"l2": 2, "l1": 1}[budget.norm], dim=1).max().item()
    return f"features moved by {size:.9g} of the radius in {budget.norm}" if size > 1 + TOLERANCE else None


def _relabelled(
    budget: PoisoningBudget, y: Shaped[Tensor, "changed *labels"], z: Shaped[Tensor, "changed *labels"]
) -> str | None:
    """How changed labels break their limits."""
    if not len(y):
        return None
    if budget.label_radius is None:
        fine = budget.target is None or bool((z == budget.target).all())
        return None if fine else f"labels changed to another class than {budget.target}"
    eps = torch.finfo(z.dtype).eps if z.is_floating_point() else 0.0
    most = (z.double() - y.double()).abs() - 4 * eps * z.double().abs()
    if bool((most <= budget.label_radius * (1 + TOLERANCE)).all()):
        return None
    return f"labels moved by {most.max().item():.9g}, {budget.label_radius} is allowed"


def _rows(x: Tensor, y: Tensor) -> list[tuple[object, object]]:
    return list(zip(map(tuple, x.flatten(1).tolist()), map(str, y.tolist()), strict=True))


def _subsequence(short: list[tuple[object, object]], long: list[tuple[object, object]]) -> bool:
    rest = iter(long)
    return all(any(row == other for other in rest) for row in short)
