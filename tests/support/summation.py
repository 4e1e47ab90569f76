"""Networks that cancel, and evaluations of networks in other orders of summation, in floating point and exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sum = Callable[[Tensor, torch.Generator], Tensor]


def shuffled(terms: Tensor, draw: torch.Generator) -> Tensor:
    """The sum over the last axis, one term after the other, in an order of its own."""
    total = torch.zeros_like(terms[..., 0])
    for k in torch.randperm(terms.shape[-1], generator=draw).tolist():
        total = total + terms[..., k]
    return total


def by_size(terms: Tensor, draw: torch.Generator) -> Tensor:
    """The sum from the largest term to the smallest, or the other way round."""
    order = terms.abs().argsort(-1, descending=bool(torch.rand((), generator=draw) < 0.5))
    total = torch.zeros_like(terms[..., 0])
    for part in terms.gather(-1, order).unbind(-1):
        total = total + part
    return total


def in_pairs(terms: Tensor, draw: torch.Generator) -> Tensor:
    """The sum of sums of two neighbours, and so on."""
    terms = terms[..., torch.randperm(terms.shape[-1], generator=draw)]
    while terms.shape[-1] > 1:
        terms = F.pad(terms, (0, terms.shape[-1] % 2))
        terms = terms[..., 0::2] + terms[..., 1::2]
    return terms[..., 0]


ORDERS: tuple[Sum, ...] = (shuffled, by_size, in_pairs)


def evaluated(model: nn.Sequential, x: Tensor, order: Sum, draw: torch.Generator) -> Tensor:
    """The model's output, with the terms and the bias of every linear layer and convolution added up in that order."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            x = order(_terms(x, layer.weight, layer.bias), draw)
        elif isinstance(layer, nn.Conv2d):
            sizes = layer(x[:1]).shape[2:]
            patches = F.unfold(x, layer.kernel_size, 1, layer.padding, layer.stride).mT
            x = order(_terms(patches, layer.weight.flatten(1), layer.bias), draw).mT.unflatten(2, sizes)
        elif isinstance(layer, Residual):
            x = x + evaluated(layer.inner, x, order, draw)
        else:
            x = layer(x)
    return x


def exactly(model: nn.Sequential, values: list[Fraction]) -> list[Fraction]:
    """The output at one point in rational numbers, of linear layers, ReLUs and residual blocks of these."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            values = [
                sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(b))
                for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            ]
        elif isinstance(layer, Residual):
            values = [a + b for a, b in zip(values, exactly(layer.inner, values), strict=True)]
        else:
            assert isinstance(layer, nn.ReLU)
            values = [max(v, Fraction(0)) for v in values]
    return values


def permuted(model: nn.Sequential, draw: torch.Generator) -> nn.Sequential:
    """The same network of linear layers and ReLUs with its hidden neurons in another order."""
    found = copy.deepcopy(model)
    linear = [layer for layer in found if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for one, two in pairwise(linear):
            order = torch.randperm(len(one.weight), generator=draw)
            one.weight.copy_(one.weight[order].clone())
            one.bias.copy_(one.bias[order].clone())
            two.weight.copy_(two.weight[:, order].clone())
    return found


class Residual(nn.Module):
    """`x + inner(x)`."""

    def __init__(self, inner: nn.Sequential) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.inner(x)
        return result


def _terms(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The products that each output adds up, and the bias: (..., outputs, terms)."""
    products = x.unsqueeze(-2) * weight
    if bias is None:
        return products
    return torch.cat((products, bias.view(-1, 1).expand(*products.shape[:-1], 1)), -1)


