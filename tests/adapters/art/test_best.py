"""Of the points offered, each sample keeps its best: success first, then loss."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_plugins.adapters.art.best import Best


def offer(best: Best, points: list[float], margins: list[float]) -> None:
    """Offers one point per sample; the logits are (margin, 0), so class 0 loses where the margin is below zero."""
    z = torch.tensor(margins)
    best.offer(torch.tensor(points).unsqueeze(1), torch.stack([z, torch.zeros_like(z)], 1))


def kept(best: Best) -> list[float]:
    x: Tensor = best.x
    return x.squeeze(1).tolist()


def test_a_success_is_not_given_up_for_a_failure_nor_for_a_smaller_loss() -> None:
    best = Best(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), targeted=False)
    offer(best, [1.0, 1.0, 1.0], [0.1, -3.0, 2.0])
    offer(best, [2.0, 2.0, 2.0], [-1.0, -2.0, 1.0])
    offer(best, [3.0, 3.0, 3.0], [2.0, 0.5, 1.5])
    assert kept(best) == [2.0, 1.0, 2.0]


def test_targeted_keeps_the_smallest_loss_of_the_target() -> None:
    best = Best(torch.zeros(2, 1), torch.ones(2, dtype=torch.int32), targeted=True)
    offer(best, [1.0, 1.0], [3.0, -1.0])
    offer(best, [2.0, 2.0], [1.0, -2.0])
    offer(best, [3.0, 3.0], [2.0, 1.0])
    assert kept(best) == [2.0, 2.0]


def test_nan_is_never_kept() -> None:
    best = Best(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), targeted=False)
    offer(best, [1.0, 1.0], [torch.nan, -1.0])
    offer(best, [2.0, 2.0], [torch.nan, torch.nan])
    assert kept(best) == [0.0, 1.0]
