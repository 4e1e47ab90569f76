"""Rules of the layers that add up, average or rearrange values with fixed non-negative weights."""

from __future__ import annotations

from math import ceil, prod

import torch
from torch import Tensor, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Add, Cat, Choose, Index, Input, Moved, Permute, Reduce, Reshape
from robust_plugins.intervals.products import reduced, summing
from robust_plugins.intervals.rules.registry import backward_rule, forward_rule

REARRANGING = (
    nn.Flatten, nn.Unflatten, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d,
    nn.ConstantPad3d, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, Reshape, Permute, Index,
)  # fmt: skip
"""Layers that take no entry twice."""
REPEATING = (
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d,
    nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d, nn.Unfold, Moved,
)  # fmt: skip
AVERAGING = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.Upsample, nn.Fold, Reduce,
)  # fmt: skip
IDENTITIES = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
INTERPOLATIONS = ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "area")
"""Modes of upsampling whose weights are not negative."""


@forward_rule(Input)
def input_itself(layer: Input) -> Interval:
    """Never called: the input's interval is given."""
    raise NotImplementedError


def no_terms(layer: nn.Module, *inputs: Interval) -> tuple[int, int]:
    """Entries are moved, and none is added."""
    return 0, 0


@forward_rule(*IDENTITIES, affine=True, terms=no_terms)
def identity(layer: nn.Module, x: Interval) -> Interval:
    """In evaluation mode dropout does nothing."""
    return x


@backward_rule(*IDENTITIES)
def identity_vjp(layer: nn.Module, x: Interval, grad: Interval) -> Interval:
    """The identity sends gradients back as they are."""
    return grad


@forward_rule(*REARRANGING, affine=True, terms=no_terms)
def rearrange(layer: nn.Module, x: Interval) -> Interval:
    """The bounds move with the values."""
    return x.map(layer.forward)  # its hooks have nodes of their own


@backward_rule(*REARRANGING)
def rearrange_vjp(layer: nn.Module, x: Interval, grad: Interval) -> Interval:
    """The gradient moves back."""
    return grad.map(lambda g: _transposed(layer, x, g))


def copied_terms(layer: nn.Module, x: Interval) -> tuple[int, int]:
    """The gradients of all copies of an entry are added up."""
    one = x.lower[:1]
    return 0, int(_transposed(layer, x, torch.ones_like(layer.forward(one))).max())


@forward_rule(*REPEATING, affine=True, terms=copied_terms)
def repeat(layer: nn.Module, x: Interval) -> Interval:
    """The bounds move with the values."""
    return x.map(layer.forward)


@backward_rule(*REPEATING)
def repeat_vjp(layer: nn.Module, x: Interval, grad: Interval) -> Interval:
    """The gradients of all copies of an entry add up."""
    copies = int(_transposed(layer, x, torch.ones_like(grad.lower)).max()) if rounding.active() else 0
    return summing(grad, lambda g: _transposed(layer, x, g), copies)


