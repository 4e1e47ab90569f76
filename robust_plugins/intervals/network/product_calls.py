"""Matrix products, `einsum` and attention: turned into layers that have rules."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals.layers import (
    Contraction,
    Moved,
    Permute,
    Product,
    Scale,
    Shift,
    WeightedMean,
)
from robust_plugins.intervals.network.calls import (
    _FUNCTIONS,
    Emit,
    Fixed,
    Indexed,
    _ArgumentsError,
    _known,
    _means,
    _samples,
)
from robust_plugins.intervals.network.structural_calls import LOWEST, _expanded, _filled
from robust_plugins.intervals.rules.bilinear import ROW, matrix_product


@_means(torch.matmul, "matmul", operator.matmul, torch.bmm, "bmm", torch.mm, "mm")
def _matmul(emit: Emit, input: Any, other: Any, *, like: Tensor) -> int:
    if isinstance(input, Indexed) and isinstance(other, Indexed):
        return _product(emit, input, other, like)
    if isinstance(input, Indexed):
        equation = _times_constant(input.like, _known(emit, other).dim())
        return emit(Contraction(equation), _matching(emit, input, like), value=other)
    equation = _constant_times(other.like, _known(emit, input).dim())
    return emit(Contraction(equation), _matching(emit, other, like), value=input)


def _product(emit: Emit, x: Indexed, y: Indexed, like: Tensor) -> int:
    """The matrix product of two values that depend on the input; by softmax a weighted mean."""
    if not x.like.dim() == y.like.dim() == like.dim() > 2:
        raise _ArgumentsError("both factors must be matrices for each sample, with equally many axes")
    softmax = emit.source(x.node)
    weights = isinstance(softmax, nn.Softmax) and softmax.dim in (-1, like.dim() - 1)
    layer = WeightedMean() if weights else Product(matrix_product(like.dim()))
    return emit(layer, _matching(emit, x, like), _matching(emit, y, like))


@_means(F.scaled_dot_product_attention)
def _attention(
    emit: Emit, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False, *, like: Tensor,
) -> int:  # fmt: skip
    if dropout_p > 0 or enable_gqa:
        raise _ArgumentsError("leave dropout_p at 0 unless self.training, and enable_gqa=False")
    if not all(isinstance(t, Indexed) for t in (query, key, value)):
        raise _ArgumentsError("query, key and value must depend on the model's input")
    mask = None if attn_mask is None else _known(emit, attn_mask)
    if is_causal:
        mask = torch.ones(query.like.shape[-2], key.like.shape[-2], dtype=torch.bool).tril()
    factor = query.like.shape[-1] ** -0.5 if scale is None else scale
    return attended(emit, query, key, value, factor, mask)[0]


def attended(
    emit: Emit, query: Indexed, key: Indexed, value: Indexed, factor: float, mask: Tensor | None
) -> tuple[int, int]:
    """Nodes of `softmax(factor query key^T + mask) value`, and of its weights.

    A mask is true where a query may look, or is added; its rows are one, the same, for every sample.
    """
    turned = emit(Permute((*range(key.like.dim() - 2), key.like.dim() - 1, key.like.dim() - 2)), key)
    scores = query.like @ key.like.mT
    found = emit(Product(matrix_product(scores.dim())), query, turned)
    found = emit(Scale(), found, value=factor)
    if mask is not None:
        away = ~mask if mask.dtype is torch.bool else mask.isneginf()
        if bool(away.all(-1).any()):
            raise UnsupportedModelError(
                "attention with a query that may look nowhere is not supported, as its weights are 0/0; let each query "
                "look at itself, at least"
            )
        if mask.dtype is not torch.bool:
            found = emit(Shift(), found, value=Fixed(mask.masked_fill(away, 0.0)))
        if bool(away.any()):
            found = emit(Moved(_filled, away, LOWEST), found)
    weights = emit(nn.Softmax(-1), found)
    return emit(WeightedMean(), weights, value), weights


@_means(torch.cumsum, "cumsum")
def _cumsum(emit: Emit, input: Any, dim: int, *, like: Tensor) -> int:
    return _along(emit, input, dim, torch.ones(2 * (like.shape[dim],)).triu())


@_means(torch.diff, "diff")
def _diff(emit: Emit, input: Any, n: int = 1, dim: int = -1, *, like: Tensor) -> int:
    matrix = torch.eye(like.shape[dim] + n)
    for _ in range(n):
        matrix = matrix[:, 1:] - matrix[:, :-1]
    return _along(emit, input, dim, matrix)


def _along(emit: Emit, x: Any, dim: int, matrix: Tensor) -> int:
    """The products of a matrix with the values along an axis of each sample."""
    if not isinstance(x, Indexed):
        raise _ArgumentsError("what it takes must depend on the model's input")
    (axis,) = _samples((dim,), x.like)
    letters = "abcdefgh"[: x.like.dim()]
    result = letters[:axis] + "z" + letters[axis + 1 :]
    return emit(Contraction(f"{letters},{letters[axis]}z->{result}"), x, value=Fixed(matrix.to(x.like)))


@_means(torch.addmm, "addmm", torch.baddbmm, "baddbmm")
def _addmm(emit: Emit, input: Any, one: Any, two: Any, *, like: Tensor) -> int:
    product = Indexed(_matmul(emit, one, two, like=like), like)
    return int(_FUNCTIONS[torch.add](emit, product, input, like=like))


@_means(torch.einsum)
def _einsum(emit: Emit, equation: str, *tensors: Any, like: Tensor) -> int:
    tensors = tuple(tensors[0]) if len(tensors) == 1 and isinstance(tensors[0], tuple | list) else tensors
    first, second, result = _letters(equation, len(tensors))
    x, value = tensors
    if not isinstance(x, Indexed):
        x, value, first, second = value, x, second, first
    if any(letter not in second + result for letter in first):
        raise _ArgumentsError("sum the axes of one tensor alone first, as in x.sum(2)")
    if isinstance(value, Indexed):
        if any(letter not in first + result for letter in second):
            raise _ArgumentsError("sum the axes of one tensor alone first, as in x.sum(2)")
        if not first[0] == second[0] == result[0] or ROW in equation:
            raise _ArgumentsError("the batch must be the first axis of both tensors and of the result")
        return emit(Product(f"{first},{second}->{result}"), x, value)
    return emit(Contraction(f"{first},{second}->{result}"), x, value=value)


@_means(F.bilinear)
def _bilinear(emit: Emit, input1: Any, input2: Any, weight: Any, bias: Any = None, *, like: Tensor) -> int:
    return bilinear(emit, input1, input2, weight, bias)


def bilinear(emit: Emit, one: Any, two: Any, weight: Any, bias: Any) -> int:
    """`x^T W y + b` for each matrix W of the weight: W times all products of an entry of x and one of y.

    So that the error of the sum over all of them, in whichever order it runs, is known.
    """
    if not isinstance(one, Indexed) or not isinstance(two, Indexed):
        raise _ArgumentsError("both inputs must depend on the model's input; of a constant one write a linear layer")
    outer = "abcdefgh"[: one.like.dim() - 1]
    products = emit(Product(f"{outer}i,{outer}j->{outer}ij"), one, two)
    found = emit(Contraction(f"{outer}ij,oij->{outer}o"), products, value=weight)
    return found if bias is None else emit(Shift(), found, value=bias)


def _matching(emit: Emit, x: Indexed, like: Tensor) -> Any:
    """A factor of a matrix product, repeated along those outer axes on which the other one is longer."""
    outer = tuple(like.shape[1 : x.like.dim() - 2])
    if x.like.dim() != like.dim() or outer == tuple(x.like.shape[1:-2]):
        return x
    return emit(Moved(_expanded, (*outer, *x.like.shape[-2:])), x)


def _letters(equation: str, count: int) -> tuple[str, str, str]:
    """The axes of the two operands and of the result."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    both = inputs.split(",")
    if count != 2 or len(both) != 2 or not arrow or "." in equation or any(len(set(t)) < len(t) for t in both):
        raise _ArgumentsError("give it two tensors, as in 'bij,jk->bik', each axis by one letter")
    return both[0], both[1], result


def _times_constant(x: Tensor, rank: int) -> str:
    """The equation of `x @ constant`."""
    axes = "abcdefghijklmnopqrstuvwxy"[: x.dim()]
    if rank == 1:
        return f"{axes},{axes[-1]}->{axes[:-1]}"
    if rank - 2 > x.dim() - 2 or x.dim() < 2:
        raise _ArgumentsError("its constant has more axes than the value that depends on the input")
    outer = axes[:-2][x.dim() - rank :]
    return f"{axes},{outer}{axes[-1]}z->{axes[:-1]}z"


def _constant_times(x: Tensor, rank: int) -> str:
    """The equation of `constant @ x`."""
    axes = "abcdefghijklmnopqrstuvwxy"[: x.dim()]
    if x.dim() < 3 or rank > x.dim():
        raise _ArgumentsError("it sums over the batch; write h @ W, or (W @ h.unsqueeze(2)).squeeze(2)")
    if rank == 1:
        return f"{axes},{axes[-2]}->{axes[:-2]}{axes[-1]}"
    outer = axes[:-2][x.dim() - rank :]
    return f"{axes},{outer}z{axes[-2]}->{axes[:-2]}z{axes[-1]}"
