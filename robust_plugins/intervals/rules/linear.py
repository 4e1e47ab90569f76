"""Rules of the layers that are bilinear in input and weights: Linear, convolutions, batch norm, scale and shift."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals import rounding
from robust_plugins.intervals.convolutions import convolution, gradient_by_input
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Scale, Shift
from robust_plugins.intervals.products import product, reduced, total
from robust_plugins.intervals.rules.registry import backward_rule, forward_rule, weights_rule

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
BatchNorm = nn.modules.batchnorm._NormBase


def linear_terms(layer: nn.Linear, x: Interval, weight: Interval, bias: Interval | None) -> tuple[int, int]:
    """A row of the weight, and a column."""
    return weight.shape[1], weight.shape[0]


@forward_rule(nn.Linear, parameters=("weight", "bias"), affine=True, terms=linear_terms)
def linear(layer: nn.Linear, x: Interval, weight: Interval, bias: Interval | None) -> Interval:
    """`x W^T + b`."""
    return product(F.linear, x, weight, terms=weight.shape[1], bias=bias)


@backward_rule(nn.Linear)
def linear_vjp(layer: nn.Linear, x: Interval, grad: Interval, weight: Interval, bias: Interval | None) -> Interval:
    """`g W`."""
    return product(torch.matmul, grad, weight, terms=weight.shape[0])


@weights_rule(nn.Linear)
def linear_weights(
    layer: nn.Linear, x: Interval, grad: Interval, weight: Interval, bias: Interval | None, *, summed: bool
) -> dict[str, Interval]:
    """`g^T x` and `g`, summed over the positions of a sample, and over samples where asked."""
    g, h = (i.map(lambda t: t.reshape(len(t), prod(t.shape[1:-1]), t.shape[-1])) for i in (grad, x))
    terms = g.shape[1] * (len(g) if summed else 1)
    contract = "bpo,bpi->oi" if summed else "bpo,bpi->boi"
    found = product(lambda a, b: torch.einsum(contract, a, b), g, h, terms=terms)
    return {"weight": found, "bias": total(g, (0, 1) if summed else (1,))}


def conv_terms(layer: Conv, x: Interval, weight: Interval, bias: Interval | None) -> tuple[int, int]:
    """The kernel's window in all channels of a group, of the input and of the output."""
    return prod(weight.shape[1:]), weight.shape[0] // layer.groups * prod(weight.shape[2:])


@forward_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, parameters=("weight", "bias"), affine=True, terms=conv_terms)
def conv(layer: Conv, x: Interval, weight: Interval, bias: Interval | None) -> Interval:
    """The convolution, bilinear in input and kernel."""
    check_convolution(layer, x)
    options: dict[str, Any] = {
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }
    shift = None if bias is None else bias.map(lambda b: b.view(-1, *[1] * (weight.lower.dim() - 2)))
    return product(lambda s, w: convolution(s, w, **options), x, weight, terms=prod(weight.shape[1:]), bias=shift)


@backward_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def conv_vjp(layer: Conv, x: Interval, grad: Interval, weight: Interval, bias: Interval | None) -> Interval:
    """The transposed convolution."""
    check_convolution(layer, x)
    before, after = padding(layer, weight.shape)
    # The symmetric part of the padding belongs to the convolution; "same" may add one more at the end.
    size = [n + b + a - 2 * min(b, a) for n, b, a in zip(x.shape[2:], before, after, strict=True)]
    inner = [min(b, a) for b, a in zip(before, after, strict=True)]

    def f(g: Tensor, w: Tensor) -> Tensor:
        below = gradient_by_input(
            g, w, size, stride=layer.stride, padding=inner, dilation=layer.dilation, groups=layer.groups
        )
        for axis, (b, a, n) in enumerate(zip(before, after, x.shape[2:], strict=True), start=2):
            below = below.narrow(axis, b - min(b, a), n)
        return below

    return product(f, grad, weight, terms=conv_terms(layer, x, weight, bias)[1])


