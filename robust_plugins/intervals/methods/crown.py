"""Backward linear relaxation (CROWN): bounds on any node's output as linear functions of the input.

Zhang et al. 2018, "Efficient neural network robustness certification with general activation functions", theorem 3.2,
for graphs: coefficients are sent backward, layer by layer. Through an affine layer they go by its backward rule, as
gradients do; through a nonlinear one by its relaxation, the lower line where a coefficient is positive and the upper
one where it is negative (mirrored for the upper bound).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Scale, Shift
from robust_plugins.intervals.network.graph import Network
from robust_plugins.intervals.rules.registry import LinearBound
from robust_plugins.intervals.rules.structure import IDENTITIES, REARRANGING

_ENTRYWISE = {*IDENTITIES, *REARRANGING, nn.BatchNorm1d, nn.BatchNorm2d, Scale, Shift}

Support = Callable[[Tensor], Tensor]

MEMORY = 2**30
"""Bytes that the coefficients of one chunk of rows may take."""


class Relaxation:
    """Linear relaxations of a network over a box of inputs, as far as its nodes' bounds are known.

    `values` are sound intervals of the nodes' outputs, in their order, `values[0]` the box itself; more may be
    appended while bounds are being computed. Bounds hold in real arithmetic, in evaluation mode, over the box and over
    the intervals of weights that the network is bound to.

    `support` describes an input set smaller than the box: given coefficients a, (batch, rows, *features), it returns
    a lower bound of `a x` over the set for every row, shape (batch, rows).
    """

    def __init__(
        self, network: Network, values: Sequence[Interval], *, memory: int = MEMORY, support: Support | None = None
    ) -> None:
        self.network, self.values, self.memory, self.support = network, values, memory, support
        self._offsets: dict[int, Interval] = {}
        self._bounds: dict[int, tuple[LinearBound, LinearBound] | None] = {}

    def bounds(self, node: int, spec: Float[Tensor, "batch rows *shape"] | None = None) -> Interval:
        """The interval of `node`'s output, or of `spec` times it, (batch, rows), from the relaxations before it.

        `spec` holds for each sample and row one coefficient per entry of the node's output.
        """
        shape = tuple(self.values[node].shape[1:]) if node < len(self.values) else tuple(self._output_shape(node))
        if spec is not None:
            found = [self._concrete(node, part, part) for part in spec.split(self._rows_at_once(), 1)]
        else:
            found = []
            for rows in torch.arange(prod(shape)).split(self._rows_at_once()):
                eye = self.values[0].lower.new_zeros((len(rows), prod(shape)))
                eye[torch.arange(len(rows)), rows] = 1
                start = eye.view(1, len(rows), *shape)
                found.append(self._concrete(node, start, start))
        low, up = torch.cat([low for low, _ in found], 1), torch.cat([up for _, up in found if up is not None], 1)
        joined = Interval(low, up)
        return joined if spec is not None else joined.map(lambda t: t.reshape(len(t), *shape))

    def lower(self, node: int, spec: Float[Tensor, "batch rows *shape"]) -> Float[Tensor, "batch rows"]:
        """The lower end of `bounds(node, spec)`, for half of its cost."""
        return torch.cat([self._concrete(node, part, None)[0] for part in spec.split(self._rows_at_once(), 1)], 1)

    def _concrete(self, node: int, lower: Tensor, upper: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Sends coefficients back to the input, and takes the extreme values over its box.

        Those of the upper bounds may be left out, and are the same tensor for as long as they are the lower bounds'.
        """
        network = self.network
        waiting: dict[int, tuple[Tensor, Tensor | None]] = {node: (lower, upper)}
        low = up = lower.new_zeros(())
        for index in range(node, 0, -1):
            if index not in waiting:
                continue
            a, b = waiting.pop(index)
            inputs = network.nodes[index].inputs
            if network.rules[index].affine and network.rules[index].backward is not None:
                offset = self._offset(index)
                low, up = low + _least(a, offset), up if b is None else up - _least(-b, offset)
                below = self._through_affine(index, a, b)
            elif (lines := self._lines(index)) is not None:
                under, over = lines
                positive, negative = _parts(a)
                low = low + _dot(positive, under.offset) + _dot(negative, over.offset)
                c, d = under.transpose(positive) + over.transpose(negative), None
                if b is not None:
                    positive, negative = _parts(b)
                    up = up + _dot(positive, over.offset) + _dot(negative, under.offset)
                    d = over.transpose(positive) + under.transpose(negative)
                below = [(c, d)]
            else:
                low = low + _least(a, self.values[index])
                up = up if b is None else up - _least(-b, self.values[index])
                continue
            for source, pair in zip(inputs, below, strict=True):
                waiting[source] = _sum(pair, waiting[source]) if source in waiting else pair
        if 0 in waiting:
            a, b = waiting[0]
            low, up = low + self._input_least(a), up if b is None else up - self._input_least(-b)
        shape = (len(self.values[0]), lower.shape[1])
        return low.expand(shape), None if upper is None else up.expand(shape)

    def _input_least(self, a: Tensor) -> Tensor:
        least = _least(a, self.values[0])
        return least if self.support is None else torch.maximum(least, self.support(a))

    def _through_affine(self, index: int, a: Tensor, b: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        """The layer's backward rule, applied to point gradients, one for each row."""
        network, alone = self.network, b is None or a is b
        both = a if b is None or a is b else torch.cat((a, b), 1)
        rule = network.rules[index].backward
        assert rule is not None
        inputs = [self.values[j] for j in network.nodes[index].inputs]
        flat = Interval.point(both.flatten(0, 1))
        below = rule(network.layers[index], *inputs, flat, **self._centers(index))
        found: list[tuple[Tensor, Tensor | None]] = []
        for part in below if isinstance(below, tuple) else (below,):
            t = part.lower.view(len(both), both.shape[1], *part.shape[1:])
            found.append((t, None if b is None else t) if alone else (t[:, : a.shape[1]], t[:, a.shape[1] :]))
        return found

    def _centers(self, index: int) -> dict[str, Interval | None]:
        parameters = self.network.parameters[index]
        return {k: p if p is None or p.is_point else Interval.point(p.center) for k, p in parameters.items()}

    def _offset(self, index: int) -> Interval:
        """What an affine layer adds for input zero, and what its weights' intervals add: (1 or batch, *shape)."""
        if index not in self._offsets:
            network = self.network
            rule, layer = network.rules[index].forward, network.layers[index]
            assert rule is not None
            inputs = [self.values[j] for j in network.nodes[index].inputs]
            zeros = [Interval.point(torch.zeros_like(i.lower[:1])) for i in inputs]
            offset = rule(layer, *zeros, **self._centers(index))
            parameters = network.parameters[index]
            if isinstance(layer, Shift):  # adds its parameter to the input instead of multiplying the two
                offset = rule(layer, *zeros, **parameters)
            elif any(p is not None and not p.is_point for p in parameters.values()):
                deviations = {k: None if p is None else deviation(p) for k, p in parameters.items()}
                offset = offset + rule(layer, *inputs, **deviations)
            self._offsets[index] = offset
        return self._offsets[index]

    def _lines(self, index: int) -> tuple[LinearBound, LinearBound] | None:
        if index not in self._bounds:
            rule = self.network.rules[index].relaxation
            inputs = [self.values[j] for j in self.network.nodes[index].inputs]
            parameters = self.network.parameters[index]
            self._bounds[index] = None if rule is None else rule(self.network.layers[index], *inputs, **parameters)
        return self._bounds[index]

    def _output_shape(self, node: int) -> torch.Size:
        with torch.no_grad():
            return self.network.step(node, [v[:1] for v in self.values]).shape[1:]

    def _rows_at_once(self) -> int:
        x = self.values[0].lower
        largest = max(v.lower.numel() for v in self.values)
        # Four coefficient tensors are alive at a layer: both bounds, before and after it.
        return max(1, self.memory // max(1, 8 * largest * x.element_size()))


def crown(
    network: Network,
    x: Interval,
    *,
    known: Mapping[int, Interval] | None = None,
    memory: int = MEMORY,
    support: Support | None = None,
) -> list[Interval]:
    """The interval of every node's output for inputs in the box `x`: interval propagation, with CROWN's bounds.

    Every input of a nonlinear layer, and the output, is bounded by linear relaxation too, from the bounds before it.
    `known` is intersected as in `Network.forward`; `support` describes a smaller set of inputs, as for `Relaxation`.
    Rows are handled in chunks whose coefficients fit `memory` bytes. Not available with outward rounding.
    """
    if rounding.active():
        raise ArgumentError(
            "rounding", "'outward'", accepted="'nearest' for linear relaxation", hint="Use Network.forward for it."
        )
    values: list[Interval] = [x if known is None or 0 not in known else x.sharpened(known[0])]
    relaxation = Relaxation(network, values, memory=memory, support=support)
    targets = {
        j
        for index, node in enumerate(network.nodes)
        if index and not network.rules[index].affine
        for j in node.inputs
        if support is not None or not _exact(network, j)
    }
    if support is not None or not _exact(network, len(network.nodes) - 1):
        targets.add(len(network.nodes) - 1)
    for index in range(1, len(network.nodes)):
        value = network.step(index, values)
        if known is not None and index in known:
            value = value.sharpened(known[index])
        values.append(value)
        if index in targets:
            values[index] = value.sharpened(relaxation.bounds(index))
    return values


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


def deviation(p: Interval) -> Interval:
    """What an interval of weights adds to its center."""
    return Interval.point(torch.zeros_like(p.lower)) if p.is_point else p - p.center


def _sum(one: tuple[Tensor, Tensor | None], two: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """The coefficients of two ways to one node together."""
    (a, b), (c, d) = one, two
    low = a + c
    if b is None or d is None:
        return low, None
    return low, low if a is b and c is d else b + d


def _parts(a: Tensor) -> tuple[Tensor, Tensor]:
    return a.clamp(min=0), a.clamp(max=0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """`sum_i a_ri b_i` for each row: (batch, rows)."""
    return torch.matmul(a.reshape(*a.shape[:2], -1), b.reshape(len(b), -1, 1)).squeeze(2)


def _least(a: Tensor, box: Interval) -> Tensor:
    """The least value of each row of `a` times the box."""
    if box.is_point:
        return _dot(a, box.lower)
    return _dot(a, box.center) - _dot(a.abs(), box.radius)
