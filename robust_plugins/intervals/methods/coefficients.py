"""Coefficients of linear bounds on their way back through a network, and the sums of the numbers that they leave."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robust_plugins.intervals import rounding

Coefficients = tuple[Tensor | None, Tensor | None]
"""Coefficients of a lower and an upper bound, (batch or 1, rows, *shape); None where one is not wanted."""


class Substituted(NamedTuple):
    """A combination of a node's output after the node was replaced by bounds on it."""

    lower: Tensor | None
    """The part of the lower bound that no input carries: a number for each row, (batch, rows)."""
    upper: Tensor | None
    inputs: list[Coefficients]
    """The coefficients of the node's inputs; empty where the node is bounded by its values alone."""


def joined(one: Coefficients, two: Coefficients) -> Coefficients:
    """The coefficients of two ways to one node together."""
    (a, b), (c, d) = one, two
    low = None if a is None or c is None else a + c
    if b is None or d is None:
        return low, None
    return low, low if a is b and c is d else b + d


def each(one: Tensor | tuple[Tensor, ...], two: Tensor | tuple[Tensor, ...]) -> list[Tensor | None]:
    """The sum of two ways through a layer, for each of its inputs."""
    several, more = (t if isinstance(t, tuple) else (t,) for t in (one, two))
    return [a + b for a, b in zip(several, more, strict=True)]


def parts(a: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what is above zero, and what is below."""
    return a.clamp(min=0), a.clamp(max=0)


def lower_sum(one: Tensor, two: Tensor, terms: int = 0) -> Tensor:
    """`one + two`; with outward rounding no more, less what products of so many terms may lose to underflow."""
    return rounding.lessened(one + two, _lost(terms, one.dtype)) if rounding.active() else one + two


def upper_sum(one: Tensor, two: Tensor, terms: int = 0) -> Tensor:
    """`one + two`; with outward rounding no less than that, as `lower_sum` no more."""
    return rounding.increased(one + two, _lost(terms, one.dtype)) if rounding.active() else one + two


def _lost(terms: int, dtype: torch.dtype) -> float:
    return rounding.underflow(2 * terms, dtype)
