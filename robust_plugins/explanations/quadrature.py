"""Quadrature of an integral over [0, 1] by a weighted sum, as Captum's integrated gradients have it."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from robust_plugins.errors import ArgumentError

Method = Literal["gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]


def quadrature(method: Method, n_steps: int) -> tuple[list[float], list[float]]:
    """The points in [0, 1] and their weights, `n_steps` of each, none negative.

    The trapezoid's weights are Captum's, which add up to `1 - 1 / n_steps`. Raises ArgumentError for another method and
    for fewer than one step (two for the trapezoid).
    """
    if method not in get_args(Method):
        raise ArgumentError(
            "method", repr(method), accepted=", ".join(map(repr, get_args(Method))), hint="Choose one of them."
        )
    least = 2 if method == "riemann_trapezoid" else 1
    if not isinstance(n_steps, int) or n_steps < least:
        raise ArgumentError(
            "n_steps", repr(n_steps), accepted=f"an integer of at least {least}", hint="50 is Captum's default."
        )
    if method == "gausslegendre":
        points, weights = np.polynomial.legendre.leggauss(n_steps)
        return ((1 + points) / 2).tolist(), (weights / 2).tolist()
    step = 1 / n_steps
    even = [step] * n_steps
    if method == "riemann_trapezoid":
        return np.linspace(0, 1, n_steps).tolist(), [step / 2, *even[2:], step / 2]
    shift = {"riemann_left": 0.0, "riemann_right": 1.0, "riemann_middle": 0.5}[method]
    return [(k + shift) * step for k in range(n_steps)], even
