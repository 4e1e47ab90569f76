"""Windows over images: their strides and padding, pooling, padding of its own, and resizing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from robust_plugins.adapters.onnx.translation import Call, Translation, TranslationError, Value, translates


@dataclass(frozen=True)
class Window:
    """Where the windows of a convolution or of pooling lie."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    """At the beginning of each axis, then at the end of each."""


def spatial(call: Call, kernel: Sequence[int], sides: Sequence[int]) -> Window:
    """The window of an operator, its automatic padding worked out."""
    rank = len(kernel)
    strides, dilations = (tuple(call.get(name, (1,) * rank)) for name in ("strides", "dilations"))
    pads = tuple(call.get("pads", (0,) * (2 * rank)))
    auto = call.get("auto_pad", b"NOTSET").decode()
    if auto.startswith("SAME"):
        if call.operator == "ConvTranspose":
            raise TranslationError(f"auto_pad={auto} is not supported")
        missing = [
            max((-(-side // stride) - 1) * stride + dilation * (k - 1) + 1 - side, 0)
            for side, stride, dilation, k in zip(sides, strides, dilations, kernel, strict=True)
        ]
        small, large = tuple(n // 2 for n in missing), tuple(n - n // 2 for n in missing)
        pads = small + large if auto == "SAME_UPPER" else large + small
    elif auto == "VALID":
        pads = (0,) * (2 * rank)
    if any(pad < 0 for pad in pads):
        raise TranslationError("negative padding is not supported")
    return Window(strides, dilations, pads)


def padded(t: Translation, x: Value, pads: Sequence[int], value: float, mode: str = "constant") -> Value:
    """The last axes of `x` padded: `pads` has their beginnings, then their ends."""
    rank = len(pads) // 2
    ends = list(zip(pads[:rank], pads[rank:], strict=True))
    shape = [*x.shape[: len(x.shape) - rank], *(s + a + b for s, (a, b) in zip(x.shape[-rank:], ends, strict=True))]
    sides = tuple(itertools.chain.from_iterable(reversed(ends)))
    options: dict[str, Any] = {"value": value} if mode == "constant" else {}
    return t.function(F.pad, x, sides, mode=mode, shape=shape, **options)


@translates("MaxPool", "AveragePool")
def _pool(t: Translation, call: Call) -> Value:
    x, kernel = t.lead(call.value()), tuple(call["kernel_shape"])
    rank = len(kernel)
    if call.outputs > 1 or rank not in (1, 2, 3) or len(x.shape) != rank + 2:
        raise TranslationError(f"a kernel of {kernel} on an input of shape {x.shape}, or indices as a result")
    window = spatial(call, kernel, x.shape[2:])
    begin, end, ceil = window.pads[:rank], window.pads[rank:], bool(call.get("ceil_mode", 0))
    average, counted = call.operator == "AveragePool", bool(call.get("count_include_pad", 0))
    # Larger padding than half a kernel, and another at each end, is unknown to torch's pooling.
    if begin != end or any(2 * pad > k for pad, k in zip(begin, kernel, strict=True)):
        if average and not counted:
            raise TranslationError("averages without the padding, which differs between the two ends")
        if not average and (any(d != 1 for d in window.dilations) or any(p >= min(kernel) for p in window.pads)):
            raise TranslationError("maxima with dilation over padding that differs between the two ends")
        # A window that sees padding sees the entry at the border too, so that repeating this one changes no maximum.
        x = padded(t, x, window.pads, 0.0) if average else padded(t, x, window.pads, 0.0, "replicate")
        begin = (0,) * rank
    layer: nn.Module
    if average:
        if any(d != 1 for d in window.dilations):
            raise TranslationError("averages with dilation")
        kinds: Any = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
        layer = kinds[rank - 1](kernel, window.strides, begin, ceil, counted)
    else:
        kinds = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
        layer = kinds[rank - 1](kernel, window.strides, begin, window.dilations, ceil_mode=ceil)
    return t.layer(layer, x, tuple(layer(torch.zeros(x.shape)).shape))


@translates("GlobalAveragePool")
def _global_average(t: Translation, call: Call) -> Value:
    x = t.lead(call.value())
    dims = tuple(range(2, len(x.shape)))
    return t.function(torch.mean, x, dims, keepdim=True, shape=(*x.shape[:2], *(1 for _ in dims)))


@translates("GlobalMaxPool")
def _global_maximum(t: Translation, call: Call) -> Value:
    x = t.lead(call.value())
    rank = len(x.shape) - 2
    if rank not in (1, 2, 3):
        raise TranslationError(f"an input of shape {x.shape}")
    kinds: Any = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
    return t.layer(kinds[rank - 1](x.shape[2:]), x, (*x.shape[:2], *(1,) * rank))


@translates("Pad")
def _pad(t: Translation, call: Call) -> Value:
    x = call.value()
    rank, mode = len(x.shape), call.get("mode", b"constant").decode()
    given = call.integers("pads", 1) or []
    axes = call.integers("axes", 3) or list(range(rank))
    pads = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        pads[axis % rank], pads[axis % rank + rank] = given[place], given[place + len(axes)]
    value = call.optional(2)
    fill = float(call.get("value", 0.0)) if value is None or not value.numel() else float(value)
    names = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    first = next((axis for axis in range(rank) if pads[axis] or pads[axis + rank]), None)
    if first is None:
        return x
    if first == 0:
        x = t.lift(x)
    if mode != "constant":
        first = min(first, 2)  # torch knows these modes for images alone
        if not (rank in (3, 4, 5) and first == 2 and not x.lifted):
            raise TranslationError(f"padding by {mode} is supported along the axes of images only")
    return padded(t, x, pads[first:rank] + pads[rank + first :], fill, names[mode])


@translates("Resize", "Upsample")
def _resize(t: Translation, call: Call) -> Value:
    """Only what `torch.nn.functional.interpolate` also computes; the comparison of the whole network tells."""
    x = t.lead(call.value())
    old = call.operator == "Upsample" or call.opset < 11
    scales = call.get("scales") if "scales" in call.attributes else call.optional(1 if old else 2)
    sizes = None if old else call.optional(3)
    if sizes is not None and sizes.numel():
        shape = tuple(int(s) for s in sizes.tolist())
    elif scales is not None:
        shape = tuple(int(side * float(scale)) for side, scale in zip(x.shape, scales, strict=True))
    else:
        raise TranslationError("it has neither scales nor sizes")
    mode = call.get("mode", b"nearest").decode()
    place = call.get("coordinate_transformation_mode", b"asymmetric" if old else b"half_pixel").decode()
    if shape[:2] != x.shape[:2] or mode not in ("nearest", "linear"):
        raise TranslationError(f"mode {mode} from {x.shape} to {shape}")
    if mode == "nearest":
        return t.function(F.interpolate, x, shape[2:], shape=shape)
    if place not in ("align_corners", "half_pixel", "pytorch_half_pixel") or len(shape) not in (3, 4, 5):
        raise TranslationError(f"coordinate_transformation_mode {place}")
    kind = {3: "linear", 4: "bilinear", 5: "trilinear"}[len(shape)]
    return t.function(
        F.interpolate, x, shape[2:], shape=shape, mode=kind, align_corners=place == "align_corners"
    )  # fmt: skip
