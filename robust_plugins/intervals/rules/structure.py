"""Rules of the layers that add up, average or rearrange values with fixed non-negative weights."""

from __future__ import annotations

from math import ceil, prod

import torch
from torch import Tensor, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Add, Cat, Index, Input, Multiply, Permute, Reduce, Reshape
from robust_plugins.intervals.products import reduced, summing
from robust_plugins.intervals.rules.registry import backward_rule, forward_rule

REARRANGING = (nn.Flatten, nn.Unflatten, nn.ZeroPad1d, nn.ZeroPad2d, Reshape, Permute, Index)
AVERAGING = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, Reduce)
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)


@forward_rule(Input)
def input_itself(layer: Input) -> Interval:
    """Never called: the input's interval is given."""
    raise NotImplementedError


@forward_rule(*IDENTITIES, affine=True)
def identity(layer: nn.Module, x: Interval) -> Interval:
    """In evaluation mode dropout does nothing."""
    return x


@backward_rule(*IDENTITIES)
def identity_vjp(layer: nn.Module, x: Interval, grad: Interval) -> Interval:
    """The identity sends gradients back as they are."""
    return grad


@forward_rule(*REARRANGING, affine=True)
def rearrange(layer: nn.Module, x: Interval) -> Interval:
    """The bounds move with the values."""
    return x.map(layer.forward)  # its hooks have nodes of their own


@backward_rule(*REARRANGING)
def rearrange_vjp(layer: nn.Module, x: Interval, grad: Interval) -> Interval:
    """The gradient moves back."""
    return grad.map(lambda g: _transposed(layer, x, g))


@forward_rule(*AVERAGING, affine=True)
def average(layer: nn.Module, x: Interval) -> Interval:
    """Weights are not negative, so the bounds map to the bounds."""
    _check_divisor(layer)
    return summing(x, layer.forward, _terms(layer, x))


@backward_rule(*AVERAGING)
def average_vjp(layer: nn.Module, x: Interval, grad: Interval) -> Interval:
    """The transposed weights are not negative either."""
    _check_divisor(layer)
    return summing(grad, lambda g: _transposed(layer, x, g), _terms(layer, x))


@forward_rule(Add, affine=True)
def add(layer: Add, x: Interval, y: Interval) -> Interval:
    """`x + y` or `x - y`."""
    return x + (y if layer.sign == 1 else -y)


@backward_rule(Add)
def add_vjp(layer: Add, x: Interval, y: Interval, grad: Interval) -> tuple[Interval, Interval]:
    """The gradient goes to both."""
    to_y = grad if layer.sign == 1 else -grad
    return reduced(grad, (len(grad), *x.shape[1:])), reduced(to_y, (len(grad), *y.shape[1:]))


@forward_rule(Multiply)
def multiply(layer: Multiply, x: Interval, y: Interval) -> Interval:
    """`x * y`."""
    return x * y


@backward_rule(Multiply)
def multiply_vjp(layer: Multiply, x: Interval, y: Interval, grad: Interval) -> tuple[Interval, Interval]:
    """`g y` and `g x`."""
    return reduced(grad * y, tuple(x.shape)), reduced(grad * x, tuple(y.shape))


@forward_rule(Cat, affine=True)
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
        (below,) = torch.autograd.grad(layer.forward(zeros), zeros, grad, create_graph=differentiable)
    return below


def _check_divisor(layer: nn.Module) -> None:
    if isinstance(layer, nn.AvgPool2d) and layer.divisor_override is not None and layer.divisor_override < 1:
        raise UnsupportedModelError(
            f"AvgPool2d with divisor_override={layer.divisor_override} is no average; give it a number above 0"
        )


def _terms(layer: nn.Module, x: Interval) -> int:
    """The largest number of values that one sum of the layer, or of its transpose, adds up."""
    if isinstance(layer, Reduce):
        return prod(x.shape[d] for d in layer.dims)
    if isinstance(layer, nn.AvgPool1d | nn.AvgPool2d):
        size = layer.kernel_size
        return prod(size) if isinstance(size, tuple) else int(size) ** (x.lower.dim() - 2)
    target = layer.output_size
    targets = target if isinstance(target, tuple) else (target,) * (x.lower.dim() - 2)
    return prod(max(ceil(n / (t or n)) + 1, ceil((t or n) / n) + 1) for n, t in zip(x.shape[2:], targets, strict=True))
