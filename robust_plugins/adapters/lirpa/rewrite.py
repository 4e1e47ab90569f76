"""A copy of a model for auto_LiRPA to convert: the same function in evaluation mode, from layers that it gets right."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from robust_plugins.errors import UnsupportedModelError


def convertible(model: nn.Module, x: Tensor, *, convolve: bool) -> nn.Module:
    """A detached copy of `model` in evaluation mode, with the same names of parameters and buffers.

    Dropout becomes the identity, which it is in evaluation mode: 0.7 cannot convert it, and 0.3 would put the model
    into training mode. With `convolve`, average pooling becomes a convolution.
    `x` is an input, which tells the number of channels. Raises UnsupportedModelError for a model that cannot be copied.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            "a TorchScript module cannot be bounded, for auto_LiRPA cannot read its layers; certify the nn.Module that "
            "it was made from, or a program of torch.export"
        )
    try:
        with warnings.catch_warnings():
            # Copying an exported program meets torch's own use of a name that it deprecates.
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            twin = copy.deepcopy(model)
    except Exception as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be copied, which bounding it needs: {error}"
        ) from error
    twin.requires_grad_(False)
    for module in twin.modules():
        module.training = False
    channels = _pooled_channels(twin, x) if convolve else {}
    for module in list(twin.modules()):
        for name, child in list(module._modules.items()):
            if isinstance(child, _DropoutNd):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.AvgPool2d) and child in channels:
                setattr(module, name, _as_convolution(child, channels[child], x))
    return twin


def _pooled_channels(twin: nn.Module, x: Tensor) -> dict[nn.AvgPool2d, int]:
    """The number of channels that every average pooling sees which is a convolution, border included."""
    channels: dict[nn.AvgPool2d, int] = {}

    def record(pool: nn.AvgPool2d, arguments: tuple[Tensor, ...]) -> None:
        if arguments[0].dim() == 4:
            channels[pool] = arguments[0].shape[1]

    pools = [m for m in twin.modules() if type(m) is nn.AvgPool2d and not m.ceil_mode]
    pools = [m for m in pools if m.count_include_pad or m.padding in (0, (0, 0))]
    handles = [pool.register_forward_pre_hook(record) for pool in pools]
    if handles:
        with torch.no_grad():
            twin(x.clone())
    for handle in handles:
        handle.remove()
    return channels


def _as_convolution(pool: nn.AvgPool2d, channels: int, x: Tensor) -> nn.Conv2d:
    """The convolution that average pooling is where it counts the padding.

    Not a grouped one: those are bounded in a slower mode only.
    """
    kernel, stride, padding = (_pair(s) for s in (pool.kernel_size, pool.stride, pool.padding))
    # Initial weights would be drawn from the caller's generator.
    same: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, channels, channels, kernel, stride, padding, bias=False)
    same = same.to(x).requires_grad_(False).eval()
    mean = torch.eye(channels).to(x) / (pool.divisor_override or kernel[0] * kernel[1])
    same.weight.copy_(mean[:, :, None, None].expand_as(same.weight))
    return same


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
