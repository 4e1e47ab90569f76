"""`crown`: bounds on every node's output by backward linear relaxation.

Interval propagation, in which the inputs of nonlinear layers, and the output, are bounded by linear functions of the
input too, from the bounds before them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Integer
from torch import Tensor, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Scale, Shift
from robust_plugins.intervals.methods.piecewise import piecewise_linear
from robust_plugins.intervals.methods.relaxation import MEMORY, Relaxation
from robust_plugins.intervals.methods.substitution import Support
from robust_plugins.intervals.methods.zonotopes import Zonotopes
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
      keep their sign: no relaxation becomes tighter by them, only their own intervals are wider. Where most rows are
      in vain, a pass forward finds such entries first (`Zonotopes`), within `memory`, unless gradients are recorded or
      bounds are rounded outward.

    Inside `rounding.outward()` the bounds also hold for the network's floating-point evaluation, see `Relaxation`.
    """
    if rounding.active():
        rounding.check(x.lower)
    box = x if known is None or 0 not in known else x.agreeing(known[0])
    return _continued(network, [box], known or {}, memory, support, entries)


def _continued(
    network: Network,
    values: list[Interval],
    known: Mapping[int, Interval],
    memory: int,
    support: Support | None,
    entries: Literal["all", "bent"],
    zonotopes: Zonotopes | None = None,
) -> list[Interval]:
    """The intervals of all nodes from those of the first ones, and from what a pass forward has learned there."""
    relaxation = Relaxation(network, values, memory=memory, support=support)
    exactly = not torch.is_grad_enabled() and not rounding.active() and _of_points(network)
    if zonotopes is None and entries == "bent" and support is None and exactly:
        zonotopes = Zonotopes(network, values, memory=memory)
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(network.nodes):
        if index and not network.rules[index].affine:
            for j in node.inputs:
                readers.setdefault(j, []).append(index)
    last, sharpening = len(network.nodes) - 1, _Rows(relaxation, values)
    for index in range(len(values), len(network.nodes)):
        value = network.step(index, values)
        if index in known:
            value = value.agreeing(known[index])
        values.append(value)
        if not (index == last or index in readers) or (support is None and _exact(network, index)):
            continue
        needed = bent(network, readers[index], value) if entries == "bent" and index != last else None
        if needed is None or zonotopes is None:
            values[index] = sharpening.sharpened(index, readers.get(index, ()), needed)
            continue
        wanted = _counted(needed)
        parts = zonotopes.parts(index, wanted)
        if len(parts) > 1:
            found = []
            for part in parts:
                known_there = {k: v[part] for k, v in known.items()}
                values_there = [v[part] for v in values[:index]]
                carried = zonotopes.of(part, values_there)
                found.append(_continued(network, values_there, known_there, memory, support, entries, carried))
            order = torch.cat(parts).argsort()
            return [Interval.cat(nodes)[order] for nodes in zip(*found, strict=True)]
        if zonotopes.pays(index, wanted).any():
            values[index] = value.agreeing(zonotopes.interval(index))
            needed = bent(network, readers[index], values[index])
            assert needed is not None  # it was not before
        rows = _counted(needed)
        values[index] = sharpening.sharpened(index, readers[index], needed)
        left = bent(network, readers[index], values[index])
        assert left is not None
        zonotopes.learn(index, wanted, rows, rows - _counted(left))
    return values


def _counted(entries: Bool[Tensor, "batch *shape"]) -> Integer[Tensor, " batch"]:
    return entries.flatten(1).sum(1)


MOSTLY = 0.25
"""The share of a node's entries that turned out to be bent, up to which most of the next are expected not to be."""


class _Rows:
    """Sharpens the intervals of a network's nodes by rows.

    With outward rounding no `Zonotopes` spare most of them. Where few of the entries that need a row are expected to be
    bent, by the share of them at the node before, the end is looked at first that has to be tight for an entry to keep
    the sign that it has in the middle of the box.
    """

    def __init__(self, relaxation: Relaxation, values: list[Interval]) -> None:
        self.relaxation, self.network, self.values = relaxation, relaxation.network, values
        self.share = values[0].lower.new_ones(len(values[0]))
        self.middle: list[Interval] = []

    def sharpened(self, index: int, readers: Sequence[int], needed: Tensor | None) -> Interval:
        """The node's interval, by rows for what is needed by the nodes that read it."""
        relaxation, network = self.relaxation, self.network
        if needed is None or torch.is_grad_enabled() or not rounding.active():
            return relaxation.sharpened(index, needed)
        rows, few = needed, self.share <= MOSTLY
        if bool(few.any()) and all(_turns_at_zero(network.layers[r]) for r in readers):
            few = few.view(-1, *[1] * (needed.dim() - 1))
            self.values[index] = relaxation.inclined(index, rows & few, self._in_the_middle(index).center > 0)
            still = bent(network, readers, self.values[index])
            assert still is not None  # it was not before
            # By themselves: samples of which few rows are left would wait for those of which all are.
            self.values[index] = relaxation.sharpened(index, rows & few & still)
            rows = rows & ~few
        value = relaxation.sharpened(index, rows)
        left = bent(network, readers, value)
        if left is not None:
            self.share = _counted(left & needed) / _counted(needed).clamp(min=1)
        return value

    def _in_the_middle(self, index: int) -> Interval:
        """The node's output for the middle of the box, about."""
        if not self.middle:
            self.middle = [Interval.point(self.values[0].center)]
        with rounding.outward(False):
            for later in range(len(self.middle), index + 1):
                self.middle.append(self.network.step(later, self.middle))
        return self.middle[index]


def _turns_at_zero(layer: nn.Module) -> bool:
    function = piecewise_linear(layer)
    return function is not None and [at for at, _ in function.kinks] == [0.0]


def _of_points(network: Network) -> bool:
    return all(p is None or p.is_point for ps in network.parameters for p in ps.values())


def bent(network: Network, readers: Sequence[int], value: Interval) -> Tensor | None:
    """Where some of the layers that read a node of that interval are not straight there; None: everywhere."""
    found = torch.zeros_like(value.lower, dtype=torch.bool)
    for reader in readers:
        activation = activation_of(network.layers[reader])
        if activation is None or not activation.relaxable:
            return None
        with rounding.outward(False):  # which entries are worth it is no question of rounding
            try:
                slopes = activation.slopes(value.detach())
            except UnsupportedModelError:  # it rises infinitely fast somewhere
                return None
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
