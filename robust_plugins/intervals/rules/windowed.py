"""How convolutions, average pooling and zero padding pass on coefficients that are windows of an image."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import nn

from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.rules.linear import padding
from robust_plugins.intervals.rules.registry import window_rules
from robust_plugins.intervals.windows import Windows


def convolution_back(
    layer: nn.Conv2d, w: Windows, image: Sequence[int], weight: Interval, bias: Interval | None
) -> Windows:
    """The transposed convolution of each window."""
    before, _ = padding(layer, weight.shape)
    return w.back_through_convolution(
        weight.lower,
        stride=layer.stride,
        padding=before,
        dilation=layer.dilation,
        groups=layer.groups,
        image=image,
    )


def convolution_through(
    layer: nn.Conv2d, w: Windows, image: Sequence[int], weight: Interval, bias: Interval | None
) -> Windows:
    """The convolution of each window."""
    before, _ = padding(layer, weight.shape)
    return w.through_convolution(
        weight.lower,
        stride=layer.stride,
        padding=before,
        dilation=layer.dilation,
        groups=layer.groups,
        image=image,
    )


def average_back(layer: nn.AvgPool2d, w: Windows, image: Sequence[int]) -> Windows | None:
    """An entry has a share of every window that sees it, one share for all as long as padding counts."""
    if not _uniform(layer):
        return None
    kernel, stride, before = _pool(layer)
    return w.back_through_average(kernel, stride=stride, padding=before, factor=_share(layer), image=image)


def average_through(layer: nn.AvgPool2d, w: Windows, image: Sequence[int]) -> Windows | None:
    """The average of each window, times what the layer divides by otherwise."""
    if not _uniform(layer):
        return None
    kernel, stride, before = _pool(layer)
    return w.through_average(kernel, stride=stride, padding=before, factor=_share(layer), image=image)


def zeros_back(layer: nn.ZeroPad2d, w: Windows, image: Sequence[int]) -> Windows:
    """The image begins later; what fell on the padding lies outside."""
    left, _, top, _ = layer.padding
    return w.within(image).moved(-top, -left)


def zeros_through(layer: nn.ZeroPad2d, w: Windows, image: Sequence[int]) -> Windows:
    """The image begins earlier."""
    left, _, top, _ = layer.padding
    return w.within(image).moved(top, left)


window_rules(nn.Conv2d, back=convolution_back, through=convolution_through)
window_rules(nn.AvgPool2d, back=average_back, through=average_through)
window_rules(nn.ZeroPad2d, back=zeros_back, through=zeros_through)


def _pool(layer: nn.AvgPool2d) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    kernel, stride, before = (
        tuple(v) if isinstance(v, tuple | list) else (v, v) for v in (layer.kernel_size, layer.stride, layer.padding)
    )
    return kernel, stride, before


def _uniform(layer: nn.AvgPool2d) -> bool:
    """Whether all windows are divided by one number."""
    padded = any(_pool(layer)[2])
    return not layer.ceil_mode and (not padded or layer.count_include_pad or layer.divisor_override is not None)


def _share(layer: nn.AvgPool2d) -> float:
    return 1 / (layer.divisor_override or prod(_pool(layer)[0]))
