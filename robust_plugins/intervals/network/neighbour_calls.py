"""Powers summed up over neighbours: pooling by a norm, and local response normalisation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.intervals.layers import Contraction, Multiply, Power, Scale, Shift
from robust_plugins.intervals.network.calls import Build, Emit, Fixed, Indexed, _ArgumentsError, _means


@_means(F.local_response_norm)
def _local_response_norm(
    emit: Emit, input: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0, *, like: Tensor
) -> int:
    return response_norm(emit, input, size, alpha, beta, k)


def response_norm(emit: Emit, input: Any, size: int, alpha: float, beta: float, k: float) -> int:
    """`x / (k + alpha / size * the squares of neighbouring channels) ** beta`."""
    if not isinstance(input, Indexed):
        raise _ArgumentsError("its input must depend on the model's input")
    letters = "abcdefgh"[: input.like.dim()]
    offset = torch.arange(input.like.shape[1])
    offset = offset.unsqueeze(1) - offset  # of a neighbour from the channel itself
    near = (offset >= -(size // 2)) & (offset <= (size - 1) // 2)
    weights = near.to(input.like) * (alpha / size)
    squares = emit(Power(2.0), input)
    found = emit(Contraction(f"{letters},bz->az{letters[2:]}"), squares, value=Fixed(weights))
    return emit(Multiply(), input, emit(Power(-beta), emit(Shift(), found, value=k)))


def power_pool(emit: Emit, input: Any, p: float, kernel: Any, stride: Any, ceil_mode: bool, *, dims: int) -> int:
    """`(the sum of x ** p over a window) ** (1 / p)`, of images of so many dimensions."""
    if not isinstance(input, Indexed) or input.like.dim() != dims + 2:
        raise _ArgumentsError("its input must be images that depend on the model's input, with channels")
    size = tuple(kernel) if isinstance(kernel, tuple | list) else (kernel,) * dims
    average = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dims - 1](size, stride, 0, ceil_mode)
    count = torch.tensor(size).prod().item()
    total = emit(Scale(), emit(average, emit(Power(float(p)), input)), value=float(count))
    return emit(Power(1 / p), total)


def _pool(dims: int) -> Build:
    def build(
        emit: Emit, input: Any, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False, *,
        like: Tensor,
    ) -> int:  # fmt: skip
        return power_pool(emit, input, norm_type, kernel_size, stride, ceil_mode, dims=dims)

    return build


_means(F.lp_pool1d)(_pool(1))
_means(F.lp_pool2d)(_pool(2))
_means(F.lp_pool3d)(_pool(3))