@weights_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def conv_weights(
    layer: Conv, x: Interval, grad: Interval, weight: Interval, bias: Interval | None, *, summed: bool
) -> dict[str, Interval]:
    """The correlation of input and gradient, over positions, and over samples where asked."""
    check_convolution(layer, x)
    before, after = padding(layer, weight.shape)
    outside = [p for b, a in zip(reversed(before), reversed(after), strict=True) for p in (b, a)]
    positions = prod(grad.shape[2:])
    spatial = tuple(range(2, grad.lower.dim()))
    none = [0] * len(before)

    def over_batch(g: Tensor, s: Tensor) -> Tensor:
        like = g.new_empty(1).expand(weight.shape)
        found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            g, F.pad(s, outside), like, None, layer.stride, none, layer.dilation, False, none, layer.groups,
            [False, True, False],
        )  # fmt: skip
        return found[1]

    def per_sample(g: Tensor, s: Tensor) -> Tensor:
        patches = _patches(layer, F.pad(s, outside), grad.shape[2:], weight.shape)
        g = g.reshape(len(g), layer.groups, weight.shape[0] // layer.groups, positions)
        return torch.einsum("bgop,bgkp->bgok", g, patches).reshape(len(g), *weight.shape)

    terms = positions * (len(grad) if summed else 1)
    return {
        "weight": product(over_batch if summed else per_sample, grad, x, terms=terms),
        "bias": total(grad, (0, *spatial) if summed else spatial),
    }


def batch_norm_terms(layer: BatchNorm, x: Interval, weight: Interval | None, bias: Interval | None) -> tuple[int, int]:
    """Counts for `size` below a few units of the largest term, whichever way mean, scale and shift are folded."""
    return 16, 16


def batch_norm_size(layer: BatchNorm, x: Interval, weight: Interval | None, bias: Interval | None) -> Tensor:
    """`(|x| + |mean|) / sqrt(var + eps) |w| + |b|`."""
    mean, inverse = _statistics(layer, x)
    size = (x.lower + mean.abs()) * inverse
    if weight is not None:
        size = size * _channels(weight.lower, x)
    return size if bias is None else size + _channels(bias.lower, x)


@forward_rule(
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, parameters=("weight", "bias"), affine=True,
    terms=batch_norm_terms, size=batch_norm_size,
)  # fmt: skip
def batch_norm(layer: BatchNorm, x: Interval, weight: Interval | None, bias: Interval | None) -> Interval:
    """In evaluation mode `(x - mean) / sqrt(var + eps) * w + b`, with the running mean and variance."""
    mean, inverse = _statistics(layer, x)
    y = x.map(lambda t: (t - mean) * inverse)
    size = (x.magnitude + mean.abs()) * inverse if rounding.active() else None
    if weight is not None:
        w = weight.map(lambda t: _channels(t, x))
        y = y * w
        size = None if size is None else size * w.magnitude
    if bias is not None:
        b = bias.map(lambda t: _channels(t, x))
        y = y + b
        size = None if size is None else size + b.magnitude
    # Libraries fold mean, scale and shift in several ways; each errs by a few units of the largest term.
    return Interval(*rounding.widened(y.lower, y.upper, ulps=16, scale=size))


@backward_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm_vjp(
    layer: BatchNorm, x: Interval, grad: Interval, weight: Interval | None, bias: Interval | None
) -> Interval:
    """`g w / sqrt(var + eps)`."""
    _, inverse = _statistics(layer, x)
    below = grad if weight is None else grad * weight.map(lambda t: _channels(t, x))
    below = below.map(lambda t: t * inverse)
    return Interval(*rounding.widened(below.lower, below.upper, ulps=16))


@weights_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm_weights(
    layer: BatchNorm,
    x: Interval,
    grad: Interval,
    weight: Interval | None,
    bias: Interval | None,
    *,
    summed: bool,
) -> dict[str, Interval]:
    """The normalised input times the gradient, summed over the positions of each channel."""
    mean, inverse = _statistics(layer, x)
    normal = x.map(lambda t: (t - mean) * inverse)
    scale = (x.magnitude + mean.abs()) * inverse if rounding.active() else None
    normal = Interval(*rounding.widened(normal.lower, normal.upper, ulps=16, scale=scale))
    dims = (*((0,) if summed else ()), *range(2, x.lower.dim()))
    return {"weight": total(grad * normal, dims), "bias": total(grad, dims)}


def broadcast_terms(layer: nn.Module, x: Interval, value: Interval) -> tuple[int, int]:
    """One, and as many outputs as share an entry of x."""
    return 1, prod(torch.broadcast_shapes(x.shape, value.shape)) // max(1, prod(x.shape))


@forward_rule(Scale, parameters=("value",), affine=True, terms=broadcast_terms)
def scale(layer: Scale, x: Interval, value: Interval) -> Interval:
    """`x * value`."""
    return x * _factor(layer, value)


@backward_rule(Scale)
def scale_vjp(layer: Scale, x: Interval, grad: Interval, value: Interval) -> Interval:
    """`g * value`, summed where x was broadcast."""
    return reduced(grad * _factor(layer, value), (len(grad), *x.shape[1:]))


@weights_rule(Scale)
def scale_weights(layer: Scale, x: Interval, grad: Interval, value: Interval, *, summed: bool) -> dict[str, Interval]:
    """`g * x`, summed where value was broadcast."""
    if layer.divide:
        raise UnsupportedModelError("the gradient with respect to a parameter that divides is not supported")
    return {"value": operand_gradient(grad * x, value, summed)}


def shift_size(layer: Shift, x: Interval, value: Interval) -> Tensor:
    """`|x| + |value|`."""
    return x.lower + value.lower


@forward_rule(Shift, parameters=("value",), affine=True, additive=True, terms=broadcast_terms, size=shift_size)
def shift(layer: Shift, x: Interval, value: Interval) -> Interval:
    """`x + sign * value`."""
    return x + (value if layer.sign == 1 else -value)


@backward_rule(Shift)
def shift_vjp(layer: Shift, x: Interval, grad: Interval, value: Interval) -> Interval:
    """`g`, summed where x was broadcast."""
    return reduced(grad, (len(grad), *x.shape[1:]))


@weights_rule(Shift)
def shift_weights(layer: Shift, x: Interval, grad: Interval, value: Interval, *, summed: bool) -> dict[str, Interval]:
    """`sign * g`, summed where value was broadcast."""
    return {"value": operand_gradient(grad if layer.sign == 1 else -grad, value, summed)}


def padding(layer: Conv, weight: torch.Size) -> tuple[list[int], list[int]]:
    """The zeros before and after each axis."""
    if isinstance(layer.padding, str):
        extent = [
            d * (k - 1) if layer.padding == "same" else 0 for d, k in zip(layer.dilation, weight[2:], strict=True)
        ]
        return [e // 2 for e in extent], [e - e // 2 for e in extent]
    return list(layer.padding), list(layer.padding)


def check_convolution(layer: nn.modules.conv._ConvNd, x: Interval) -> None:
    """Raises UnsupportedModelError for paddings that are not zeros, and for kernels that outward rounding excludes."""
    if layer.padding_mode != "zeros":
        raise UnsupportedModelError(
            f"{type(layer).__name__} with padding_mode={layer.padding_mode!r} is bounded as a padding and a convolution"
        )
    if rounding.active() and x.lower.is_cuda and torch.backends.cudnn.enabled:
        raise UnsupportedModelError(
            'rounding="outward" does not cover cuDNN, whose convolutions may use Winograd or FFT; '
            "set torch.backends.cudnn.enabled = False"
        )


def _patches(layer: Conv, padded: Tensor, positions: torch.Size, weight: torch.Size) -> Tensor:
    """Returns what each output position of a convolution sees: (batch, groups, channels * kernel, positions)."""
    if padded.dim() == 5:
        patches = padded
        for axis, (k, d, s) in enumerate(zip(weight[2:], layer.dilation, layer.stride, strict=True), start=2):
            patches = patches.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
        # The axes are samples, channels, positions and kernel.
        patches = patches.movedim((-3, -2, -1), (2, 3, 4)).flatten(1, 4).flatten(2)
        return patches.reshape(len(padded), layer.groups, patches.shape[1] // layer.groups, prod(positions))
    if padded.dim() == 3:
        padded = padded.unsqueeze(2)
    leading = [1] * (4 - len(weight))
    kernel, dilation, stride = (tuple(leading) + tuple(v) for v in (weight[2:], layer.dilation, layer.stride))
    patches = F.unfold(padded, kernel, dilation, 0, stride)
    return patches.reshape(len(padded), layer.groups, patches.shape[1] // layer.groups, prod(positions))


def _statistics(layer: BatchNorm, x: Interval) -> tuple[Tensor, Tensor]:
    if layer.running_mean is None or layer.running_var is None:
        raise UnsupportedModelError(
            f"{type(layer).__name__} without running statistics couples the samples of a batch, so it has no bounds; "
            "train with track_running_stats=True, or normalise each sample, as GroupNorm does"
        )
    return _channels(layer.running_mean, x), _channels(torch.rsqrt(layer.running_var + layer.eps), x)


def _channels(t: Tensor, x: Interval) -> Tensor:
    return t.view(-1, *[1] * (x.lower.dim() - 2))


def _factor(layer: Scale, value: Interval) -> Interval:
    if not layer.divide:
        return value
    if not value.is_point:
        raise UnsupportedModelError("an interval of a parameter that divides is not supported")
    return (
        Interval(*rounding.widened(value.lower.reciprocal(), value.lower.reciprocal()))
        if rounding.active()
        else (value.map(torch.reciprocal))
    )


def operand_gradient(g: Interval, value: Interval, summed: bool) -> Interval:
    """The gradient of an operand that was broadcast to g's shape: of the whole batch, or of each sample."""
    if summed:
        return reduced(g, tuple(value.shape))
    missing = g.lower.dim() - value.lower.dim()
    if missing <= 0:  # value has an axis for the batch itself, of length one
        return reduced(g, (len(g), *value.shape[1:])).map(lambda t: t.unsqueeze(1))
    shape = (len(g), *[1] * (missing - 1), *value.shape)
    return reduced(g, shape).map(lambda t: t.reshape(len(g), *value.shape))
