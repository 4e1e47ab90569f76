"""`combined`: the best combination of lines in each box, which excludes the box where it is positive."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_plugins.decisions.verifier.boxes import Boxes, applied


def least_of(a: Tensor, b: Tensor, boxes: Boxes) -> Tensor:
    """The least value of each line in its box, (boxes, lines)."""
    return b + applied(a, boxes.centre) - applied(a.abs(), boxes.radius)


def lowest_corner(a: Tensor, boxes: Boxes) -> Tensor:
    """The corner of each box where one line of it is lowest."""
    return torch.where(a > 0, boxes.lower, boxes.upper)


def combined(a: Tensor, b: Tensor, boxes: Boxes, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """The least value of the best combination of lines that was found, its weights, and where all lines are low.

    Where it is positive not all lines can be below zero. Any weights >= 0 are sound; these ascend by multiplication, in
    units of what each line moves by in the box, and the mean of the points at which they are lowest tends to where
    their largest is least.
    """
    centre, radius = boxes.centre, boxes.radius
    middle = b + applied(a, centre)
    units = _units(a, b, radius)
    weights = torch.full_like(b, 1 / b.shape[1])
    best, kept, corner = torch.full_like(b[:, 0], -torch.inf), weights, torch.zeros_like(centre)
    for step in range(steps):
        scaled = weights * units
        line = applied(a.mT, scaled)
        value = certain(scaled, a, b, line, centre, radius)
        better = value > best
        best, kept = torch.where(better, value, best), torch.where(better.unsqueeze(1), scaled, kept)
        lowest = -line.sign() * radius
        corner = corner + (lowest - corner) * (2 / (step + 2))
        slope = ((middle + applied(a, lowest)) * units).clamp(-8, 8)
        weights = torch.softmax((weights + 1e-12).log() + 2 / (1 + 0.3 * step) * slope, 1)
    return best, kept, centre + corner


def _units(a: Tensor, b: Tensor, radius: Tensor) -> Tensor:
    """The factor that makes each line move by about 1 in its box."""
    return 1 / ((a.abs() * radius.unsqueeze(1)).sum(2) + 1e-12 * (1e-3 + b.abs()))


def programme(a: Tensor, b: Tensor, box: Boxes) -> tuple[Tensor, Tensor]:
    """The best combination of one box's lines, and where the largest of them is least, by HiGHS."""
    from scipy.optimize import linprog

    units = _units(a.unsqueeze(0), b.unsqueeze(0), box.radius)
    lines = (a * units[0].unsqueeze(1) * box.radius).numpy()
    matrix = torch.cat([torch.from_numpy(lines), -torch.ones(len(lines), 1, dtype=torch.float64)], 1).numpy()
    right = -((b + a @ box.centre[0]) * units[0]).numpy()
    n = a.shape[1]
    found = linprog([0.0] * n + [1.0], A_ub=matrix, b_ub=right, bounds=[(-1, 1)] * n + [(None, None)], method="highs")
    if found.status != 0:
        return torch.zeros_like(units), box.centre[0]
    weights = torch.tensor(-found.ineqlin.marginals).clamp(min=0).unsqueeze(0) * units
    return weights, box.centre[0] + box.radius[0] * torch.tensor(found.x[:n])


def certain(weights: Tensor, a: Tensor, b: Tensor, line: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """The least value of a combination of lines, less its own rounding."""
    value = (weights * b).sum(1) + (line * centre).sum(1) - (line.abs() * radius).sum(1)
    size = (weights * (b.abs() + applied(a.abs(), centre.abs() + radius))).sum(1)
    sums = 2 * (a.shape[1] + a.shape[2]) + 16  # over lines and inputs, whatever their order
    return value - 2.0**-52 * sums * size
