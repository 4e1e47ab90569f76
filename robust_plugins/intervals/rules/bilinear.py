"""Rules of sums of products of two inputs: matrix products, `einsum`, and the weighted means of attention."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Product, WeightedMean
from robust_plugins.intervals.products import product
from robust_plugins.intervals.rules import simplex
from robust_plugins.intervals.rules.contractions import operands, terms_of
from robust_plugins.intervals.rules.registry import LinearBound, backward_rule, forward_rule, relaxation_rule

ROW = "Z"
"""The letter of the rows of coefficients."""
MEANS = 2**22
"""Entries that the exact range of weighted means may take; above it they are bounded as products."""


@forward_rule(Product)
def bilinear(layer: Product, x: Interval, y: Interval) -> Interval:
    """The sum of the products."""
    return _einsum(layer.equation, x, y)


@backward_rule(Product)
def bilinear_vjp(layer: Product, x: Interval, y: Interval, grad: Interval) -> tuple[Interval, Interval]:
    """The same with the result in either factor's place."""
    first, second, result = operands(layer.equation)
    return _einsum(f"{result},{second}->{first}", grad, y), _einsum(f"{result},{first}->{second}", grad, x)


@relaxation_rule(Product, outward=True)
def bilinear_relaxation(layer: Product, x: Interval, y: Interval) -> tuple[LinearBound, LinearBound]:
    """`x y` lies within `r s` of `c y + x d - c d`, for x in `c +- r` and y in `d +- s`: McCormick's planes, mixed."""
    first, second, result = operands(layer.equation)
    a, b = x.center, y.center

    def transpose(k: Tensor) -> tuple[Tensor, Tensor]:
        rows = result[0] + ROW + result[1:]
        return (
            torch.einsum(f"{rows},{second}->{first[0]}{ROW}{first[1:]}", k, b),
            torch.einsum(f"{rows},{first}->{second[0]}{ROW}{second[1:]}", k, a),
        )

    middle, spread = -torch.einsum(layer.equation, a, b), torch.einsum(layer.equation, x.radius, y.radius)
    low, up = _widened(layer.equation, x, y, middle - spread, middle + spread)
    return LinearBound(transpose, low), LinearBound(transpose, up)


@forward_rule(WeightedMean)
def weighted_mean(layer: WeightedMean, x: Interval, y: Interval) -> Interval:
    """The range over all weights of the box that sum to one, exact; for many entries as a product, and within y's."""
    found = _einsum(matrix_product(x.lower.dim()), x, y)
    if x.is_point and y.is_point:
        return found
    if x.lower.numel() * y.shape[-1] <= MEANS:
        return found.agreeing(simplex.mean(*(_aligned(x, y))))
    hull = Interval(y.lower.amin(-2, True).expand(found.shape), y.upper.amax(-2, True).expand(found.shape))
    slack = rounding.kappa(4 * x.shape[-1], x.dtype) * hull.magnitude if rounding.active() else 0.0
    return found.agreeing(Interval(hull.lower - slack, hull.upper + slack))


@backward_rule(WeightedMean)
def weighted_mean_vjp(layer: WeightedMean, x: Interval, y: Interval, grad: Interval) -> tuple[Interval, Interval]:
    """`g y^T`, and for each y the weighted sum of the gradients."""
    axes = "abcdefgh"[: x.lower.dim() - 2]
    to_x = _einsum(f"{axes}ij,{axes}kj->{axes}ik", grad, y)
    return to_x, _einsum(f"{axes}ij,{axes}ik->{axes}kj", grad, x)


@relaxation_rule(WeightedMean, outward=True)
def weighted_mean_relaxation(layer: WeightedMean, x: Interval, y: Interval) -> tuple[LinearBound, LinearBound]:
    """Lines of products of the weights with y less a weighted mean m of its centres: `sum x y = m + sum x (y - m)`.

    So the weights' coefficients are small, whatever y's size.
    """
    a, b = x.center, y.center
    shares = a / a.sum(-1, keepdim=True)
    mean = shares @ b
    spread = x.radius @ y.radius

    def transpose(k: Tensor) -> tuple[Tensor, Tensor]:
        to_x = k @ b.mT.unsqueeze(1)
        to_x = to_x - (to_x * shares.unsqueeze(1)).sum(-1, keepdim=True)
        return to_x, a.mT.unsqueeze(1) @ k

    middle = mean - a @ b
    low, up = middle - spread, middle + spread
    if rounding.active():  # the means' errors, and that weights sum to one but for theirs
        room = rounding.kappa(4 * (a.shape[-1] + b.shape[-1]), a.dtype) * (shares @ y.magnitude)
        low, up = low - room, up + room
    low, up = _widened(matrix_product(a.dim()), x, y, low, up)
    return LinearBound(transpose, low), LinearBound(transpose, up)


def matrix_product(rank: int) -> str:
    """The equation of `x @ y` for two tensors with equal outer axes."""
    axes = "abcdefgh"[: rank - 2]
    return f"{axes}ik,{axes}kj->{axes}ij"


def _aligned(x: Interval, y: Interval) -> tuple[Interval, Interval]:
    """Weights and values with the axis of the sum last: (..., rows, 1, n) and (..., 1, columns, n)."""
    return x.map(lambda t: t.unsqueeze(-2)), y.map(
        lambda t: t.mT.unsqueeze(-3).expand(*t.shape[:-2], x.shape[-2], t.shape[-1], t.shape[-2])
    )


def _einsum(equation: str, x: Interval, y: Interval) -> Interval:
    return product(lambda a, b: torch.einsum(equation, a, b), x, y, terms=terms_of(equation, x, y))


def _widened(equation: str, x: Interval, y: Interval, low: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Moved apart by the errors of the sums: of the network's, and of those of coefficients on their way back."""
    if not rounding.active():
        return low, up
    first, second, _ = operands(equation)
    sizes = dict(zip(first + second, (*x.shape, *y.shape), strict=True))
    back = (prod(n for letter, n in sizes.items() if letter not in one) for one in (first, second))
    terms = terms_of(equation, x, y) + sum(back)
    slack = 4 * rounding.kappa(terms, x.dtype) * torch.einsum(equation, x.magnitude, y.magnitude)
    slack = slack + rounding.underflow(terms, x.dtype)
    return low - slack, up + slack