def cancelling(kind: str, dtype: torch.dtype, draw: torch.Generator) -> tuple[nn.Sequential, Tensor]:
    """A network whose sums cancel, so that what it computes depends on their order; and inputs.

    - `shifted`: hidden neurons carry a large constant, which the next layer takes away again
    - `stable`: so do these, and what is left stays above zero: everything is linear
    - `magnitudes`: weights of very different size
    - `hidden`: `c + 1 - c` in a hidden layer, of features that are equal at the center
    - `logits`: the same in the logits alone, of hidden neurons that are equal
    - `residual`: blocks that take away what the shortcut carries
    - `smooth`: `shifted` with tanh and softplus in between
    - `image`: convolutions, pooling and a shift
    """
    large = 2.0**26 if dtype == torch.float32 else 2.0**42  # so that tracing sees one function

    def linear(inputs: int, outputs: int, scale: float = 1.0, shift: float = 0.0) -> nn.Linear:
        layer = nn.Linear(inputs, outputs, dtype=dtype)
        with torch.no_grad():
            layer.weight.copy_(scale * torch.randn(outputs, inputs, generator=draw) / inputs**0.5)
            layer.bias.copy_(0.3 * torch.randn(outputs, generator=draw) + shift)
        return layer

    def undone(layer: nn.Linear, by: float) -> nn.Linear:
        """The bias less what a constant in all inputs adds."""
        with torch.no_grad():
            layer.bias -= (by * layer.weight.double().sum(1)).to(dtype)
        return layer

    def repeated(layer: nn.Linear, by: float) -> nn.Linear:
        """Large weights with two signs for two inputs each, which cancel where these are equal."""
        with torch.no_grad():
            sign = torch.randn(layer.weight.shape[0], 1, generator=draw).sign().to(dtype)
            layer.weight[:, :1], layer.weight[:, -1:] = by * sign, -by * sign
        return layer

    x = torch.rand(3, 6, generator=draw, dtype=dtype)
    x[:, -1] = x[:, 0]
    some = large / 64
    if kind == "shifted":
        return nn.Sequential(
            linear(6, 8, shift=some), nn.ReLU(), undone(linear(8, 8), some), nn.ReLU(), linear(8, 3)
        ), x
    if kind == "stable":
        layers = [linear(6, 8, shift=some), nn.ReLU(), undone(linear(8, 8, shift=64), some), nn.ReLU(), linear(8, 3)]
        return nn.Sequential(*layers), x
    if kind == "magnitudes":
        layers = [linear(6, 8), nn.ReLU(), linear(8, 8), nn.ReLU(), linear(8, 3)]
        with torch.no_grad():
            for layer in layers[::2]:
                layer.weight *= 10 ** (6 * torch.rand(layer.weight.shape, generator=draw, dtype=dtype) - 3)
        return nn.Sequential(*layers), x
    if kind == "hidden":
        return nn.Sequential(repeated(linear(6, 8), large), nn.ReLU(), linear(8, 8), nn.ReLU(), linear(8, 3)), x
    if kind == "logits":
        first = linear(6, 8)
        with torch.no_grad():
            first.weight[-1], first.bias[-1] = first.weight[0], first.bias[0]
        return nn.Sequential(first, nn.ReLU(), repeated(linear(8, 3), large)), x
    if kind == "residual":
        block = linear(6, 6)
        with torch.no_grad():
            block.weight -= torch.eye(6, dtype=dtype)
        inner = nn.Sequential(linear(6, 6, shift=some), nn.ReLU(), undone(linear(6, 6), some))
        return nn.Sequential(Residual(nn.Sequential(block)), Residual(inner), nn.ReLU(), linear(6, 3)), x
    if kind == "smooth":
        return nn.Sequential(
            linear(6, 8, shift=some), nn.ReLU(), undone(linear(8, 8), some), nn.Tanh(), linear(8, 8), nn.Softplus(),
            repeated(linear(8, 3), 100.0),
        ), x  # fmt: skip
    conv, other = nn.Conv2d(1, 3, 3, padding=1, dtype=dtype), nn.Conv2d(3, 3, 2, stride=2, dtype=dtype)
    with torch.no_grad():
        conv.bias += some
        other.bias -= some * other.weight.sum((1, 2, 3))
    return nn.Sequential(
        conv, nn.ReLU(), other, nn.ReLU(), nn.Conv2d(3, 2, 2, dtype=dtype), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Flatten(),
        linear(2, 3),
    ), torch.rand(3, 1, 6, 6, generator=draw, dtype=dtype)  # fmt: skip


KINDS = ("shifted", "stable", "magnitudes", "hidden", "logits", "residual", "smooth", "image")
RATIONAL = ("shifted", "stable", "magnitudes", "hidden", "logits", "residual")
"""Those that can be evaluated in rational numbers."""
