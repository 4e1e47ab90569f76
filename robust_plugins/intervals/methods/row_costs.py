"""The cost of rows of coefficients on their way back through a network, by its structure alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, cast

from robust_plugins.intervals.methods.window_steps import ENTRYWISE
from robust_plugins.intervals.network.graph import Network
from robust_plugins.intervals.rules.elementwise import activation_of

PASS = 8
"""How many multiplications take the time of a number that is read and written."""


def efforts(network: Network) -> list[int]:
    """For each node, about how many multiplications a number of its output costs, in either direction."""
    weights = [next((p for p in ps.values() if p is not None), None) for ps in network.parameters]
    return [PASS + (0 if w is None or w.lower.dim() < 2 else w.lower[0].numel()) for w in weights]


def row_cost(network: Network, node: int, shapes: Sequence[Sequence[int]], costs: Sequence[int]) -> float:
    """About how many multiplications the bounds of one entry of a node's output take.

    An entry of an image is a window, as wide as the layers on the way have made it, until it is as large as the image.
    `shapes` are those of a sample of each node's output, up to `node`; `costs` those of `efforts`.
    """
    start = shapes[node]
    image = len(start) == 3 and prod(start[1:]) > 1
    sizes: dict[int, tuple[int, ...] | None] = {node: (1,) * len(start[1:]) if image else None}
    total, sides = 0.0, 1
    for index in range(node, -1, -1):
        if index not in sizes:
            continue
        size = sizes[index]
        total += sides * costs[index] * (prod(shapes[index]) if size is None else shapes[index][0] * prod(size))
        if not network.rules[index].affine:
            sides = 2  # from here on lower and upper bounds have coefficients of their own
        for source in network.nodes[index].inputs:
            below = None if size is None else _below(network, index, size, shapes[source])
            there = sizes.get(source, below)
            sizes[source] = None if below is None or there is None else tuple(map(max, there, below))
    return total


def _below(network: Network, index: int, size: Sequence[int], shape: Sequence[int]) -> tuple[int, ...] | None:
    """The window of the input that a window of the output depends on; None: the whole input."""
    rules, layer = network.rules[index], cast(Any, network.layers[index])
    known = rules.windows is not None or rules.layer in ENTRYWISE or activation_of(layer) is not None
    if len(shape) != 3 or not known:
        return None
    kernel, stride, dilation = (_pair(getattr(layer, name, 1)) for name in ("kernel_size", "stride", "dilation"))
    found = tuple((n - 1) * s + (k - 1) * d + 1 for n, k, s, d in zip(size, kernel, stride, dilation, strict=True))
    return None if prod(found) >= prod(shape[1:]) else found


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, tuple) else (value, value)
