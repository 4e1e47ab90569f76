"""Rules of constants, and of sums of products with them: matrix products and `einsum`."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Constant, Contraction
from robust_plugins.intervals.products import product
from robust_plugins.intervals.rules.linear import operand_gradient
from robust_plugins.intervals.rules.registry import backward_rule, forward_rule, weights_rule


def constant_terms(layer: Constant, x: Interval, value: Interval) -> tuple[int, int]:
    """Nothing is added."""
    return 0, 0


@forward_rule(Constant, parameters=("value",), affine=True, additive=True, terms=constant_terms)
def constant(layer: Constant, x: Interval, value: Interval) -> Interval:
    """`value`, for every sample."""
    return value.map(lambda v: v.expand(len(x), *layer.shape))


@backward_rule(Constant)
def constant_vjp(layer: Constant, x: Interval, grad: Interval, value: Interval) -> Interval:
    """Nothing depends on the input."""
    return Interval.point(x.lower.new_zeros(()).expand(len(grad), *x.shape[1:]))


@weights_rule(Constant)
def constant_weights(
    layer: Constant, x: Interval, grad: Interval, value: Interval, *, summed: bool
) -> dict[str, Interval]:
    """The gradient itself, of one sample or of all, summed where the value was broadcast."""
    return {"value": operand_gradient(grad, value, summed)}


def contraction_terms(layer: Contraction, x: Interval, value: Interval) -> tuple[int, int]:
    """The axes that the result does not have, and those that x does not have."""
    first, second, _ = operands(layer.equation)
    sizes = dict(zip(second, value.shape, strict=True))
    return terms_of(layer.equation, x, value), prod(n for letter, n in sizes.items() if letter not in first)


@forward_rule(Contraction, parameters=("value",), affine=True, terms=contraction_terms)
def contraction(layer: Contraction, x: Interval, value: Interval) -> Interval:
    """`sum x value`, over the axes that the result does not have."""
    first, second, result = operands(layer.equation)
    equation = f"{first},{second}->{result}"
    return product(lambda s, v: torch.einsum(equation, s, v), x, value, terms=terms_of(equation, x, value))


@backward_rule(Contraction)
def contraction_vjp(layer: Contraction, x: Interval, grad: Interval, value: Interval) -> Interval:
    """The same with result and x in each other's place."""
    first, second, result = operands(layer.equation)
    equation = f"{result},{second}->{first}"
    terms = terms_of(equation, grad, value)
    return product(lambda g, v: torch.einsum(equation, g, v), grad, value, terms=terms)


@weights_rule(Contraction)
def contraction_weights(
    layer: Contraction, x: Interval, grad: Interval, value: Interval, *, summed: bool
) -> dict[str, Interval]:
    """The same with result and constant in each other's place; the batch is summed, or stays."""
    first, second, result = operands(layer.equation)
    equation = f"{result},{first}->{second if summed else first[0] + second}"

    def of(g: Tensor, s: Tensor) -> Tensor:
        found = torch.einsum(equation, g, s)
        return found.sum_to_size(value.shape if summed else (len(s), *value.shape))

    terms = terms_of(equation, grad, x) * max(1, prod(grad.shape) // max(1, prod(value.shape)))
    return {"value": product(of, grad, x, terms=terms)}


def operands(equation: str) -> tuple[str, str, str]:
    """The letters of the axes of both operands and of the result."""
    inputs, _, result = equation.partition("->")
    first, _, second = inputs.partition(",")
    return first, second, result


def terms_of(equation: str, first: Interval, second: Interval) -> int:
    """The number of products in one entry of the result."""
    one, two, result = operands(equation)
    sizes = dict(zip(one + two, (*first.shape, *second.shape), strict=True))
    return prod(n for letter, n in sizes.items() if letter not in result)
