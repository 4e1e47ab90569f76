"""`Zonotopes`: intervals of a network's nodes by one pass forward, which tell `crown` the neurons that need a row.

A node's output is `c + sum_d g_d xi_d`, `|xi_d| <= 1`, with a direction for every entry of the input and for every
neuron whose activation is not straight over its interval: Singh et al. 2018, "Fast and effective robustness
certification" (DeepZ). A row goes back through the whole network for each neuron, a direction forward once for all of
them. Interval propagation through many layers finds most neurons unstable; where a zonotope shows that few are, rows
for those few are all that is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.methods.affine_forms import strip
from robust_plugins.intervals.methods.piecewise import piecewise_linear
from robust_plugins.intervals.methods.relaxation import CHUNK, efforts
from robust_plugins.intervals.network.graph import Network
from robust_plugins.intervals.rules.elementwise import Activation, activation_of

MAGNIFIED = 2.0**20
"""By how much directions are enlarged on their way: layers add their constant parts, which are taken away again, and
the rounding error of that then counts a millionth."""

GROWTH = 8.0
"""By how much a node's rows are expected to cost more than those of the one before it, at most."""


class Zonotope(NamedTuple):
    """`center + sum_d directions_d xi_d / scale` for every sample, over `|xi| <= 1`."""

    center: Tensor
    """(batch, *shape)"""
    directions: Tensor
    """(batch, directions, *shape); a sample that has fewer carries zeros."""


