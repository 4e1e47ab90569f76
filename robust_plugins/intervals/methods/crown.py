"""Backward linear relaxation (CROWN): bounds on any node's output as linear functions of the input.

Zhang et al. 2018, "Efficient neural network robustness certification with general activation functions", theorem 3.2,
for graphs: coefficients are sent backward, layer by layer. Through an affine layer they go by its backward rule, as
gradients do; through a nonlinear one by its relaxation, the lower line where a coefficient is positive and the upper
one where it is negative (mirrored for the upper bound).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import NamedTuple

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
Coefficients = tuple[Tensor | None, Tensor | None]
"""Coefficients of a lower and an upper bound, (batch or 1, rows, *shape); None where one is not wanted."""

MEMORY = 2**30
"""Bytes that the coefficients of one chunk of rows may take."""


class Substituted(NamedTuple):
    """A combination of a node's output after the node was replaced by bounds on it."""

    lower: Tensor | None
    """The part of the lower bound that no input carries: a number for each row, (batch, rows)."""
    upper: Tensor | None
    inputs: list[Coefficients]
    """The coefficients of the node's inputs; empty where the node is bounded by its values alone."""


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
        waiting: dict[int, Coefficients] = {node: (lower, upper)}
        low = up = lower.new_zeros(())
        for index in range(node, 0, -1):
            if index not in waiting:
                continue
            step = self.substituted(index, *waiting.pop(index))
            low, up = low + _number(step.lower), up + _number(step.upper)
            for source, pair in zip(self.network.nodes[index].inputs, step.inputs, strict=bool(step.inputs)):
                waiting[source] = _sum(pair, waiting[source]) if source in waiting else pair
        if 0 in waiting:
            least, most = self.over_inputs(*waiting[0])
            low, up = low + _number(least), up + _number(most)
        shape = (len(self.values[0]), lower.shape[1])
        return low.expand(shape), None if upper is None else up.expand(shape)

    def substituted(
        self,
        node: int,
        lower: Float[Tensor, "..."] | None,
        upper: Float[Tensor, "..."] | None,
    ) -> Substituted:
        """A linear combination of `node`'s output, bounded by one of the outputs of the nodes that it takes.

        `lower` are its coefficients in a lower bound, (batch or 1, rows, *output), `upper` those in an upper bound;
        None where that is not wanted. One tensor for both costs one pass through an affine layer.
        """
        if self.network.rules[node].affine and self.network.rules[node].backward is not None:
            offset = self._offset(node)
            numbers = (
                None if lower is None else _least(lower, offset),
                None if upper is None else _most(upper, offset),
            )
            return Substituted(*numbers, self._through_affine(node, lower, upper))
        lines = self._lines(node)
        if lines is None:
            value = self.values[node]
            return Substituted(
                None if lower is None else _least(lower, value), None if upper is None else _most(upper, value), []
            )
        under, over = lines
        low = up = None
        below: list[Tensor | None] = [None] * len(self.network.nodes[node].inputs)
        above = list(below)
        if lower is not None:
            positive, negative = _parts(lower)
            low = _dot(positive, under.offset) + _dot(negative, over.offset)
            below = _each(under.transpose(positive), over.transpose(negative))
        if upper is not None:
            positive, negative = _parts(upper)
            up = _dot(positive, over.offset) + _dot(negative, under.offset)
            above = _each(over.transpose(positive), under.transpose(negative))
        return Substituted(low, up, list(zip(below, above, strict=True)))

    def over_inputs(
        self, lower: Float[Tensor, "..."] | None, upper: Float[Tensor, "..."] | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The least value over all inputs of a combination with coefficients `lower`, and the largest with `upper`."""
        least = None if lower is None else self._input_least(lower)
        return least, None if upper is None else -self._input_least(-upper)

    def _input_least(self, a: Tensor) -> Tensor:
        least = _least(a, self.values[0])
        return least if self.support is None else torch.maximum(least, self.support(a))

    def _through_affine(self, index: int, a: Tensor | None, b: Tensor | None) -> list[Coefficients]:
        """The layer's backward rule, applied to point gradients, one for each row."""
        network = self.network
        given = [t for t in ((a,) if a is b else (a, b)) if t is not None]
        both = given[0] if len(given) == 1 else torch.cat(given, 1)
        rule = network.rules[index].backward
        assert rule is not None
        inputs = [self.values[j] for j in network.nodes[index].inputs]
        flat = Interval.point(both.flatten(0, 1))
        below = rule(network.layers[index], *inputs, flat, **self._centers(index))
        found: list[Coefficients] = []
        for part in below if isinstance(below, tuple) else (below,):
            t = part.lower.view(len(both), both.shape[1], *part.shape[1:])
            if len(given) == 1:
                found.append((None if a is None else t, None if b is None else t))
            else:
                found.append((t[:, : given[0].shape[1]], t[:, given[0].shape[1] :]))
        return found

    def _centers(self, index: int) -> dict[str, Interval | None]:
        parameters = self.network.parameters[index]
        return {k: p if p is None or p.is_point else Interval.point(p.center) for k, p in parameters.items()}

    def _offset(self, index: int) -> Interval:
        """The output of an affine layer for input zero, and what its weights' intervals add: (1 or batch, *shape)."""
        if index not in self._offsets:
            network = self.network
            rule, layer = network.rules[index].forward, network.layers[index]
            assert rule is not None
            inputs = [self.values[j] for j in network.nodes[index].inputs]
            zeros = [Interval.point(torch.zeros_like(i.lower[:1])) for i in inputs]
            offset = rule(layer, *zeros, **self._centers(index))
            parameters = network.parameters[index]
            if network.rules[index].additive:
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
    values: list[Interval] = [x if known is None or 0 not in known else x.agreeing(known[0])]
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
            value = value.agreeing(known[index])
        values.append(value)
        if index in targets:
            values[index] = value.agreeing(relaxation.bounds(index))
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
    """The interval less its center: what it adds to the center's part."""
    return Interval.point(torch.zeros_like(p.lower)) if p.is_point else p - p.center


def _sum(one: Coefficients, two: Coefficients) -> Coefficients:
    """The coefficients of two ways to one node together."""
    (a, b), (c, d) = one, two
    low = None if a is None or c is None else a + c
    if b is None or d is None:
        return low, None
    return low, low if a is b and c is d else b + d


def _each(one: Tensor | tuple[Tensor, ...], two: Tensor | tuple[Tensor, ...]) -> list[Tensor | None]:
    """The sum of two ways through a layer, for each of its inputs."""
    several, more = (t if isinstance(t, tuple) else (t,) for t in (one, two))
    return [a + b for a, b in zip(several, more, strict=True)]


def _number(found: Tensor | None) -> Tensor | float:
    return 0.0 if found is None else found


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


def _most(a: Tensor, box: Interval) -> Tensor:
    """The largest value of each row of `a` times the box."""
    if box.is_point:
        return _dot(a, box.lower)
    return _dot(a, box.center) + _dot(a.abs(), box.radius)
