"""Outward rounding: widening every result by its a-priori rounding error, without changing the rounding mode.

Inside `outward()` a bound holds for real arithmetic *and* for what the network itself computes in floating point, in
whichever order its sums run. Higham, "Accuracy and stability of numerical algorithms", chapter 3: an n-term sum of
products satisfies `|fl(a.x) - a.x| <= gamma_n |a|.|x|`, `gamma_n = n u / (1 - n u)`, in any order, with or without
fused multiply-add; `u` is 2^-24 for float32 and 2^-53 for float64, and the smallest normal number per term covers
underflow. Reduced-precision products (TF32, bfloat16) and convolutions by Winograd or FFT do not obey it and are
refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from robust_plugins.errors import ArgumentError

_UNITS = {torch.float32: (2.0**-24, 2.0**-126), torch.float64: (2.0**-53, 2.0**-1022)}
_outward: ContextVar[bool] = ContextVar("outward", default=False)


@contextmanager
def outward(enabled: bool = True) -> Iterator[None]:
    """Rounds all interval arithmetic of this thread outward inside the block."""
    token = _outward.set(enabled)
    try:
        yield
    finally:
        _outward.reset(token)


def active() -> bool:
    """Whether arithmetic is being rounded outward."""
    return _outward.get()


def check(like: Tensor) -> None:
    """Raises ArgumentError where tensors like this one are multiplied in a precision that the bounds do not cover."""
    unit(like.dtype)
    reduced = torch.get_float32_matmul_precision() != "highest"
    if like.is_cuda:
        reduced |= torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    if like.dtype is torch.float32 and reduced:
        raise ArgumentError(
            "rounding",
            "'outward' while float32 products may run in reduced precision",
            accepted="products in full precision",
            hint='Call torch.set_float32_matmul_precision("highest") and set torch.backends.cudnn.allow_tf32 = False.',
        )


def unit(dtype: torch.dtype) -> tuple[float, float]:
    """The unit roundoff and the smallest normal number of a dtype. Raises ArgumentError for dtypes not covered."""
    if dtype not in _UNITS:
        raise ArgumentError(
            "rounding",
            f"'outward' for {dtype}",
            accepted="torch.float32 and torch.float64",
            hint="Convert the model and its inputs.",
        )
    return _UNITS[dtype]


def kappa(terms: int, dtype: torch.dtype) -> float:
    """The relative widening, to be multiplied by `|a|.|x|`, of a product sum of `terms` terms.

    `g / (1 - g)` with `g = gamma_{2 (terms + 16)}`: one `gamma` for our own evaluation, one for the network's; the 16
    pay for a bias and for the roundings of centre, radius, parts and ends.
    """
    return _relative(2 * (terms + 16), terms, dtype)


def once(terms: int, dtype: torch.dtype) -> float:
    """The relative widening for one evaluation alone of a product sum, as `kappa` is for two."""
    return _relative(terms + 16, terms, dtype)


def underflow(terms: int, dtype: torch.dtype) -> float:
    """The absolute widening of a product sum of `terms` terms, for results that underflow or are flushed to zero."""
    return 8 * (terms + 2) * unit(dtype)[1]


def lessened(number: Tensor, by: Tensor | float) -> Tensor:
    """`number - by` for `by >= 0`; when rounding is active, no more than that."""
    if not active():
        return number - by
    if isinstance(by, Tensor):
        return number - _at_least(number, by)
    u, tiny = unit(number.dtype)
    # Two roundings of about `number` in size, a quarter of what is paid for them, and of a number.
    return torch.sub(number - (by * (1 + 8 * u) + tiny), number.abs(), alpha=8 * u)


def increased(number: Tensor, by: Tensor | float) -> Tensor:
    """`number + by` for `by >= 0`; when rounding is active, no less than that."""
    if not active():
        return number + by
    if isinstance(by, Tensor):
        return number + _at_least(number, by)
    u, tiny = unit(number.dtype)
    return torch.add(number + (by * (1 + 8 * u) + tiny), number.abs(), alpha=8 * u)


def _at_least(number: Tensor, by: Tensor) -> Tensor:
    """`by`, with room for its own errors and for those of a sum with `number`."""
    u, tiny = unit(number.dtype)
    return torch.add(by, number.abs() + by, alpha=8 * u).add_(tiny)


def widened(
    low: Tensor, up: Tensor, *, ulps: float = 1.0, scale: Tensor | float | None = None
) -> tuple[Tensor, Tensor]:
    """Both ends moved outward by `ulps` units in the last place, when rounding is active, else as they are.

    `scale` is the magnitude that the error refers to; None: that of the ends, for operations that round once.
    """
    if not active():
        return low, up
    u, tiny = unit(low.dtype)
    step_low = 2 * u * ulps * (low.abs() if scale is None else scale) + tiny
    step_up = 2 * u * ulps * (up.abs() if scale is None else scale) + tiny
    return low - step_low, up + step_up


def _relative(n: int, terms: int, dtype: torch.dtype) -> float:
    u, _ = unit(dtype)
    if n * u > 0.1:
        raise ArgumentError(
            "rounding", f"'outward' for sums of {terms} terms", accepted="shorter sums", hint="Compute in float64."
        )
    gamma = n * u / (1 - n * u)
    return gamma / (1 - gamma)
