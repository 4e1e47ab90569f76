"""Layers for what a model computes between its modules: sums, constants, rearrangements, clamps and comparisons.

Tracing turns functional calls into these, or into the module of `torch.nn` that does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Input(nn.Module):
    """The model's input: node 0 of every graph."""


class Add(nn.Module):
    """The sum of two inputs of one shape; the second is subtracted where `sign` is -1."""

    def __init__(self, sign: int = 1) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return x + self.sign * y


class Multiply(nn.Module):
    """The elementwise product of two inputs of one shape.

    `factors` says of how many numbers in all it is the product, where a library multiplies them in another order.
    """

    def __init__(self, factors: int = 2) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return x * y


class Shift(nn.Module):
    """`x + sign * value`, with a constant that broadcasts against x."""

    def __init__(self, sign: int = 1) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, x: Tensor, value: Tensor) -> Tensor:  # noqa: D102
        return x + self.sign * value


class Scale(nn.Module):
    """`x * value`, or with `divide` `x / value`, with a constant that broadcasts against x."""

    def __init__(self, *, divide: bool = False) -> None:
        super().__init__()
        self.divide = divide

    def forward(self, x: Tensor, value: Tensor) -> Tensor:  # noqa: D102
        return x / value if self.divide else x * value


class Reshape(nn.Module):
    """Each sample reshaped to `shape`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.reshape(len(x), *self.shape)


class Permute(nn.Module):
    """The axes in the order `dims`; axis 0 stays the batch."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.permute(self.dims)


class Index(nn.Module):
    """`x[:, *index]`: entries of each sample, by integers, slices and one ellipsis."""

    def __init__(self, index: tuple[Any, ...]) -> None:
        super().__init__()
        self.index = index

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x[(slice(None), *self.index)]


class Cat(nn.Module):
    """The inputs joined along an axis that is not the batch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *inputs: Tensor) -> Tensor:  # noqa: D102
        return torch.cat(inputs, self.dim)


class Reduce(nn.Module):
    """The sum over axes of each sample, or with `mean` the average."""

    def __init__(self, dims: tuple[int, ...], keepdim: bool, mean: bool) -> None:
        super().__init__()
        self.dims, self.keepdim, self.mean = dims, keepdim, mean

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.mean(self.dims, self.keepdim) if self.mean else x.sum(self.dims, self.keepdim)


class Clamp(nn.Module):
    """`torch.clamp`: like Hardtanh, but its gradient at the ends is 1, and an end may be missing."""

    def __init__(self, low: float | None, high: float | None) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.clamp(self.low, self.high)


class Step(nn.Module):
    """The perceptron's step: 1 where `x > threshold` (with `closed`, `x >= threshold`), else 0. Its slope is 0."""

    def __init__(self, threshold: float = 0.0, *, closed: bool = False) -> None:
        super().__init__()
        self.threshold, self.closed = threshold, closed

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return (x >= self.threshold if self.closed else x > self.threshold).to(x.dtype)


class Moved(nn.Module):
    """`function(x, *args, **kwargs)`, which moves, repeats or leaves out entries of each sample, or sets constants."""

    def __init__(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.function, self.args, self.kwargs = function, args, kwargs

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.function(x, *self.args, **self.kwargs)


class Choose(nn.Module):
    """`torch.where(condition, x, y)` with a fixed condition that broadcasts against the samples."""

    def __init__(self, condition: Tensor) -> None:
        super().__init__()
        self.condition = condition

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return torch.where(self.condition, x, y)


class Constant(nn.Module):
    """The same `value` for every sample, whatever the input, broadcast to samples of `shape`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor, value: Tensor) -> Tensor:  # noqa: D102
        return value.expand(len(x), *self.shape)


class Contraction(nn.Module):
    """`torch.einsum(equation, x, value)`: x times a constant, summed over axes that are not the batch.

    The equation names every axis by a letter, the batch by the first of x's.
    """

    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation

    def forward(self, x: Tensor, value: Tensor) -> Tensor:  # noqa: D102
        return torch.einsum(self.equation, x, value)


class Product(nn.Module):
    """`torch.einsum(equation, x, y)` of two inputs, summed over axes that are not the batch."""

    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return torch.einsum(self.equation, x, y)


class WeightedMean(nn.Module):
    """`x @ y`, where the last axis of x holds weights that are not negative and sum to one, as softmax has them."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        return x @ y


class Pointwise(nn.Module):
    """A function of `torch` by its name, such as `exp`, applied to each entry."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        result: Tensor = getattr(torch, self.name)(x)
        return result


class Power(nn.Module):
    """`x ** exponent`, with a fixed number."""

    def __init__(self, exponent: float) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x**self.exponent


class Extreme(nn.Module):
    """The larger of two inputs, entry by entry, or with `least` the smaller.

    Where both are equal, the gradient of the first is `tie`, of the second `1 - tie`: as clamping has it, or the mean.
    """

    def __init__(self, *, least: bool = False, tie: float = 0.5) -> None:
        super().__init__()
        self.least, self.tie = least, tie

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: D102
        if self.tie == 1:
            return x.clamp(max=y) if self.least else x.clamp(min=y)
        return torch.minimum(x, y) if self.least else torch.maximum(x, y)


class Largest(nn.Module):
    """The largest value along axes of each sample, rising from 1, or with `least` the smallest.

    Where several are equal, they share the gradient, or with `first` the first has it, as in `x.max(dim)`.
    """

    def __init__(self, dims: tuple[int, ...], keepdim: bool, *, least: bool = False, first: bool = False) -> None:
        super().__init__()
        self.dims, self.keepdim, self.least, self.first = dims, keepdim, least, first

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if self.first:
            (dim,) = self.dims
            return (x.min(dim, self.keepdim) if self.least else x.max(dim, self.keepdim)).values
        return x.amin(self.dims, self.keepdim) if self.least else x.amax(self.dims, self.keepdim)


class Ranked(nn.Module):
    """The values along an axis at `places` of their rising order: 0 is the smallest, and no place comes twice.

    Sorting has all places, the median one; entries that are equal may take each other's.
    """

    def __init__(self, dim: int, places: tuple[int, ...]) -> None:
        super().__init__()
        self.dim, self.places = dim, places

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        ordered = x.sort(self.dim).values
        return ordered.index_select(self.dim, torch.tensor(self.places, device=x.device))


class Length(nn.Module):
    """The Euclidean length along axes of each sample, rising from 1; its gradient at zero is zero."""

    def __init__(self, dims: tuple[int, ...], keepdim: bool) -> None:
        super().__init__()
        self.dims, self.keepdim = dims, keepdim

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        result: Tensor = torch.linalg.vector_norm(x, 2, self.dims, self.keepdim)
        return result


class LogSumExp(nn.Module):
    """The logarithm of the sum of exponentials along axes of each sample, rising from 1."""

    def __init__(self, dims: tuple[int, ...], keepdim: bool) -> None:
        super().__init__()
        self.dims, self.keepdim = dims, keepdim

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.logsumexp(x, self.dims, self.keepdim)
