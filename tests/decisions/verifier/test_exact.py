"""`milp:exact` and branch and bound agree on random networks around the critical radius."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robust_plugins as rp

pytest.importorskip("scipy")


def drawn(seed: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.rand(1, 4)
    return model, x, model(x).argmax(1)


def critical(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """The radius at which the exact margin vanishes, to a tenth."""
    low, up = 0.0, 4.0
    while up - low > 0.1 * up and up > 1e-3:
        middle = (low + up) / 2
        proved = rp.certifier("milp:exact")(model, x, y, rp.Linf(eps=middle, clip=None)).certified.item()
        low, up = (middle, up) if proved else (low, middle)
    return up


def disagreements(seeds: range) -> list[object]:
    found: list[object] = []
    for seed in seeds:
        model, x, y = drawn(seed)
        radius = critical(model, x, y)
        for factor in (0.8, 0.95, 1.0, 1.1):
            ball = rp.Linf(eps=factor * radius, clip=None)
            verdicts = [rp.certifier(name)(model, x, y, ball).verdicts[0] for name in ("milp:exact", NAME)]
            if verdicts[0] is not verdicts[1] or verdicts[0] not in (rp.Verdict.CERTIFIED, rp.Verdict.FALSIFIED):
                found.append((seed, factor, verdicts))
    return found


NAME = "interval:branch-and-bound"


def test_both_agree() -> None:
    assert disagreements(range(2)) == []


@pytest.mark.slow
def test_both_agree_on_many() -> None:
    assert disagreements(range(2, 52)) == []


def test_the_margin_is_the_least_one() -> None:
    model, x, y = drawn(0)
    ball = rp.Linf(eps=0.3, clip=None)
    margin = rp.certifier("milp:exact")(model, x, y, ball).margin.item()
    points = ball.sample(x, 20000, torch.Generator().manual_seed(0))[:, 0]
    logits = model(points)
    others = logits.scatter(1, y.expand(len(points), 1), -torch.inf).amax(1)
    least = (logits[:, y.item()] - others).min().item()
    assert least - 0.1 <= margin <= least + 1e-5
