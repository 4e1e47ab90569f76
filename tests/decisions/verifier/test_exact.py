"""`milp:exact` and branch and bound agree on random networks around the critical radius."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from support.length import length
from torch import nn

import robust_plugins as rp

pytest.importorskip("scipy")


def drawn(seed: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.rand(1, 4)
    return model, x, model(x).argmax(1)


def varied(seed: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Networks of four kinds: two hidden layers or three, leaky units, and a convolution under a maximum."""
    torch.manual_seed(seed)
    sizes = {0: (4, 7, 6, 3), 1: (3, 6, 6, 6, 4), 2: (5, 8, 6, 3)}.get(seed % 4, ())
    layers = [
        layer
        for inputs, outputs in pairwise(sizes)
        for layer in (nn.Linear(inputs, outputs), nn.LeakyReLU(0.1) if seed % 4 == 2 else nn.ReLU())
    ]
    convolution = (nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(2, 6), nn.ReLU())
    model = nn.Sequential(*layers[:-1]) if layers else nn.Sequential(*convolution, nn.Linear(6, 3))
    x = torch.rand(1, sizes[0]) if layers else torch.rand(1, 1, 3, 3)
    with torch.no_grad():  # else few decisions change within the clip range
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model.eval(), x, model(x).argmax(1)


def agreement(seed: int) -> list[tuple[float, list[rp.Verdict]]]:
    """The verdicts of both at factors of the critical radius; none where no input of the range is misclassified."""
    model, x, y = varied(seed)
    ball = rp.Linf(eps=1.0 if seed % 8 > 3 else 3.0, clip=(0.0, 1.0) if seed % 8 > 3 else None)
    broken, certified = rp.critical_radius("milp:exact", model, x, y, ball, tolerance=1e-4, calls=60)
    if broken.isinf():
        return []
    assert certified > 0.97 * broken  # near it, HiGHS decides no margin below its tolerance
    found = []
    for factor, end in ((0.9, certified), (1 - 1e-3, certified), (1 + 1e-3, broken), (1.1, broken)):
        there = replace(ball, eps=factor * end.item())
        found.append((factor, [rp.certifier(name)(model, x, y, there).verdicts[0] for name in ("milp:exact", NAME)]))
    return found


def disagreements(networks: int) -> list[object]:
    """Where a verdict is not the one that it must be, on so many networks that have a critical radius."""
    wrong: list[object] = []
    seed, seen = 0, 0
    while seen < networks:
        found = agreement(seed)
        for factor, verdicts in found:
            expected = rp.Verdict.CERTIFIED if factor < 1 else rp.Verdict.FALSIFIED
            if verdicts != [expected, expected]:
                wrong.append((seed, factor, verdicts))
        seed, seen = seed + 1, seen + bool(found)
    return wrong


NAME = "interval:branch-and-bound(clock='cpu')"  # on a busy machine a minute is not a minute's work


def test_units_that_are_hardly_ever_positive() -> None:
    """With bounds rounded outward such a unit may reach 1e-308, and its chord no more than that."""
    torch.manual_seed(15)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(2, 6), nn.ReLU(),
                          nn.Linear(6, 3)).eval()  # fmt: skip
    x = torch.rand(1, 1, 3, 3)
    y, ball = model(x).argmax(1), rp.Linf(eps=0.25, clip=(0.0, 1.0))
    found = rp.certifier("milp:exact")(model, x, y, ball)
    logits = model(ball.sample(x, 5000, torch.Generator().manual_seed(0), draw="corner")[:, 0])
    others = logits.scatter(1, y.expand(len(logits), 1), -torch.inf).amax(1)
    least = (logits[:, y.item()] - others).min().item()
    assert found.verdicts[0] is rp.Verdict.FALSIFIED
    assert least - 0.1 <= found.margin.item() <= least + 1e-5


def test_both_agree() -> None:
    assert disagreements(2) == []


@pytest.mark.slow
def test_both_agree_on_many_networks() -> None:
    assert disagreements(length(12, 200)) == []


def test_the_margin_is_the_least_one() -> None:
    model, x, y = drawn(0)
    ball = rp.Linf(eps=0.3, clip=None)
    margin = rp.certifier("milp:exact")(model, x, y, ball).margin.item()
    points = ball.sample(x, 20000, torch.Generator().manual_seed(0))[:, 0]
    logits = model(points)
    others = logits.scatter(1, y.expand(len(points), 1), -torch.inf).amax(1)
    least = (logits[:, y.item()] - others).min().item()
    assert least - 0.1 <= margin <= least + 1e-5
