"""Rules of transposed convolutions: what a convolution does to gradients, done to values."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.products import product, total
from robust_plugins.intervals.rules.linear import check_convolution
from robust_plugins.intervals.rules.registry import backward_rule, forward_rule, weights_rule

ConvTranspose = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
KINDS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_PLAIN = (F.conv1d, F.conv2d, F.conv3d)


def conv_transpose_terms(layer: ConvTranspose, x: Interval, weight: Interval, bias: Interval | None) -> tuple[int, int]:
    """Those of a convolution, exchanged."""
    return weight.shape[0] // layer.groups * prod(weight.shape[2:]), prod(weight.shape[1:])


@forward_rule(*KINDS, parameters=("weight", "bias"), affine=True, terms=conv_transpose_terms)
def conv_transpose(layer: ConvTranspose, x: Interval, weight: Interval, bias: Interval | None) -> Interval:
    """The transposed convolution, bilinear in input and kernel."""
    check_convolution(layer, x)
    f, options = _TRANSPOSED[_dims(weight) - 1], _options(layer)

    def of(s: Tensor, w: Tensor) -> Tensor:
        y: Tensor = f(s, w, output_padding=layer.output_padding, **options)
        return y

    shift = None if bias is None else bias.map(lambda b: b.view(-1, *[1] * _dims(weight)))
    return product(of, x, weight, terms=conv_transpose_terms(layer, x, weight, bias)[0], bias=shift)


@backward_rule(*KINDS)
def conv_transpose_vjp(
    layer: ConvTranspose, x: Interval, grad: Interval, weight: Interval, bias: Interval | None
) -> Interval:
    """The convolution, where the input has entries: what padded the output at its end may have room for more."""
    check_convolution(layer, x)
    f, options = _PLAIN[_dims(weight) - 1], _options(layer)
    inside: tuple[Any, ...] = (..., *(slice(n) for n in x.shape[2:]))
    terms = conv_transpose_terms(layer, x, weight, bias)[1]
    return product(lambda g, w: f(g, w, **options)[inside], grad, weight, terms=terms)


@weights_rule(*KINDS)
def conv_transpose_weights(
    layer: ConvTranspose, x: Interval, grad: Interval, weight: Interval, bias: Interval | None, *, summed: bool
) -> dict[str, Interval]:
    """The correlation of gradient and input: input and gradient of the convolution have changed places."""
    check_convolution(layer, x)
    positions = prod(x.shape[2:])
    spatial = tuple(range(2, x.lower.dim()))

    def of(s: Tensor, g: Tensor) -> Tensor:
        """Of each sample, by patches of the gradient."""
        patches = _patches(layer, g, x.shape[2:], weight.shape)
        s = s.reshape(len(s), layer.groups, weight.shape[0] // layer.groups, positions)
        return torch.einsum("bgop,bgkp->bgok", s, patches).reshape(len(s), *weight.shape)

    found = product((lambda s, g: of(s, g).sum(0)) if summed else of, x, grad, terms=positions * len(x))
    return {"weight": found, "bias": total(grad, (0, *spatial) if summed else spatial)}


def _patches(layer: ConvTranspose, grad: Tensor, positions: torch.Size, weight: torch.Size) -> Tensor:
    """The outputs that each entry of the input adds to: (batch, groups, channels * kernel, positions)."""
    dims = len(positions)
    # Where the output was padded at its end, more zeros do no harm.
    outside = [n for p, d, k in zip(*_reversed(layer.padding, layer.dilation, weight[2:]), strict=True)
               for n in (p, p + d * (k - 1))]  # fmt: skip
    patches = F.pad(grad, outside)
    for axis, (k, d, s) in enumerate(zip(weight[2:], layer.dilation, layer.stride, strict=True), start=2):
        patches = patches.unfold(axis, d * (k - 1) + 1, s)[..., ::d].narrow(axis, 0, positions[axis - 2])
    patches = patches.movedim(tuple(range(-dims, 0)), tuple(range(2, 2 + dims)))
    channels = weight[1] * layer.groups
    return patches.reshape(len(grad), layer.groups, channels // layer.groups * prod(weight[2:]), prod(positions))


def _reversed(*values: Any) -> list[list[int]]:
    return [list(reversed(v)) for v in values]


def _options(layer: ConvTranspose) -> dict[str, Any]:
    return {
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }


def _dims(weight: Interval) -> int:
    return weight.lower.dim() - 2
