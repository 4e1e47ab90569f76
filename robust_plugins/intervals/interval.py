"""`Interval`: a pair of tensors `lower <= upper`, the abstract value of every bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import rounding


@dataclass(frozen=True, eq=False)
class Interval:
    """All tensors `t` with `lower <= t <= upper`, elementwise.

    `lower` and `upper` share shape, dtype and device, which is checked here. `lower <= upper` costs a
    synchronisation on accelerators and is checked by `ordered`, at the places where a bound leaves the package.
    Arithmetic is that of real numbers, evaluated in the tensors' dtype; inside `rounding.outward()` it is rounded
    outward. A point keeps one tensor for both ends, so that products can tell it at no cost.
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
    def is_point(self) -> bool:
        """Whether both ends are one tensor, known by construction; equal values in two tensors do not count."""
        return self.upper is self.lower

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

    def sharpened(self, other: Interval) -> Interval:
        """`meet` for two enclosures of one quantity, whose ends may cross by a rounding error: the ends are sorted."""
        met = self.meet(other)
        return Interval(torch.minimum(met.lower, met.upper), torch.maximum(met.lower, met.upper))

    def hull(self, other: Interval) -> Interval:
        """The smallest interval that holds both."""
        return Interval(torch.minimum(self.lower, other.lower), torch.maximum(self.upper, other.upper))

    def map(self, increasing: Callable[[Tensor], Tensor]) -> Interval:
        """The image under a function that is non-decreasing in every entry, such as a rearrangement."""
        low = increasing(self.lower)
        return Interval(low, low if self.is_point else increasing(self.upper))

    @property
    def magnitude(self) -> Float[Tensor, "*shape"]:
        """The largest absolute value of each entry."""
        return self.lower.abs() if self.is_point else torch.maximum(self.lower.abs(), self.upper.abs())

    def detach(self) -> Interval:
        """The same bounds without their autograd history."""
        return Interval(self.lower.detach(), self.upper.detach())

    def to(self, *args: Any, **kwargs: Any) -> Interval:
        """Both ends through `torch.Tensor.to`. A narrower dtype rounds to nearest, which may cut the set by an ulp."""
        return Interval(self.lower.to(*args, **kwargs), self.upper.to(*args, **kwargs))

    def __getitem__(self, index: Any) -> Interval:
        return self.map(lambda t: t[index])

    def __len__(self) -> int:
        return len(self.lower)

    def __neg__(self) -> Interval:
        upper = -self.lower
        return Interval(upper if self.is_point else -self.upper, upper)

    def __add__(self, other: Interval | Tensor | float) -> Interval:
        if isinstance(other, Interval):
            low = self.lower + other.lower
            up = low if self.is_point and other.is_point else self.upper + other.upper
        else:
            low = self.lower + other
            up = low if self.is_point else self.upper + other
        return Interval(*rounding.widened(low, up))

    __radd__ = __add__

    def __sub__(self, other: Interval | Tensor | float) -> Interval:
        return self + (-other)

    def __rsub__(self, other: Tensor | float) -> Interval:
        return -self + other

    def __mul__(self, other: Interval | Tensor | float) -> Interval:
        """The elementwise product, exact: the extreme ones of the products of the ends."""
        if not isinstance(other, Interval):
            other = Interval.point(torch.as_tensor(other, dtype=self.dtype, device=self.device))
        if self.is_point and other.is_point:
            low = up = self.lower * other.lower
        elif self.is_point or other.is_point:
            point, wide = (self.lower, other) if self.is_point else (other.lower, self)
            one, two = point * wide.lower, point * wide.upper
            low, up = torch.minimum(one, two), torch.maximum(one, two)
        else:
            a, b = self.lower * other.lower, self.lower * other.upper
            c, d = self.upper * other.lower, self.upper * other.upper
            low = torch.minimum(torch.minimum(a, b), torch.minimum(c, d))
            up = torch.maximum(torch.maximum(a, b), torch.maximum(c, d))
        return Interval(*rounding.widened(low, up))

    __rmul__ = __mul__
