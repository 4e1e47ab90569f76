"""`smoothed`: a model with its kinks rounded off, whose gradient has a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class smoothed(TorchFunctionMode):  # noqa: N801 (read as a statement: `with smoothed(10.0):`)
    """Inside the block, piecewise linear activations are computed as their softplus approximations.

    The gradient of a ReLU network is piecewise constant, so gradient methods see no way to change it. With
    `softplus(z) = log(1 + e^(beta z)) / beta` in place of `max(z, 0)` they do (Dombrowski et al. 2019, "Explanations
    can be manipulated and geometry is to blame", section 3). The larger `beta` > 0, the nearer the surrogate.
    Replaced: ReLU, leaky ReLU, ReLU6, hardtanh and clamp with numbers as limits, as modules and as functions.
    Compiled models (TorchScript, torch.export) are evaluated as they are.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        surrogate = _SURROGATES.get(func)
        if surrogate is None:
            return func(*args, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}
        return surrogate(lambda z: F.softplus(z, self.beta), *args, **kwargs)


_Ramp = Callable[[Tensor], Tensor]


def _relu(ramp: _Ramp, input: Tensor, inplace: bool = False) -> Tensor:
    return ramp(input)


def _leaky_relu(ramp: _Ramp, input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    return negative_slope * input + (1 - negative_slope) * ramp(input)


def _hardtanh(ramp: _Ramp, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    return min_val + ramp(input - min_val) - ramp(input - max_val)


def _relu6(ramp: _Ramp, input: Tensor, inplace: bool = False) -> Tensor:
    return _hardtanh(ramp, input, 0.0, 6.0)


def _clamp(ramp: _Ramp, input: Tensor, min: float | Tensor | None = None, max: float | Tensor | None = None) -> Tensor:
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        return torch.clamp(input, min, max)  # type: ignore[arg-type]
    if min is None:
        return input if max is None else input - ramp(input - max)
    return min + ramp(input - min) - (0 if max is None else ramp(input - max))


_SURROGATES: dict[Any, Callable[..., Tensor]] = {
    F.relu: _relu,
    torch.relu: _relu,
    torch.relu_: _relu,
    Tensor.relu: _relu,
    Tensor.relu_: _relu,
    F.leaky_relu: _leaky_relu,
    F.hardtanh: _hardtanh,
    F.relu6: _relu6,
    torch.clamp: _clamp,
    Tensor.clamp: _clamp,
}
