"""Differences of a classifier's logits over intervals: each of them bounded as one row of the last layer.

What cancels between two logits cancels in the difference of their rows, `z_j - z_i = (W_j - W_i) h + b_j - b_i`; and so
does what the label's own term adds to the gradient below the last layer.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robust_plugins.intervals import Interval, Network
from robust_plugins.intervals.products import product

SMALL = 2.0**-20
"""The part of the weights' size below which a sample's gradient may be of the size of rounding errors."""


def of(network: Network, values: list[Interval]) -> Interval:
    """From the logits' ends and, where the last layer is linear, from the differences of its rows, bounded as rows."""
    z = values[-1]
    classes = z.shape[1]
    plain = z.map(lambda t: t.unsqueeze(1)) - z.map(lambda t: t.unsqueeze(2))
    last = last_linear(network)
    if last is not None:
        weight, bias = last
        _, (i, j) = pairs(z.lower)
        rows = weight[j] - weight[i]
        shift = None if bias is None else bias[j] - bias[i]
        h = values[network.nodes[-1].inputs[0]]
        found = product(torch.nn.functional.linear, h, rows, terms=weight.shape[1] + 1, bias=shift)
        plain = plain.sharpened(antisymmetric(found, i, j, classes))
    same = torch.eye(classes, dtype=torch.bool, device=z.device)
    return plain.map(lambda t: t.masked_fill(same, 0.0))


def below_last(network: Network, delta: Interval, y: Tensor) -> Interval | None:
    """`sum_c W_c p_c - W_y = sum_{c != y} (W_c - W_y) p_c`, by the last layer's input; None if not linear."""
    last = last_linear(network)
    if last is None:
        return None
    weight, _ = last
    low = delta.lower.new_empty((len(y), weight.shape[1]))
    up = low.clone()
    for label in y.unique().tolist():
        rows = weight - weight[label]
        zero = torch.arange(len(weight), device=y.device) == label
        rows = Interval(rows.lower.masked_fill(zero[:, None], 0.0), rows.upper.masked_fill(zero[:, None], 0.0))
        mine = y == label
        # The other classes' entries of delta are their probabilities.
        found = product(torch.matmul, delta[mine], rows, terms=len(weight) + 1)
        low[mine], up[mine] = found.lower, found.upper
    return Interval(low, up)


def with_cancellation(found: Interval, network: Network) -> Interval:
    """Wider by a rounding error of the probabilities where a sample's bounds are far below it.

    The engine's own `sum_c W_c p_c - W_y` cancels terms of the weights' size, and then misses such a bound.
    """
    last = last_linear(network)
    assert last is not None
    small = found.magnitude.amax(1, keepdim=True) < SMALL * last[0].magnitude.amax()
    if not bool(small.any()):
        return found
    slack = torch.where(small, 16 * torch.finfo(found.dtype).eps * last[0].magnitude.amax(), 0.0)
    return Interval(found.lower - slack, found.upper + slack)


def last_linear(network: Network) -> tuple[Interval, Interval | None] | None:
    """The intervals of the last layer's weight and bias; None where it is not linear."""
    index = len(network.nodes) - 1
    if network.rules[index].layer is not nn.Linear:
        return None
    parameters: dict[str, Any] = network.parameters[index]
    return parameters["weight"], parameters["bias"]


def pairs(z: Float[Tensor, "batch classes"]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The specification of all `z_j - z_i`, i < j, (pairs, classes), and the indices i and j."""
    i, j = torch.triu_indices(z.shape[1], z.shape[1], 1, device=z.device)
    spec = z.new_zeros((len(i), z.shape[1]))
    rows = torch.arange(len(i), device=z.device)
    spec[rows, j], spec[rows, i] = 1, -1
    return spec, (i, j)


def antisymmetric(found: Interval, i: Int[Tensor, " pairs"], j: Int[Tensor, " pairs"], classes: int) -> Interval:
    """From (batch, pairs), i < j, to (batch, classes, classes)."""
    low = found.lower.new_zeros((len(found), classes, classes))
    up = low.clone()
    low[:, i, j], up[:, i, j] = found.lower, found.upper
    low[:, j, i], up[:, j, i] = -found.upper, -found.lower
    return Interval(low, up)
