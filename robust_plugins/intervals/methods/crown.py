"""`crown`: bounds on every node's output by backward linear relaxation.

Interval propagation, in which the inputs of nonlinear layers, and the output, are bounded by linear functions of the
input too, from the bounds before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Scale, Shift
from robust_plugins.intervals.methods.relaxation import MEMORY, Relaxation, Support
from robust_plugins.intervals.network.graph import Network
from robust_plugins.intervals.rules.elementwise import activation_of
from robust_plugins.intervals.rules.structure import IDENTITIES, REARRANGING

_ENTRYWISE = {*IDENTITIES, *REARRANGING, nn.BatchNorm1d, nn.BatchNorm2d, Scale, Shift}


def crown(
    network: Network,
    x: Interval,
    *,
    known: Mapping[int, Interval] | None = None,
    memory: int = MEMORY,
    support: Support | None = None,
    entries: Literal["all", "bent"] = "all",
) -> list[Interval]:
    """The interval of every node's output for inputs in the box `x`: interval propagation, with CROWN's bounds.

    Every input of a nonlinear layer, and the output, is bounded by linear relaxation too, from the bounds before it.

    - `known` is intersected as in `Network.forward`; `support` describes a smaller set of inputs, as for `Relaxation`.
    - Rows are handled in chunks whose coefficients fit `memory` bytes.
    - `entries="bent"` leaves out the inputs of activations at which these are straight anyway, such as a ReLU's that
      keep their sign: no relaxation becomes tighter by them, only their own intervals are wider.

    Not available with outward rounding.
    """
    if rounding.active():
        raise ArgumentError(
            "rounding", "'outward'", accepted="'nearest' for linear relaxation", hint="Use Network.forward for it."
        )
    values: list[Interval] = [x if known is None or 0 not in known else x.agreeing(known[0])]
    relaxation = Relaxation(network, values, memory=memory, support=support)
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(network.nodes):
        if index and not network.rules[index].affine:
            for j in node.inputs:
                readers.setdefault(j, []).append(index)
    last = len(network.nodes) - 1
    for index in range(1, len(network.nodes)):
        value = network.step(index, values)
        if known is not None and index in known:
            value = value.agreeing(known[index])
        values.append(value)
        if (index == last or index in readers) and (support is not None or not _exact(network, index)):
            only = entries == "bent" and index != last
            values[index] = relaxation.sharpened(index, bent(network, readers[index], value) if only else None)
    return values


def bent(network: Network, readers: Sequence[int], value: Interval) -> Tensor | None:
    """Where some of the layers that read a node of that interval are not straight there; None: everywhere."""
    found = torch.zeros_like(value.lower, dtype=torch.bool)
    for reader in readers:
        activation = activation_of(network.layers[reader])
        if activation is None or not activation.relaxable:
            return None
        slopes = activation.slopes(value.detach())
        found = found | (slopes.lower != slopes.upper)  # NaN counts
    return found


def _exact(network: Network, index: int) -> bool:
    """Whether interval propagation is exact for the node already: at most one layer before it mixes entries."""
    mixing = 0
    while index:
        node, rules = network.nodes[index], network.rules[index]
        if not rules.affine or len(node.inputs) != 1:
            return False
        mixing += rules.layer not in _ENTRYWISE
        index = node.inputs[0]
    return mixing <= 1
