"""Convolutions and their gradients by the input, each by the kernel of torch that is quickest for it on a CPU.

oneDNN has no kernels for double precision, where torch writes out what every position sees: of a whole batch in a
convolution, which is then five times slower than sample by sample, as its gradient does. In single precision, oneDNN is
up to five times quicker at a convolution with the turned kernel than at the gradient that it is equal to; for few
channels a product of matrices may be quicker still.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 2**16
"""How many numbers may be written out at a time."""

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def convolution(
    x: Tensor,
    weight: Tensor,
    *,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The convolution of each sample, without a bias."""
    f, options = _CONVOLUTIONS[weight.dim() - 2], {"dilation": dilation, "groups": groups}
    options |= {"stride": tuple(stride), "padding": padding if isinstance(padding, str) else tuple(padding)}
    written = prod(weight.shape[1:]) * prod(x.shape[2:]) // prod(stride)
    at_once = max(1, PIECE // max(1, written))
    graph = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if not _slow(x) or groups > 1 or len(x) <= at_once or graph:
        return f(x, weight, None, **options)
    return torch.cat([f(part, weight, None, **options) for part in x.split(at_once)])


def gradient_by_input(
    grad: Tensor,
    weight: Tensor,
    size: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The gradient of a convolution, of `size` positions, by its input in the direction `grad` of its output."""
    outputs, inputs = weight.shape[:2]
    plain = weight.dim() == 4 and groups == 1 and grad.device.type == "cpu" and grad.dtype == torch.float32
    turned = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
    if plain and outputs <= 6 * inputs and set(stride) == {1} and min(turned) >= 0:
        return F.conv2d(grad, weight.flip(2, 3).transpose(0, 1), None, 1, turned, tuple(dilation))
    if plain and inputs <= 4:
        columns = weight.flatten(1).t() @ grad.flatten(2)
        return F.fold(columns, tuple(size), weight.shape[2:], tuple(dilation), tuple(padding), tuple(stride))
    like = grad.new_empty(1).expand(len(grad), inputs * groups, *size)
    found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        grad, like, weight, None, stride, padding, dilation, False, [0] * len(padding), groups, [True, False, False]
    )
    return found[0]


def _slow(x: Tensor) -> bool:
    return x.dtype == torch.float64 and x.device.type == "cpu"
