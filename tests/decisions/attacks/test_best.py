"""Of the points offered, each sample keeps its best: success first, then the objective."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robust_plugins.decisions.attacks.best import Best
from robust_plugins.decisions.attacks.objectives import Loss, objective


def keeper(x: Tensor, y: Tensor, *, targeted: bool, loss: Loss = "cross_entropy") -> Best:
    return Best(x, y, objective(loss, y.long(), targeted=targeted), targeted=targeted)


def offer(best: Best, points: list[float], margins: list[float]) -> list[bool]:
    """Offers one point per sample; the logits are (margin, 0), so class 0 loses where the margin is below zero."""
    z = torch.tensor(margins)
    return best.offer(torch.tensor(points).unsqueeze(1), torch.stack([z, torch.zeros_like(z)], 1)).tolist()


def kept(best: Best) -> list[float]:
    x: Tensor = best.x
    return x.squeeze(1).tolist()


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_a_success_is_not_given_up_for_a_failure_nor_for_a_smaller_loss(loss: Loss) -> None:
    best = keeper(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), targeted=False, loss=loss)
    assert offer(best, [1.0, 1.0, 1.0], [0.1, -3.0, 2.0]) == [True, True, True]
    assert offer(best, [2.0, 2.0, 2.0], [-1.0, -2.0, 1.0]) == [True, False, True]
    assert offer(best, [3.0, 3.0, 3.0], [2.0, 0.5, 1.5]) == [False, False, False]
    assert kept(best) == [2.0, 1.0, 2.0]
    assert best.success.tolist() == [True, True, False]


def test_targeted_keeps_the_smallest_loss_of_the_target() -> None:
    best = keeper(torch.zeros(2, 1), torch.ones(2, dtype=torch.int32), targeted=True)
    offer(best, [1.0, 1.0], [3.0, -1.0])
    offer(best, [2.0, 2.0], [1.0, -2.0])
    offer(best, [3.0, 3.0], [2.0, 1.0])
    assert kept(best) == [2.0, 2.0]


def test_nan_is_never_kept() -> None:
    best = keeper(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), targeted=False)
    offer(best, [1.0, 1.0], [torch.nan, -1.0])
    offer(best, [2.0, 2.0], [torch.nan, torch.nan])
    assert kept(best) == [0.0, 1.0]


def test_saturated_logits_are_told_apart_by_the_margin_alone() -> None:
    y = torch.zeros(1, dtype=torch.long)
    best = keeper(torch.zeros(1, 1), y, targeted=False, loss="margin")
    offer(best, [1.0], [500.0])
    offer(best, [2.0], [600.0])  # both have a cross-entropy of exactly 0 in float32
    assert kept(best) == [1.0]
