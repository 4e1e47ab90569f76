"""`Interval`: a pair of tensors `lower <= upper`, the abstract value of every bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robust_plugins.errors import ArgumentError


@dataclass(frozen=True, eq=False)
class Interval:
    """All tensors `t` with `lower <= t <= upper`, elementwise.

    `lower` and `upper` share shape, dtype and device, which is checked here. `lower <= upper` costs a
    synchronisation on accelerators and is checked by `ordered`, at the places where a bound leaves the package.
    Arithmetic is that of real numbers, evaluated in the tensors' dtype without outward rounding.
    """

    lower: Float[Tensor, "*shape"]
    upper: Float[Tensor, "*shape"]

    def __post_init__(self) -> None:
        low, up = self.lower, self.upper
        if low.shape != up.shape or low.dtype != up.dtype or low.device != up.device:
            raise ArgumentError(
                "upper",
                f"{tuple(up.shape)} {up.dtype} on {up.device}",
                accepted=f"lower's shape, dtype and device: {tuple(low.shape)} {low.dtype} on {low.device}",
                hint="Broadcast or convert both ends before building the Interval.",
            )

    @classmethod
    def point(cls, value: Float[Tensor, "*shape"]) -> Interval:
        """The interval that holds `value` alone."""
        return cls(value, value)

    @property
    def shape(self) -> torch.Size:
        """The shape of both ends."""
        return self.lower.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of both ends."""
        return self.lower.dtype

    @property
    def device(self) -> torch.device:
        """The device of both ends."""
        return self.lower.device

    @property
    def width(self) -> Float[Tensor, "*shape"]:
        """`upper - lower`."""
        return self.upper - self.lower

    @property
    def center(self) -> Float[Tensor, "*shape"]:
        """The midpoint."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Float[Tensor, "*shape"]:
        """Half the width."""
        return (self.upper - self.lower) / 2

    def ordered(self, *, tolerance: float = 0.0) -> Bool[Tensor, "*shape"]:
        """Where `lower <= upper + tolerance` holds. False where an end is NaN."""
        return self.lower <= self.upper + tolerance

    def contains(self, value: Float[Tensor, "..."], *, tolerance: float = 0.0) -> Bool[Tensor, "..."]:
        """Elementwise: where `lower - tolerance <= value <= upper + tolerance`. `value` broadcasts; NaN is outside."""
        return (value >= self.lower - tolerance) & (value <= self.upper + tolerance)

    def meet(self, other: Interval) -> Interval:
        """The intersection. Sound when both hold the same quantity; `ordered` tells where they are disjoint."""
        return Interval(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))

    def hull(self, other: Interval) -> Interval:
        """The smallest interval that holds both."""
        return Interval(torch.minimum(self.lower, other.lower), torch.maximum(self.upper, other.upper))

    def detach(self) -> Interval:
        """The same bounds without their autograd history."""
        return Interval(self.lower.detach(), self.upper.detach())

    def to(self, *args: Any, **kwargs: Any) -> Interval:
        """Both ends through `torch.Tensor.to`. A narrower dtype rounds to nearest, which may cut the set by an ulp."""
        return Interval(self.lower.to(*args, **kwargs), self.upper.to(*args, **kwargs))

    def __getitem__(self, index: Any) -> Interval:
        return Interval(self.lower[index], self.upper[index])

    def __len__(self) -> int:
        return len(self.lower)

    def __neg__(self) -> Interval:
        return Interval(-self.upper, -self.lower)

    def __add__(self, other: Interval | Tensor | float) -> Interval:
        if isinstance(other, Interval):
            return Interval(self.lower + other.lower, self.upper + other.upper)
        return Interval(self.lower + other, self.upper + other)

    __radd__ = __add__

    def __sub__(self, other: Interval | Tensor | float) -> Interval:
        return self + (-other)

    def __rsub__(self, other: Tensor | float) -> Interval:
        return -self + other
