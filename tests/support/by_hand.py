"""Small networks, and interval bounds and losses written out by hand, independently of the package."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust_plugins as rp

BALL = rp.Linf(eps=0.1, clip=(0, 1))


def network(outputs: int = 4, *, seed: int = 0, normalise: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(8)] if normalise else []
    return nn.Sequential(nn.Linear(5, 8), *middle, nn.ReLU(), nn.Linear(8, outputs)).double()


def samples(classes: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(6, 5, dtype=torch.float64), torch.randint(classes, (6,))


def fixed() -> rp.Ramp:
    """Full strength from the start, on purpose."""
    return rp.Ramp(start=0, end=0)


def mixed_ibp(**parameters: object) -> rp.MixedLoss:
    """Half the clean loss, half that of interval bounds, at full strength."""
    return rp.MixedLoss(**({"worst": "interval:ibp", "gamma": 0.5, "ball": BALL, "schedule": fixed()} | parameters))


def adversarial(name: str, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, seed: int = 7) -> Tensor:
    """The example that a loss finds when torch is seeded with `seed` before the call."""
    torch.manual_seed(seed)
    return rp.attack(name).search(model, x, y, ball, seed=int(torch.randint(2**31, ())))


def hand_ibp(model: nn.Sequential, low: Tensor, up: Tensor, y: Tensor) -> Tensor:
    """Lower bounds of all margins z_y - z_j, 0 for j = y, the last layer elided."""
    first, last = model[0], model[-1]
    center, radius = (low + up) / 2, (up - low) / 2
    middle, spread = F.linear(center, first.weight, first.bias), F.linear(radius, first.weight.abs())
    low, up = (middle - spread).relu(), (middle + spread).relu()
    rows = last.weight[y].unsqueeze(1) - last.weight
    shift = last.bias[y].unsqueeze(1) - last.bias
    least = torch.where(rows > 0, rows * low.unsqueeze(1), rows * up.unsqueeze(1))
    return least.sum(2) + shift


def hand_crown_ibp(model: nn.Sequential, low: Tensor, up: Tensor, y: Tensor) -> Tensor:
    """Lower bounds of all margins by one backward substitution: the adaptive lower slope, the chord above."""
    first, last = model[0], model[-1]
    center, radius = (low + up) / 2, (up - low) / 2
    middle, spread = F.linear(center, first.weight, first.bias), F.linear(radius, first.weight.abs())
    l, u = middle - spread, middle + spread  # noqa: E741
    open_, closed = l >= 0, u <= 0
    chord = torch.where(open_, 1.0, torch.where(closed, 0.0, u / (u - l)))
    intercept = torch.where(open_ | closed, 0.0, -u * l / (u - l))
    slope = torch.where(open_, 1.0, torch.where(closed, 0.0, (u > -l).to(l)))
    rows = last.weight[y].unsqueeze(1) - last.weight
    shift = last.bias[y].unsqueeze(1) - last.bias
    through = torch.where(rows > 0, rows * slope.unsqueeze(1), rows * chord.unsqueeze(1))
    constant = (rows.clamp(max=0) * intercept.unsqueeze(1)).sum(2) + shift
    weights = through @ first.weight
    constant = constant + through @ first.bias
    return (weights * center.unsqueeze(1)).sum(2) - (weights.abs() * radius.unsqueeze(1)).sum(2) + constant


MIXED = [("interval:ibp", 0.5), ("interval:ibp", 0.0), ("art:fgsm", 0.5)]
"""Worst cases and weights that are trained with by one process and by two."""


def trained(x: Tensor, y: Tensor, worst: str, gamma: float, wrap: Callable[[nn.Module], nn.Module]) -> list[Tensor]:
    """The parameters after four steps of the mixed loss on the model that `wrap` makes."""
    inner = network()
    model = wrap(inner)
    loss = rp.MixedLoss(worst=worst, gamma=gamma, ball=rp.Linf(eps=0.1, clip=(0, 1)), schedule=fixed())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(4):
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()
    return [p.detach() for p in inner.parameters()]
