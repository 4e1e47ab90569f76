"""Concretely poisoned batches, and whether they are inside a budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from robust_plugins.poisoning.budget import PoisoningBudget


@dataclass(frozen=True, eq=False)
class PoisonedBatch:
    """One batch as each of several poisoners made it."""

    x: Shaped[Tensor, "trainings samples *features"]
    y: Shaped[Tensor, "trainings samples *labels"]
    present: Bool[Tensor, "trainings samples"]
    """False where there is no sample: batches with samples added or removed differ in length."""

    def of(self, training: int) -> tuple[Tensor, Tensor]:
        """The batch `(x, y)` of that training."""
        here = self.present[training]
        return self.x[training][here], self.y[training][here]


def inside(
    budget: PoisoningBudget, clean: tuple[Tensor, Tensor], poisoned: tuple[Tensor, Tensor], *, tolerance: float = 1e-9
) -> bool:
    """Whether the poisoner may turn the batch `clean`, (x, y), into `poisoned`.

    Samples keep their order; replaced ones keep their places, added ones come anywhere. `tolerance` is relative to the
    radii, for the rounding of `x' - x`.
    """
    (x, y), (x_poisoned, y_poisoned) = clean, poisoned
    if budget.change in ("addition", "removal"):
        longer, shorter = (poisoned, clean) if budget.change == "addition" else (clean, poisoned)
        return 0 <= len(longer[0]) - len(shorter[0]) <= budget.k and _subsequence(_rows(*shorter), _rows(*longer))
    if len(x) != len(x_poisoned):
        return False
    moved = (x_poisoned != x).flatten(1).any(1)
    changed = (y_poisoned != y).flatten(1).any(1) if y.dim() > 1 else y_poisoned != y
    if budget.change == "substitution":
        return int((moved | changed).sum()) <= budget.k
    most = max(budget.points, budget.labels) if budget.paired else budget.points + budget.labels
    return (
        int(moved.sum()) <= budget.points
        and int(changed.sum()) <= budget.labels
        and int((moved | changed).sum()) <= most
        and bool(_reachable(budget, x[moved], x_poisoned[moved], tolerance).all())
        and bool(_allowed(budget, y[changed], y_poisoned[changed], tolerance).all())
    )


def _reachable(budget: PoisoningBudget, x: Tensor, moved: Tensor, tolerance: float) -> Tensor:
    radius = budget.radius(x)
    step = ((moved - x) / torch.where(radius > 0, radius, 1)).flatten(1)
    fixed = torch.where(radius > 0, 0, (moved - x).abs()).flatten(1)
    size = torch.linalg.vector_norm(step, {"linf": torch.inf, "l2": 2, "l1": 1}[budget.norm], dim=1)
    box = budget.box(x)
    slack = tolerance * radius
    within = ((moved >= box.lower - slack) & (moved <= box.upper + slack)).flatten(1).all(1)
    return torch.stack([size <= 1 + tolerance, (fixed == 0).all(1), within]).all(0)


def _allowed(budget: PoisoningBudget, y: Tensor, changed: Tensor, tolerance: float) -> Tensor:
    if budget.label_radius is not None:
        return (changed - y).abs().flatten(1).amax(1) <= budget.label_radius * (1 + tolerance)
    return torch.ones_like(changed, dtype=torch.bool) if budget.target is None else changed == budget.target


def _rows(x: Tensor, y: Tensor) -> list[tuple[object, object]]:
    return list(zip(map(tuple, x.flatten(1).tolist()), map(str, y.tolist()), strict=True))


def _subsequence(short: list[tuple[object, object]], long: list[tuple[object, object]]) -> bool:
    rest = iter(long)
    return all(any(row == other for other in rest) for row in short)
