"""Functions of `torch.nn.functional` that do what a layer does: turned into that layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.intervals.layers import Contraction, Scale
from robust_plugins.intervals.network.calls import (
    _ALONG,
    _ENTRYWISE,
    Build,
    Emit,
    Fixed,
    Indexed,
    _ArgumentsError,
    _means,
    _module,
)
from robust_plugins.intervals.rules.structure import INTERPOLATIONS

_module(nn.AvgPool1d, F.avg_pool1d, torch.avg_pool1d)
_module(nn.AvgPool2d, F.avg_pool2d)
_module(nn.AvgPool3d, F.avg_pool3d)
_module(nn.AdaptiveAvgPool1d, F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d)
_module(nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d)
_module(nn.AdaptiveAvgPool3d, F.adaptive_avg_pool3d)


@_means(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)
def _max_pool(
    emit: Emit, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False, *, like: Tensor,
) -> int:  # fmt: skip
    layer = {3: nn.MaxPool1d, 4: nn.MaxPool2d, 5: nn.MaxPool3d}[like.dim()]
    return emit(layer(kernel_size, stride, padding, dilation, return_indices, ceil_mode), input)


@_means(F.softmax, torch.softmax, "softmax")
def _softmax(
    emit: Emit, input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None, *, like: Tensor
) -> int:
    if dim is None or dtype is not None:
        raise _ArgumentsError("give softmax its dim, and no dtype")
    return emit(nn.Softmax(dim), input)


@_means(F.log_softmax, torch.log_softmax, "log_softmax")
def _log_softmax(
    emit: Emit, input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None, *, like: Tensor
) -> int:
    if dim is None or dtype is not None:
        raise _ArgumentsError("give log_softmax its dim, and no dtype")
    return emit(nn.LogSoftmax(dim), input)


@_means(F.softmin)
def _softmin(
    emit: Emit, input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None, *, like: Tensor
) -> int:
    return int(_softmax(emit, emit(Scale(), input, value=-1.0), dim, _stacklevel, dtype, like=like))


_ALONG.update((_softmax, _log_softmax))


@_means(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
def _dropout(
    emit: Emit, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False, *, like: Tensor
) -> int:
    if training and p > 0:
        raise _ArgumentsError("it drops values in evaluation mode too; pass training=self.training")
    return emit(nn.Identity(), input)


_ENTRYWISE.add(_dropout)


@_means(F.linear)
def _linear(emit: Emit, input: Any, weight: Any, bias: Any = None, *, like: Tensor) -> int:
    return emit(nn.Linear(1, 1, device="meta"), input, weight=weight, bias=bias)


def _conv(dims: int) -> Build:
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]

    def build(
        emit: Emit, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1, *, like: Tensor,
    ) -> int:  # fmt: skip
        # The size of the kernel is the weight's; the layer only carries the strides and the padding.
        layer = kind(groups, groups, 1, stride, padding, dilation, groups, device="meta")
        return emit(layer, input, weight=weight, bias=bias)

    return build


_means(F.conv1d, torch.conv1d)(_conv(1))
_means(F.conv2d, torch.conv2d)(_conv(2))
_means(F.conv3d, torch.conv3d)(_conv(3))


def _conv_transpose(dims: int) -> Build:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]

    def build(
        emit: Emit, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
        output_padding: Any = 0, groups: int = 1, dilation: Any = 1, *, like: Tensor,
    ) -> int:  # fmt: skip
        # The size of the kernel is the weight's; the layer only carries the strides and the padding.
        layer = kind(groups, groups, 1, stride, padding, output_padding, groups, True, dilation, device="meta")
        return emit(layer, input, weight=weight, bias=bias)

    return build


_means(F.conv_transpose1d, torch.conv_transpose1d)(_conv_transpose(1))
_means(F.conv_transpose2d, torch.conv_transpose2d)(_conv_transpose(2))
_means(F.conv_transpose3d, torch.conv_transpose3d)(_conv_transpose(3))


@_means(F.layer_norm, torch.layer_norm)
def _layer_norm(
    emit: Emit, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    *_: Any, like: Tensor,
) -> int:  # fmt: skip
    layer = nn.LayerNorm(tuple(normalized_shape), eps, elementwise_affine=False)
    return emit(layer, input, weight=weight, bias=bias)


@_means(F.rms_norm, torch.rms_norm)
def _rms_norm(
    emit: Emit, input: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None, *, like: Tensor
) -> int:
    return emit(nn.RMSNorm(tuple(normalized_shape), eps, elementwise_affine=False), input, weight=weight)


@_means(F.group_norm, torch.group_norm)
def _group_norm(
    emit: Emit, input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any,
    like: Tensor,
) -> int:  # fmt: skip
    return emit(nn.GroupNorm(num_groups, like.shape[1], eps, affine=False), input, weight=weight, bias=bias)


@_means(F.instance_norm)
def _instance_norm(
    emit: Emit, input: Any, running_mean: Any = None, running_var: Any = None, weight: Any = None, bias: Any = None,
    use_input_stats: bool = True, momentum: float = 0.1, eps: float = 1e-5, *, like: Tensor,
) -> int:  # fmt: skip
    if not use_input_stats or running_mean is not None:
        raise _ArgumentsError(
            "write it as torch.nn.InstanceNorm1d, InstanceNorm2d or InstanceNorm3d, which knows its statistics"
        )
    kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[like.dim() - 3]
    return emit(kind(like.shape[1], eps), input, weight=weight, bias=bias)


@_means(F.interpolate, F.upsample)
def _interpolate(
    emit: Emit, input: Any, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None, recompute_scale_factor: bool | None = None, antialias: bool = False, *,
    like: Tensor,
) -> int:  # fmt: skip
    if mode in INTERPOLATIONS and not antialias:
        return emit(nn.Upsample(size, scale_factor, mode, align_corners, recompute_scale_factor), input)
    return interpolated(
        emit, input, size, scale_factor, mode, align_corners=align_corners,
        recompute_scale_factor=recompute_scale_factor, antialias=antialias,
    )  # fmt: skip


def interpolated(emit: Emit, input: Any, size: Any, scale_factor: Any, mode: str, **options: Any) -> int:
    """Interpolation of images by weights of any sign: a matrix for each axis, which are those of unit vectors."""
    if not isinstance(input, Indexed) or input.like.dim() != 4:
        raise _ArgumentsError("its input must be images that depend on the model's input")
    image: Tensor = input.like
    found: Any = input
    for axis, letter in ((2, "h"), (3, "w")):
        n = image.shape[axis]
        unit = torch.eye(n, dtype=image.dtype, device=image.device).view(n, 1, n, 1).expand(n, 1, n, 2)
        unit = (unit if axis == 2 else unit.mT).contiguous()  # two columns: of one torch makes something else
        sizes = None if size is None else [2, 2]
        factors = None if scale_factor is None else [1.0, 1.0]
        for wanted, given in ((sizes, size), (factors, scale_factor)):
            if wanted is not None:
                wanted[axis - 2] = given[axis - 2] if isinstance(given, tuple | list) else given
        weights = F.interpolate(unit, sizes, factors, mode, **options).select(5 - axis, 0).flatten(1).t()
        found = emit(Contraction(f"bchw,z{letter}->bc{'zw' if axis == 2 else 'hz'}"), found, value=Fixed(weights))
    result: int = found
    return result


@_means(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
def _adaptive_max_pool(emit: Emit, input: Any, output_size: Any, return_indices: bool = False, *, like: Tensor) -> int:
    return adaptive_max_pool(emit, input, output_size)


@_means(
    F.adaptive_max_pool1d_with_indices, F.adaptive_max_pool2d_with_indices, F.adaptive_max_pool3d_with_indices,
    F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices,
)  # fmt: skip
def _pool_with_indices(emit: Emit, *_: Any, like: Any, **__: Any) -> int:
    raise _ArgumentsError("leave return_indices=False")


def adaptive_max_pool(emit: Emit, input: Any, output_size: Any) -> int:
    """Max-pooling over windows that divide the image."""
    if not isinstance(input, Indexed) or not 3 <= input.like.dim() <= 5:
        raise _ArgumentsError("its input must be images that depend on the model's input")
    sizes = input.like.shape[2:]
    wanted = output_size if isinstance(output_size, tuple | list) else (output_size,) * len(sizes)
    kernel = [1 if m is None else n // m for n, m in zip(sizes, wanted, strict=True)]
    if any(n % k or (m is not None and n // k != m) for n, k, m in zip(sizes, kernel, wanted, strict=True)):
        raise _ArgumentsError(f"its output_size must divide the image's {tuple(sizes)}; pad or crop it before")
    kinds = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
    return emit(kinds[len(sizes) - 1](tuple(kernel)), input)


_module(nn.PixelShuffle, F.pixel_shuffle, torch.pixel_shuffle)
_module(nn.PixelUnshuffle, F.pixel_unshuffle, torch.pixel_unshuffle)
_module(nn.ChannelShuffle, F.channel_shuffle, torch.channel_shuffle)
_module(nn.Unfold, F.unfold)
_module(nn.Fold, F.fold)