class Zonotopes:
    """Zonotopes of the nodes' outputs over a box, made from their intervals, as far as they are worth their cost.

    `values` are sound intervals of the nodes' outputs, `values[0]` the box itself; more are appended while bounds are
    computed. Neurons that rows were spent on in vain are credited, and the pass forward is made once it costs no more
    than they did, and than the next node's are expected to: in the worst case both together take some two or three
    times as long as the better one. Directions take `memory` bytes at most. Sound in real arithmetic, in evaluation
    mode.
    """

    def __init__(self, network: Network, values: Sequence[Interval], *, memory: int, credit: float = 0.0) -> None:
        self.network, self.values, self.credit = network, values, credit
        box = values[0].lower.detach()
        self.moving = (values[0].radius.detach() > 0).flatten(1).any(0).nonzero().flatten()
        self.room = max(0, memory - CHUNK) // box.element_size()
        self.scale = MAGNIFIED if torch.finfo(box.dtype).max > MAGNIFIED**2 else 1.0
        self.efforts = efforts(network)
        self.last = {j: index for index, node in enumerate(network.nodes) for j in node.inputs}
        self.done = 0
        self._made: dict[int, Zonotope] = {}
        self._per_row = self._in_vain = 0.0
        self._growth = 1.0

    def samples(self, node: int, wanted: int) -> int:
        """How many samples may be handled at a time up to a node of which `wanted` entries would need rows.

        None where it is not worth it, or cannot be done.
        """
        network, steps = self.network, range(self.done + 1, node + 1)
        if not all(network.rules[i].affine or _line(network, i) is not None for i in steps):
            return 0
        found = self._made.get(self.done)
        directions = len(self.moving) if found is None else found.directions.shape[1]
        cost = sum(self.efforts[i] * prod(self.values[i].shape) for i in steps) * directions
        if cost > self.credit + wanted * self._in_vain * self._per_row * self._growth:
            return 0
        alive, numbers = {*(self._made or [0])}, 0
        for i in steps:
            alive.add(i)
            numbers = max(numbers, sum(prod(self.values[j].shape[1:]) for j in alive))
            alive -= {j for j in network.nodes[i].inputs if self.last[j] == i}
        more = max(
            (int(self._bent(i).flatten(1).sum(1).max()) for i in steps if not network.rules[i].affine), default=0
        )
        each = max(1, (directions + more) * numbers)
        # Samples share nothing on this way: together they are no quicker than what the caches of a processor hold.
        return int(min(self.room // each, max(1, CHUNK // (each * self.values[0].lower.element_size()))))

    def learn(self, wanted: int, rows: int, straight: int, work: float) -> None:
        """Credits what rows cost that could have been left out.

        Of `wanted` entries a zonotope left `rows`, of which `straight` turned out to need none; they took `work`.
        """
        if rows:
            before, self._per_row = self._per_row, work / rows
            self._growth = min(GROWTH, self._per_row / before) if before else 1.0
        self._in_vain = (wanted - rows + straight) / max(1, wanted)
        self.credit += wanted * self._in_vain * self._per_row

    @torch.no_grad()
    def interval(self, node: int) -> Interval:
        """The interval of a node's output; those of the nodes before it have to be final."""
        if not self._made:
            self._made[0] = self._of_input()
        for index in range(self.done + 1, node + 1):
            before = [self._made[j] for j in self.network.nodes[index].inputs]
            affine = self.network.rules[index].affine
            found = self._through_affine(index, before) if affine else self._through_activation(index, before[0])
            self.credit -= self.efforts[index] * found.directions.numel()
            self._made[index] = found
            self.done = index
            for j in {*self.network.nodes[index].inputs}:
                if self.last[j] == index:
                    del self._made[j]
        found = self._made[node]
        radius = sum(part.abs().sum(1) for part in found.directions.split(self._at_once(found.center), 1)) / self.scale
        return Interval(found.center - radius, found.center + radius)

    def _of_input(self) -> Zonotope:
        box = self.values[0]
        radius = box.radius.flatten(1)
        directions = radius.new_zeros((len(radius), len(self.moving), radius.shape[1]))
        each = torch.arange(len(self.moving), device=radius.device)
        directions[:, each, self.moving] = radius[:, self.moving] * self.scale
        return Zonotope(box.center, directions.view(*directions.shape[:2], *box.shape[1:]))

    def _through_affine(self, index: int, before: Sequence[Zonotope]) -> Zonotope:
        rule, layer, parameters = (
            self.network.rules[index].forward, self.network.layers[index], self.network.parameters[index]
        )  # fmt: skip
        assert rule is not None
        center = rule(layer, *[Interval.point(z.center) for z in before], **parameters).lower
        zero = rule(layer, *[Interval.point(torch.zeros_like(z.center[:1])) for z in before], **parameters).lower
        count = max(z.directions.shape[1] for z in before)
        directions = center.new_empty((len(center), count, *center.shape[1:]))
        at_once = self._at_once(max((center, *(z.center for z in before)), key=torch.numel))
        for start in range(0, count, at_once):
            stop = min(start + at_once, count)
            parts = [Interval.point(_part(z.directions, start, stop).flatten(0, 1)) for z in before]
            moved = rule(layer, *parts, **parameters).lower
            torch.sub(moved.view(len(center), stop - start, *center.shape[1:]), zero, out=directions[:, start:stop])
        return Zonotope(center, directions)

    def _through_activation(self, index: int, before: Zonotope) -> Zonotope:
        """A line through the middle of the function, and a direction for each entry at which that is not all."""
        z, activation = self.values[self.network.nodes[index].inputs[0]], _line(self.network, index)
        assert activation is not None  # `samples` has seen it
        slope, low, up = strip(activation, z)
        bent = self._bent(index).flatten(1)
        counts, count = bent.sum(1), before.directions.shape[1]
        shape = (len(bent), count + int(counts.max()), *z.shape[1:])
        directions = slope.new_empty(shape)
        torch.mul(before.directions, slope.unsqueeze(1), out=directions[:, :count])
        directions[:, count:] = 0
        sample, entry = bent.nonzero(as_tuple=True)
        slot = count + torch.arange(len(sample), device=z.device) - (counts.cumsum(0) - counts)[sample]
        off = ((up - low) / 2).flatten(1)[sample, entry]
        directions.flatten(2)[sample, slot, entry] = off * self.scale
        return Zonotope(slope * before.center + (low + up) / 2, directions)

    def _bent(self, index: int) -> Bool[Tensor, "batch *shape"]:
        """Where an activation is not straight over the interval that it takes."""
        z, layer = self.values[self.network.nodes[index].inputs[0]], self.network.layers[index]
        function = piecewise_linear(layer)
        found = torch.full_like(z.lower, function is None, dtype=torch.bool)
        for kink, _ in function.kinks if function is not None else ():
            found |= (z.lower < kink) & (z.upper > kink)
        return found

    def _at_once(self, center: Tensor) -> int:
        """How many directions go through a layer together: what they take is little beside all of them."""
        return max(1, CHUNK // (4 * max(1, center.numel()) * center.element_size()))


def _line(network: Network, index: int) -> Activation | None:
    """The activation of a node, where lines through the middle of it are known."""
    found = activation_of(network.layers[index])
    return found if found is not None and found.relaxable else None


def _part(directions: Tensor, start: int, stop: int) -> Tensor:
    """Some of the directions, zero behind the last."""
    found = directions[:, start:stop]
    missing = stop - start - found.shape[1]
    if not missing:
        return found
    return torch.cat([found, found.new_zeros((len(found), missing, *found.shape[2:]))], 1)
