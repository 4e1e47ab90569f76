"""The elementwise functions that models call between their modules: one record each."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Pointwise, Power
from robust_plugins.intervals.rules.elementwise import Activation, elementwise
from robust_plugins.intervals.rules.envelopes import Pieces


@elementwise(Pointwise)
def pointwise(layer: Pointwise) -> Activation:
    """The record of the function."""
    return FUNCTIONS[layer.name]


@elementwise(Power)
def power(layer: Power) -> Activation:
    """`z^p`: for whole p over all numbers, without zero where p is negative; for other p above zero."""
    p = layer.exponent
    if not math.isfinite(p):
        raise UnsupportedModelError(f"a power with exponent {p} has no interval rule: the exponent must be finite")
    whole = p == round(p)
    odd = whole and round(p) % 2 == 1
    falls = p < 0 or (whole and not odd)
    return Activation(
        f=lambda z: z**p,
        slope=(lambda z: p * z ** (p - 1)) if p else torch.zeros_like,
        extrema=(0.0,) if falls else (),
        turns=(0.0,) if odd and p != 1 else (),
        convex=not (odd or 0 < p < 1),
        defined=(_not_zero if p < 0 else None) if whole else (_positive if p < 0 else _not_negative),
        name=f"x ** {p:g} needs values {'other than 0' if whole else 'above 0' if p < 0 else 'not below 0'}",
        ulps=8 * max(1.0, abs(p)),
        least=None if odd else 0.0,
    )


def _positive(z: Interval) -> Tensor:
    return z.lower > 0


def _not_negative(z: Interval) -> Tensor:
    return z.lower >= 0


def _not_zero(z: Interval) -> Tensor:
    return (z.lower > 0) | (z.upper < 0)


def _wave(f: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], phase: float) -> Activation:
    """`f(z) = sin(z - phase)`: its turns are at `phase + k pi`."""

    def turning(z: Interval) -> Pieces:
        k = ((z.lower - phase) / math.pi).floor() + 1
        first = phase + math.pi * k
        return Pieces(first, first + math.pi, k.remainder(2) == 0)

    def flat(z: Interval) -> Tensor:
        """About a period and more; and where a rounding error of z is a good part of it."""
        return (z.width >= 6) | (z.magnitude >= 1e-3 / torch.finfo(z.dtype).eps)

    return Activation(
        f=f,
        slope=slope,
        image=lambda z: _wave_range(z, phase, f),
        slope_image=lambda z: _wave_range(z, phase - math.pi / 2, slope),
        pieces=turning,
        flat=flat,
        ulps=8,
    )


def _wave_range(z: Interval, phase: float, f: Callable[[Tensor], Tensor]) -> Interval:
    """The range of `f(z) = sin(z - phase)`: 1 where a peak may be inside, -1 where a trough may be, or at the ends."""
    low, up = f(z.lower), f(z.upper)
    if z.is_point:
        return Interval.point(low)
    near = 4 * torch.finfo(z.dtype).eps * (1 + z.magnitude)

    def reached(at: float) -> Tensor:
        # Not known to lie outside: true for infinite ends too.
        return ~(((z.lower - near - at) / math.tau).ceil() * math.tau + at > z.upper + near)

    return Interval(
        torch.where(reached(phase - math.pi / 2), -1.0, torch.minimum(low, up)),
        torch.where(reached(phase + math.pi / 2), 1.0, torch.maximum(low, up)),
    )


def _steps(f: Callable[[Tensor], Tensor]) -> Activation:
    """A function that rises in steps: its slope is 0, and it is bounded by its values at the ends."""
    return Activation(f=f, slope=torch.zeros_like, relaxable=False)


FUNCTIONS: dict[str, Activation] = {
    "abs": Activation(f=torch.abs, slope=torch.sign, extrema=(0.0,)),
    "exp": Activation(f=torch.exp, slope=torch.exp, ulps=8, least=0.0),
    "expm1": Activation(f=torch.expm1, slope=torch.exp, ulps=8),
    "log": Activation(
        f=torch.log, slope=torch.reciprocal, convex=False, ulps=8, defined=_positive, name="log needs values above 0"
    ),
    "log1p": Activation(
        f=torch.log1p, slope=lambda z: 1 / (1 + z), convex=False, ulps=8, defined=lambda z: z.lower > -1,
        name="log1p needs values above -1",
    ),
    "sqrt": Activation(
        f=torch.sqrt, slope=lambda z: 0.5 / torch.sqrt(z), convex=False, ulps=8, defined=_not_negative, least=0.0,
        name="sqrt needs values not below 0",
    ),
    "rsqrt": Activation(
        f=torch.rsqrt, slope=lambda z: -0.5 * z**-1.5, extrema=(0.0,), ulps=16, defined=_positive, least=0.0,
        name="rsqrt needs values above 0",
    ),
    "reciprocal": Activation(
        f=torch.reciprocal, slope=lambda z: -(z**-2.0), extrema=(0.0,), turns=(0.0,), convex=False, ulps=8,
        defined=_not_zero, name="a quotient needs a divisor other than 0",
    ),
    "sin": _wave(torch.sin, torch.cos, 0.0),
    "cos": _wave(torch.cos, lambda z: -torch.sin(z), -math.pi / 2),
    "erf": Activation(
        f=torch.erf, slope=lambda z: 2 / math.sqrt(math.pi) * torch.exp(-(z**2)), turns=(0.0,), ulps=8
    ),
    "atan": Activation(f=torch.atan, slope=lambda z: 1 / (1 + z**2), turns=(0.0,), ulps=8),
    "sinh": Activation(f=torch.sinh, slope=torch.cosh, turns=(0.0,), convex=False, ulps=8),
    "cosh": Activation(f=torch.cosh, slope=torch.sinh, extrema=(0.0,), ulps=8),
    "sign": _steps(torch.sign),
    "floor": _steps(torch.floor),
    "ceil": _steps(torch.ceil),
    "round": _steps(torch.round),
    "trunc": _steps(torch.trunc),
}  # fmt: skip
"""Functions of torch by name."""