def _shared(shape: torch.Size, *inputs: Interval) -> int:
    """How many entries of an output of that shape, of one sample, share an entry of an input."""
    return max(prod(shape[1:]) // max(1, prod(i.shape[1:])) for i in inputs)


def chosen_terms(layer: Choose, x: Interval, y: Interval) -> tuple[int, int]:
    """The gradients of what was broadcast are added up."""
    copies = _shared(layer.forward(x.lower[:1], y.lower[:1]).shape, x, y)
    return (0, copies) if copies > 1 else (0, 0)


@forward_rule(Choose, affine=True, terms=chosen_terms)
def choose(layer: Choose, x: Interval, y: Interval) -> Interval:
    """The bounds of whichever is chosen."""
    low = layer.forward(x.lower, y.lower)
    return Interval(low, low if x.is_point and y.is_point else layer.forward(x.upper, y.upper))


@backward_rule(Choose)
def choose_vjp(layer: Choose, x: Interval, y: Interval, grad: Interval) -> tuple[Interval, Interval]:
    """The gradient goes to what was chosen."""
    to_x = grad.map(lambda g: torch.where(layer.condition, g, 0))
    to_y = grad.map(lambda g: torch.where(layer.condition, 0, g))
    return reduced(to_x, (len(grad), *x.shape[1:])), reduced(to_y, (len(grad), *y.shape[1:]))


def average_terms(layer: nn.Module, x: Interval) -> tuple[int, int]:
    """Counts as many products for an output as the gradient rule has for an input."""
    return _terms(layer, x), _terms(layer, x)


@forward_rule(*AVERAGING, affine=True, terms=average_terms)
def average(layer: nn.Module, x: Interval) -> Interval:
    """Weights are not negative, so the bounds map to the bounds."""
    _check_divisor(layer)
    return summing(x, layer.forward, _terms(layer, x))


@backward_rule(*AVERAGING)
def average_vjp(layer: nn.Module, x: Interval, grad: Interval) -> Interval:
    """The transposed weights are not negative either."""
    _check_divisor(layer)
    return summing(grad, lambda g: _transposed(layer, x, g), _terms(layer, x))


def added_terms(layer: Add, x: Interval, y: Interval) -> tuple[int, int]:
    """One, and the gradients of what was broadcast."""
    return 1, _shared(torch.broadcast_shapes(x.shape, y.shape), x, y)


def added_size(layer: Add, x: Interval, y: Interval) -> Tensor:
    """`|x| + |y|`."""
    return x.lower + y.lower


@forward_rule(Add, affine=True, terms=added_terms, size=added_size)
def add(layer: Add, x: Interval, y: Interval) -> Interval:
    """`x + y` or `x - y`."""
    return x + (y if layer.sign == 1 else -y)


@backward_rule(Add)
def add_vjp(layer: Add, x: Interval, y: Interval, grad: Interval) -> tuple[Interval, Interval]:
    """The gradient goes to both."""
    to_y = grad if layer.sign == 1 else -grad
    return reduced(grad, (len(grad), *x.shape[1:])), reduced(to_y, (len(grad), *y.shape[1:]))


@forward_rule(Cat, affine=True, terms=no_terms)
def cat(layer: Cat, *inputs: Interval) -> Interval:
    """The bounds joined."""
    return Interval.cat(inputs, layer.dim)


@backward_rule(Cat)
def cat_vjp(layer: Cat, *inputs_and_grad: Interval) -> tuple[Interval, ...]:
    """The gradient cut at the seams."""
    *inputs, grad = inputs_and_grad
    sizes = [i.shape[layer.dim] for i in inputs]
    lower = grad.lower.split(sizes, layer.dim)
    upper = lower if grad.is_point else grad.upper.split(sizes, layer.dim)
    return tuple(Interval(a, b) for a, b in zip(lower, upper, strict=True))


def _transposed(layer: nn.Module, x: Interval, grad: Tensor) -> Tensor:
    """The transpose of a linear layer, by reverse-mode differentiation; differentiable in `grad`."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        zeros = grad.new_zeros((len(grad), *x.shape[1:])).requires_grad_()
        # Given as grad_outputs, torch would import sympy to compare shapes: half a second, in a first call.
        (below,) = torch.autograd.grad((layer.forward(zeros) * grad).sum(), zeros, create_graph=differentiable)
    return below


def _check_divisor(layer: nn.Module) -> None:
    divisor = layer.divisor_override if isinstance(layer, nn.AvgPool2d | nn.AvgPool3d) else None
    if divisor is not None and divisor < 1:
        raise UnsupportedModelError(
            f"{type(layer).__name__} with divisor_override={divisor} is no average; give it a number above 0"
        )
    if isinstance(layer, nn.Upsample) and layer.mode not in INTERPOLATIONS:
        raise UnsupportedModelError(
            f"upsampling with mode={layer.mode!r} has no interval rule; use one of {', '.join(INTERPOLATIONS)}"
        )


def _terms(layer: nn.Module, x: Interval) -> int:
    """The largest number of values that one sum of the layer, or of its transpose, adds up."""
    if isinstance(layer, Reduce):
        return prod(x.shape[d] for d in layer.dims)
    if isinstance(layer, nn.Fold):
        return prod(layer.kernel_size) if isinstance(layer.kernel_size, tuple) else int(layer.kernel_size) ** 2
    if isinstance(layer, nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d):
        size = layer.kernel_size
        return prod(size) if isinstance(size, tuple) else int(size) ** (x.lower.dim() - 2)
    if isinstance(layer, nn.Upsample):
        # An entry is used by all outputs less than one step away; the library rounds the weights to the image's size.
        sizes = layer.forward(x.lower[:1]).shape[2:]
        uses = (2 * ceil(max(m / n, n / m)) + 2 for n, m in zip(x.shape[2:], sizes, strict=True))
        return prod(uses) + 4 * int(max(*sizes, *x.shape[2:]))
    target = layer.output_size
    targets = target if isinstance(target, tuple) else (target,) * (x.lower.dim() - 2)
    return prod(max(ceil(n / (t or n)) + 1, ceil((t or n) / n) + 1) for n, t in zip(x.shape[2:], targets, strict=True))
