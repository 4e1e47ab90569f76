"""The worst case of a linear model, by linear programming and bisection in numpy: nothing of the package's own."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linprog

Clip = tuple[float, float] | None


def largest_rise(weights: np.ndarray, x: np.ndarray, norm: float, eps: float, clip: Clip) -> float:
    """The largest `weights @ d` over steps d of length `eps` in the norm with `x + d` inside `clip`."""
    low, high = (-np.inf, np.inf) if clip is None else clip
    room = np.where(weights > 0, high - x, x - low)
    slope = np.abs(weights)
    if norm == np.inf:
        return float((slope * np.minimum(room, eps)).sum())
    if norm == 1:
        bounds = [(0.0, None if np.isinf(r) else r) for r in room]
        return float(-linprog(-slope, A_ub=np.ones((1, len(x))), b_ub=[eps], bounds=bounds).fun)
    if np.linalg.norm(np.where(slope > 0, room, 0.0)) <= eps:
        return float((slope * np.where(slope > 0, room, 0.0)).sum())
    below, above = 0.0, 1.0
    while np.linalg.norm(np.minimum(above * slope, room)) < eps:
        above *= 2
    for _ in range(200):
        middle = (below + above) / 2
        longer = np.linalg.norm(np.minimum(middle * slope, room)) > eps
        below, above = (below, middle) if longer else (middle, above)
    return float((slope * np.minimum(below * slope, room)).sum())


def worst_margins(
    weight: np.ndarray, bias: np.ndarray, x: np.ndarray, y: np.ndarray, norm: float, eps: np.ndarray, clip: Clip
) -> np.ndarray:
    """The largest margin `max_j z_j - z_y` of each flattened sample over its ball."""
    found = []
    for sample, label, radius in zip(x, y, eps, strict=True):
        reached = []
        for other in range(len(weight)):
            if other != label:
                direction = weight[other] - weight[label]
                offset = direction @ sample + bias[other] - bias[label]
                reached.append(offset + largest_rise(direction, sample, norm, radius, clip))
        found.append(max(reached))
    return np.array(found)
