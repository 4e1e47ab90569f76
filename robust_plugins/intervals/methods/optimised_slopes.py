"""CROWN with optimised slopes, sample by sample: bounds on the output, and on linear combinations of it.

Xu et al. 2021, "Fast and complete: enabling complete neural network verification with rapid and massively parallel
incomplete verifiers", with bounds of the layers optimised one after the other: a tighter bound of an earlier layer can
only help a later one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.methods.ascent import Ascent
from robust_plugins.intervals.methods.graph_dual import GraphDual
from robust_plugins.intervals.methods.unfolding import TooLargeError, Unfolding
from robust_plugins.intervals.network.graph import Network

DECIDED = 1e-4
"""A lower bound that exceeds zero by so much of the output's size needs no improvement to be a proof."""


def optimised(
    network: Network,
    values: Sequence[Interval],
    known: Interval,
    spec: Float[Tensor, "batch rows classes"],
    *,
    ascent: Ascent,
    memory: int,
    upper: bool = True,
    decide: bool = False,
) -> Interval:
    """Bounds on `spec` times the network's output, (batch, rows), never looser than `known`.

    - `values`: sound intervals of all nodes' outputs, as `crown` gives them; `known` those of the result
    - `ascent`: how slopes are searched for
    - `memory`: bytes for the coefficients of one layer, and for those of one chunk of rows
    - `upper`: whether upper bounds are optimised too
    - `decide`: whether rows whose lower bound is above zero are left at that

    Where a layer's coefficients do not fit the memory, the bounds of the layers are those of `values`, and the slopes
    of the rows alone are optimised. Differentiable in the weights, with the slopes as constants. Sound as `crown`.
    """
    if len(network.nodes) == 1 or not values:
        return known
    found = []
    for i, rows in enumerate(spec):
        one = [v[i : i + 1] for v in values]
        threshold = None
        if decide:
            size = torch.maximum(one[-1].magnitude.amax(), known.upper[i].abs().nan_to_num(posinf=0).amax())
            threshold = (DECIDED * size.detach()).expand(len(rows))
            if bool((known.lower[i] > threshold).all()):
                found.append(known[i : i + 1])
                continue
        found.append(_sample(network, one, known[i : i + 1], rows, threshold, ascent, memory, upper))
    return Interval.cat(found) if found else known


def _sample(
    network: Network,
    values: Sequence[Interval],
    known: Interval,
    spec: Tensor,
    threshold: Tensor | None,
    ascent: Ascent,
    memory: int,
    upper: bool,
) -> Interval:
    rows = torch.cat([spec, -spec]) if upper else spec
    if threshold is not None and upper:
        threshold = torch.cat([threshold, torch.full_like(threshold, torch.inf)])
    try:
        bounds = Unfolding(network, values, ascent, memory).bound(len(values) - 1, rows, threshold)
    except TooLargeError:
        bounds = _of_rows_alone(network, values, rows, threshold, ascent, memory)
    low, *up = bounds.chunk(2) if upper else (bounds,)
    met = known.meet(Interval(low.unsqueeze(0), -up[0].unsqueeze(0) if up else known.upper))
    apart = ~(met.lower <= met.upper)  # by rounding, where bounds are points; or NaN, where numbers overflow
    return Interval(torch.where(apart, known.lower, met.lower), torch.where(apart, known.upper, met.upper))


def _of_rows_alone(
    network: Network, values: Sequence[Interval], rows: Tensor, threshold: Tensor | None, ascent: Ascent, memory: int
) -> Tensor:
    dual = GraphDual(network, values, memory=memory)
    # Through every layer the coefficients and what automatic differentiation keeps of them.
    at_once = memory // (4 * sum(v.lower.numel() for v in values) * rows.element_size())
    differentiable = torch.is_grad_enabled() and any(v.lower.requires_grad for v in values)
    const = rows.new_zeros(len(rows))
    return ascent.bounds(dual, rows.t(), const, threshold, at_once=at_once, differentiable=differentiable)
