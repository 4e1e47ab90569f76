"""`Interval`: a pair of tensors `lower <= upper`, the abstract value of every bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    >>> a, b = rp.Interval(torch.tensor([2.0]), torch.tensor([4.0])), rp.Interval.point(torch.tensor([5.0]))
    >>> a * b
    Interval(lower=tensor([10.]), upper=tensor([20.]))
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
        if not low.dtype.is_floating_point:
            raise ArgumentError(
                "lower",
                f"of {low.dtype}",
                accepted="floating-point tensors, in which bounds can be computed",
                hint="Convert it, for example with .to(torch.float64).",
            )

    @classmethod
    def point(cls, value: Float[Tensor, "*shape"]) -> Interval:
        """The interval that holds `value` alone."""
        return cls(value, value)

    @classmethod
    def cat(cls, parts: Sequence[Interval], dim: int = 0) -> Interval:
        """The intervals joined along an axis; a point where all of them are points."""
        if not parts:
            raise ArgumentError("parts", "empty", accepted="one or more intervals", hint="Join at least one.")
        low = torch.cat([part.lower for part in parts], dim)
        return cls(low, low if all(p.is_point for p in parts) else torch.cat([part.upper for part in parts], dim))

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
        """`meet` for two enclosures of one quantity, whose ends may cross by a rounding error: the ends are sorted.

        Raises ArgumentError where they are further apart than rounding explains: then one of the two is none.
        """
        met = self.meet(other)
        with torch.no_grad():
            gap = met.lower - met.upper
            if not bool((gap > 0).any()):
                return met
            size = torch.maximum(self.magnitude, other.magnitude)
            scale = size.flatten(1).amax(1).view(-1, *[1] * (size.dim() - 1)) if size.dim() > 1 else size
            apart = (gap > ROUNDINGS * torch.finfo(gap.dtype).eps * scale).nonzero()
        if len(apart):
            at = tuple(apart[0].tolist())
            ends = [
                f"[{i.lower.expand(gap.shape)[at]:.6g}, {i.upper.expand(gap.shape)[at]:.6g}]" for i in (self, other)
            ]
            raise ArgumentError(
                "other",
                f"disjoint from the interval that it sharpens, {ends[1]} against {ends[0]} at {at}",
                accepted="an enclosure of the same quantity",
                hint="One of the two bounds is wrong.",
            )
        return Interval(torch.minimum(met.lower, met.upper), torch.maximum(met.lower, met.upper))

    def agreeing(self, other: Interval) -> Interval:
        """`meet` of two computed enclosures of one quantity; where rounding has moved them apart, the hull of both."""
        met = self.meet(other)
        apart = met.lower > met.upper
        if not bool(apart.any()):
            return met
        both = self.hull(other)
        return Interval(torch.where(apart, both.lower, met.lower), torch.where(apart, both.upper, met.upper))

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
        return self.map(Tensor.detach)

    def to(self, *args: Any, **kwargs: Any) -> Interval:
        """Both ends through `torch.Tensor.to`; those that a narrower dtype does not have move outward."""
        low = self.lower.to(*args, **kwargs)
        if low.dtype == self.dtype or not low.dtype.is_floating_point or _holds(low.dtype, self.dtype):
            return Interval(low, low if self.is_point else self.upper.to(*args, **kwargs))
        down, up = _outward(self.lower, low.dtype).to(low), -_outward(-self.upper, low.dtype).to(low)
        return Interval(down, down if self.is_point and torch.equal(down, up) else up)

    def __getitem__(self, index: Any) -> Interval:
        return self.map(lambda t: t[index])

    def __len__(self) -> int:
        return len(self.lower)

    __contains__ = None  # `value in interval` would look at the entries; `contains` is meant

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
        least = other.lower if isinstance(other, Interval) else other
        return _rounded(low, up, lambda: (self.lower >= 0) & (least >= 0))

    __radd__ = __add__

    def __sub__(self, other: Interval | Tensor | float) -> Interval:
        return self + (-other)

    def __rsub__(self, other: Tensor | float) -> Interval:
        return -self + other

    def __mul__(self, other: Interval | Tensor | float) -> Interval:
        """The elementwise product, exact: the extreme ones of the products of the ends; zero times infinity is zero."""
        if not isinstance(other, Interval):
            other = _number(other, self)
        if self.is_point and other.is_point:
            low = up = _times(self.lower, other.lower)
        elif self.is_point or other.is_point:
            point, wide = (self.lower, other) if self.is_point else (other.lower, self)
            one, two = _times(point, wide.lower), _times(point, wide.upper)
            low, up = torch.minimum(one, two), torch.maximum(one, two)
        else:
            a, b = _times(self.lower, other.lower), _times(self.lower, other.upper)
            c, d = _times(self.upper, other.lower), _times(self.upper, other.upper)
            low = torch.minimum(torch.minimum(a, b), torch.minimum(c, d))
            up = torch.maximum(torch.maximum(a, b), torch.maximum(c, d))
        return _rounded(
            low,
            up,
            lambda: ((self.lower >= 0) & (other.lower >= 0)) | ((self.upper <= 0) & (other.upper <= 0)),
        )

    __rmul__ = __mul__

    def __truediv__(self, other: Interval | Tensor | float) -> Interval:
        """The elementwise quotient, exact. Raises ArgumentError where the divisor may be zero."""
        if not isinstance(other, Interval):
            other = _number(other, self)
        if bool(((other.lower <= 0) & (other.upper >= 0)).any()):
            raise ArgumentError(
                "other", "an interval with zero in it", accepted="divisors of one sign", hint="Bound it away from zero."
            )
        if other.is_point and self.is_point:
            low = up = self.lower / other.lower
        else:
            quotients = [a / b for a in (self.lower, self.upper) for b in (other.lower, other.upper)]
            low = torch.minimum(torch.minimum(*quotients[:2]), torch.minimum(*quotients[2:]))
            up = torch.maximum(torch.maximum(*quotients[:2]), torch.maximum(*quotients[2:]))
        return Interval(*rounding.widened(low, up))


ROUNDINGS = 2**14
"""By how many units in the last place of the largest entry two enclosures of one quantity may miss each other."""


def _rounded(low: Tensor, up: Tensor, positive: Callable[[], Tensor]) -> Interval:
    """The results of one operation; where operands make none of them negative, rounding does not: a root may follow.

    Whether they do is seen by the operands, as results may underflow.
    """
    down, more = rounding.widened(low, up)
    return Interval(torch.where(positive(), down.clamp(min=0), down) if rounding.active() else down, more)


def _number(value: Tensor | float, like: Interval) -> Interval:
    """A factor or divisor as an interval; of a number that the dtype does not have, the numbers around it."""
    if isinstance(value, Tensor):
        return Interval.point(value if value.dtype.is_floating_point else value.to(like.dtype))
    exact = torch.tensor(float(value), dtype=torch.float64, device=like.device)
    return Interval.point(exact).to(like.dtype) if rounding.active() else Interval.point(exact.to(like.dtype))


def _times(a: Tensor, b: Tensor) -> Tensor:
    """`a * b`, with zero times infinity zero: every number times zero is."""
    product = a * b
    # On a CPU a sum is cheaper than a mask; on an accelerator it would be waited for.
    if product.device.type == "cpu" and bool(product.detach().sum().isfinite()):
        return product
    zero = ((a == 0) | (b == 0)) & ~(a.isnan() | b.isnan())
    nothing = torch.zeros((), dtype=product.dtype, device=product.device)
    # A number without axes would decide the dtype of what `where` returns.
    a, b = a.to(product.dtype), b.to(product.dtype)
    return torch.where(zero, nothing, a) * torch.where(zero, nothing, b)  # and no NaN in the gradients


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    return torch.promote_types(wide, narrow) == wide


def _outward(end: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest number of a narrower dtype that is at most `end`."""
    rounded = end.to(dtype)
    with torch.no_grad():
        over = rounded.to(end.dtype) > end
        below = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
        step = torch.where(over & rounded.isfinite(), below - rounded, 0)  # added, so that gradients pass
    return torch.where(over & rounded.isinf(), below, rounded + step)
