"""Calls that make one value of all along some axes: turned into layers that have rules."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from robust_plugins.intervals.layers import (
    Add,
    Clamp,
    Extreme,
    Largest,
    Length,
    LogSumExp,
    Multiply,
    Permute,
    Pointwise,
    Power,
    Reduce,
    Reshape,
    Scale,
    Shift,
)
from robust_plugins.intervals.network.calls import (
    _ALONG,
    Build,
    Emit,
    Indexed,
    _ArgumentsError,
    _dependent,
    _known,
    _means,
    _samples,
)
from robust_plugins.intervals.network.structural_calls import _cut

PLACES = "it returns places of values, which jump and have no bounds; use the values, as of h.amax(dim)"


def _axes(input: Any, dim: Any) -> tuple[int, ...]:
    """The axes in rising order, from 1 on."""
    if not isinstance(input, Indexed):
        raise _ArgumentsError("what it takes must depend on the model's input")
    dims = (dim,) if isinstance(dim, int) else tuple(dim or ())
    if not dims:
        raise _ArgumentsError("give it its axes, without the batch")
    return tuple(sorted(_samples(dims, input.like)))


def _reduce(mean: bool) -> Build:
    def build(emit: Emit, input: Any, dim: Any = None, keepdim: bool = False, *, like: Tensor) -> int:
        return emit(Reduce(_axes(input, dim), keepdim, mean), input)

    _ALONG.add(build)
    return build


_means(torch.mean, "mean")(_reduce(True))
_means(torch.sum, "sum")(_reduce(False))


@_means(torch.amax, "amax")
def _amax(emit: Emit, input: Any, dim: Any = None, keepdim: bool = False, *, like: Tensor) -> int:
    return emit(Largest(_axes(input, dim), keepdim), input)


@_means(torch.amin, "amin")
def _amin(emit: Emit, input: Any, dim: Any = None, keepdim: bool = False, *, like: Tensor) -> int:
    return emit(Largest(_axes(input, dim), keepdim, least=True), input)


@_means(torch.logsumexp, "logsumexp")
def _logsumexp(emit: Emit, input: Any, dim: Any = None, keepdim: bool = False, *, like: Tensor) -> int:
    return emit(LogSumExp(_axes(input, dim), keepdim), input)


_ALONG.update((_amax, _amin, _logsumexp))


def _extreme(least: bool) -> Build:
    def build(emit: Emit, input: Any, other: Any = None, keepdim: bool = False, *, like: Any, dim: Any = None) -> Any:
        if isinstance(other, Indexed | fx.Node):
            return emit(Extreme(least=least), *_dependent(emit, (input, other), tuple(like.shape[1:])))
        layer = Largest(_axes(input, dim if other is None else other), keepdim, least=least, first=True)
        return emit(layer, input), PLACES

    return build


_means(torch.maximum, "maximum", torch.max, "max")(_extreme(least=False))
_means(torch.minimum, "minimum", torch.min, "min")(_extreme(least=True))


@_means(torch.argmax, "argmax", torch.argmin, "argmin", torch.argsort, "argsort")
def _place(emit: Emit, input: Any, *_: Any, like: Tensor, **__: Any) -> int:
    raise _ArgumentsError(PLACES)


@_means(torch.prod, "prod")
def _prod(emit: Emit, input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, like: Tensor) -> int:
    (axis,) = _axes(input, dim)
    count = input.like.shape[axis]
    parts = [emit(_cut(axis, slice(n, n + 1)), input) for n in range(count)]
    while len(parts) > 1:  # in pairs: half as deep as one by one
        factors = count if len(parts) == 2 else 2
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [emit(Multiply(factors), *pair) for pair in pairs] + parts[len(parts) & ~1 :]
    if not parts:
        raise _ArgumentsError("of no values there is none")
    return parts[0] if keepdim else emit(Reshape(tuple(like.shape[1:])), parts[0])


_ALONG.add(_prod)


@_means("norm")
def _norm(
    emit: Emit, input: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None, *, like: Tensor
) -> int:
    if p is not None and isinstance(p, str) and p != "fro":
        raise _ArgumentsError("p must be a number or 'fro'")
    return _length(emit, input, 2 if p in (None, "fro") else p, dim, keepdim)


@_means(torch.norm)
def _norm_of(
    emit: Emit, input: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False, out: None = None, dtype: Any = None,
    *, like: Tensor,
) -> int:  # fmt: skip
    return int(_norm(emit, input, p, dim, keepdim, like=like))


@_means(torch.linalg.vector_norm)
def _vector_norm(
    emit: Emit, x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None, like: Tensor
) -> int:
    return _length(emit, x, ord, dim, keepdim)


@_means(torch.linalg.norm)
def _linalg_norm(
    emit: Emit,
    A: Any,  # noqa: N803 (torch's name)
    ord: Any = None,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
    like: Tensor,
) -> int:
    if ord not in (None, "fro") and len(_axes(A, dim)) > 1:
        raise _ArgumentsError("norms of matrices have no rule; for one over all entries use torch.linalg.vector_norm")
    return _length(emit, A, 2 if ord in (None, "fro") else ord, dim, keepdim)


def _length(emit: Emit, x: Any, p: Any, dim: Any, keepdim: bool) -> int:
    axes = _axes(x, dim)
    if not isinstance(p, int | float) or not p >= 1:
        raise _ArgumentsError("its order must be a number from 1 on")
    if p == 2:
        return emit(Length(axes, keepdim), x)
    sizes = emit(Pointwise("abs"), x)
    if math.isinf(p):
        return emit(Largest(axes, keepdim), sizes)
    if p == 1:
        return emit(Reduce(axes, keepdim, False), sizes)
    return emit(Power(1 / p), emit(Reduce(axes, keepdim, False), emit(Power(float(p)), sizes)))


@_means(torch.std, "std")
def _std(
    emit: Emit, input: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *,
    correction: Any = None, like: Tensor,
) -> int:  # fmt: skip
    axes, count = _axes(input, dim), _degrees(input, dim, unbiased, correction)
    return emit(Scale(), emit(Length(axes, keepdim), _deviations(emit, input, axes)), value=count**-0.5)


@_means(torch.var, "var")
def _var(
    emit: Emit, input: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *,
    correction: Any = None, like: Tensor,
) -> int:  # fmt: skip
    axes, count = _axes(input, dim), _degrees(input, dim, unbiased, correction)
    squares = emit(Power(2.0), _deviations(emit, input, axes))
    return emit(Scale(), emit(Reduce(axes, keepdim, False), squares), value=1 / count)


def _deviations(emit: Emit, input: Indexed, axes: tuple[int, ...]) -> int:
    return emit(Add(-1), input, emit(Reduce(axes, True, True), input))


def _degrees(input: Indexed, dim: Any, unbiased: bool, correction: Any) -> float:
    """The number that squares are divided by."""
    count = math.prod(input.like.shape[a] for a in _axes(input, dim))
    less = count - (int(unbiased) if correction is None else correction)
    if less <= 0:
        raise _ArgumentsError("of one value there is none; leave correction at 0")
    return float(less)


@_means(F.normalize)
def _normalize(
    emit: Emit, input: Any, p: Any = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None, *, like: Tensor
) -> int:
    size = at_least(emit, _length(emit, input, p, dim, True), eps)
    return emit(Multiply(), input, emit(Pointwise("reciprocal"), size))


@_means(F.cosine_similarity, torch.cosine_similarity)
def _cosine_similarity(emit: Emit, x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8, *, like: Tensor) -> int:
    return similarity(emit, x1, x2, dim, eps)


def similarity(emit: Emit, x1: Any, x2: Any, dim: int, eps: float) -> int:
    """The cosine of the angle between two values, along an axis."""
    shape = _shape(emit, x1, x2)
    (axis,) = _samples((dim,), torch.empty(shape, device="meta"))
    products = []
    for node in _dependent(emit, (x1, x2), shape[1:]):
        size = at_least(emit, emit(Length((axis,), True), node), eps)
        products.append(emit(Multiply(), node, emit(Pointwise("reciprocal"), size)))
    return emit(Reduce((axis,), False, False), emit(Multiply(), *products))


@_means(F.pairwise_distance, torch.pairwise_distance)
def _pairwise_distance(
    emit: Emit, x1: Any, x2: Any, p: Any = 2.0, eps: float = 1e-6, keepdim: bool = False, *, like: Tensor
) -> int:
    return distance(emit, x1, x2, p, eps, keepdim)


def distance(emit: Emit, x1: Any, x2: Any, p: Any, eps: float, keepdim: bool) -> int:
    """The length of `x1 - x2 + eps` along the last axis."""
    shape = _shape(emit, x1, x2)
    apart = emit(Shift(), emit(Add(-1), *_dependent(emit, (x1, x2), shape[1:])), value=eps)
    return _length(emit, Indexed(apart, torch.empty(shape, device="meta")), p, -1, keepdim)


MATRIX = 25
"""Of more rows than that on either side torch takes distances from a matrix product, whose error its root enlarges."""


@_means(torch.cdist)
def _cdist(
    emit: Emit, x1: Any, x2: Any, p: float = 2.0,
    compute_mode: str | None = "use_mm_for_euclid_dist_if_necessary", *, like: Tensor,
) -> int:  # fmt: skip
    by_matrix = max(like.shape[1:]) > MATRIX if compute_mode in (None, "use_mm_for_euclid_dist_if_necessary") else (
        compute_mode == "use_mm_for_euclid_dist"
    )  # fmt: skip
    if p == 2 and by_matrix:
        raise _ArgumentsError(
            f"of more than {MATRIX} rows torch computes it in a way that loses digits of small distances; pass "
            'compute_mode="donot_use_mm_for_euclid_dist"'
        )
    shape = (*like.shape, (x1 if isinstance(x1, Indexed) else x2).like.shape[-1])
    if isinstance(x1, Indexed) and isinstance(x2, Indexed):
        one = emit(Reshape((*shape[1:-2], 1, shape[-1])), x1)
        apart = emit(Add(-1), one, emit(Reshape((*shape[1:-3], 1, *shape[-2:])), x2))
        return _length(emit, Indexed(apart, torch.empty(shape, device="meta")), p, -1, False)
    x, fixed = (x1, x2) if isinstance(x1, Indexed) else (x2, x1)
    if _known(emit, fixed).dim() != 2:
        raise _ArgumentsError("its constant must be a matrix, whose rows are the points")
    wide = (*x.like.shape[1:-1], 1, x.like.shape[-1])
    whole = torch.empty((len(like), *wide[:-2], len(_known(emit, fixed)), wide[-1]), device="meta")
    apart = emit(Shift(-1), emit(Reshape(wide), x), value=fixed)
    found = _length(emit, Indexed(apart, whole), p, -1, False)
    return found if x is x1 else emit(Permute((*range(like.dim() - 2), like.dim() - 1, like.dim() - 2)), found)


def _shape(emit: Emit, *tensors: Any) -> torch.Size:
    found: torch.Size = torch.broadcast_shapes(
        *((t.like if isinstance(t, Indexed) else _known(emit, t)).shape for t in tensors)
    )
    return found


def at_least(emit: Emit, node: int, eps: float) -> int:
    """The node, but nowhere below `eps`."""
    return emit(Clamp(eps, None), node)
