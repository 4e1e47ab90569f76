"""`Zonotopes`: intervals of a network's nodes by one pass forward, which tell `crown` the neurons that need a row.

A node's output is `c + sum_d g_d xi_d`, `|xi_d| <= 1`, with a direction for every entry of the input and for every
neuron whose activation is not straight over its interval: Singh et al. 2018, "Fast and effective robustness
certification" (DeepZ). A row goes back through the whole network for each neuron, a direction forward once for all of
them. Interval propagation through many layers finds most neurons unstable; where a zonotope shows that few are, rows
for those few are all that is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.methods.affine_forms import strip
from robust_plugins.intervals.methods.piecewise import piecewise_linear
from robust_plugins.intervals.methods.relaxation import CHUNK
from robust_plugins.intervals.methods.row_costs import efforts, row_cost
from robust_plugins.intervals.network.graph import Network
from robust_plugins.intervals.rules.elementwise import Activation, activation_of

MAGNIFIED = 2.0**20
"""By how much directions are enlarged on their way: layers add their constant parts, which are taken away again, and
the rounding error of that then counts a millionth."""


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
    times as long as the better one. Each sample has its own credit, and what is decided for it does not depend on the
    others of its batch. Directions take `memory` bytes at most. Sound in real arithmetic, in evaluation mode.
    """

    def __init__(self, network: Network, values: Sequence[Interval], *, memory: int, credit: float = 0.0) -> None:
        self.network, self.values = network, values
        box = values[0].lower.detach()
        self.moving = (values[0].radius.detach() > 0).flatten(1).any(0).nonzero().flatten()
        self.room = max(0, memory - CHUNK) // box.element_size()
        self.scale = MAGNIFIED if torch.finfo(box.dtype).max > MAGNIFIED**2 else 1.0
        self.efforts = efforts(network)
        self.last = {j: index for index, node in enumerate(network.nodes) for j in node.inputs}
        self.done = 0
        self.credit = torch.full((len(box),), credit, dtype=torch.float64, device=box.device)
        """What each sample may spend, in multiplications."""
        self.in_vain = torch.zeros_like(self.credit)
        """The share of rows at the last node that were spent in vain."""
        self.directions = (values[0].radius.detach() > 0).flatten(1).sum(1)
        """How many directions each sample has where the pass has come to."""
        self._made: dict[int, Zonotope] = {}

    def of(self, samples: Tensor, values: Sequence[Interval]) -> Zonotopes:
        """The same of some of the samples, whose intervals are `values`."""
        found = copy(self)
        found.values = values
        found.credit, found.in_vain, found.directions = (
            t[samples] for t in (self.credit, self.in_vain, self.directions)
        )
        found._made = {i: Zonotope(z.center[samples], z.directions[samples]) for i, z in self._made.items()}
        return found

    def parts(self, node: int, wanted: Integer[Tensor, " batch"]) -> list[Integer[Tensor, " part"]]:
        """The samples that are better handled together up to a node of which they would need `wanted` rows each."""
        pays, every = self.pays(node, wanted), torch.arange(len(wanted), device=wanted.device)
        if not bool(pays.any()):
            return [every]
        found = [] if bool(pays.all()) else [every[~pays]]
        return [*every[pays].split(self._together(node, pays)), *found]

    def pays(self, node: int, wanted: Integer[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """For which samples the pass up to a node is possible, and worth its cost beside `wanted` rows."""
        network, steps = self.network, range(self.done + 1, node + 1)
        if not all(network.rules[i].affine or _line(network, i) is not None for i in steps):
            return torch.zeros_like(wanted, dtype=torch.bool)
        shapes = [v.shape[1:] for v in self.values[: node + 1]]
        cost = sum(self.efforts[i] * prod(shapes[i]) for i in steps) * self.directions
        saved = wanted * self.in_vain * row_cost(network, node, shapes, self.efforts)
        return (cost <= self.credit + saved) & (self._numbers(node) <= self.room)

    def learn(
        self,
        node: int,
        wanted: Integer[Tensor, " batch"],
        rows: Integer[Tensor, " batch"],
        straight: Integer[Tensor, " batch"],
    ) -> None:
        """Credits each sample with what rows cost that could have been left out.

        Of `wanted` entries a zonotope left `rows`, of which `straight` turned out to need none.
        """
        spared = (wanted - rows + straight).double()
        self.in_vain = spared / wanted.clamp(min=1)
        shapes = [v.shape[1:] for v in self.values[: node + 1]]
        self.credit = self.credit + spared * row_cost(self.network, node, shapes, self.efforts)

    def _numbers(self, node: int) -> Integer[Tensor, " batch"]:
        """How many numbers the directions of each sample are at most, on the way to a node."""
        network, steps = self.network, range(self.done + 1, node + 1)
        alive, numbers = {*(self._made or [0])}, 0
        for i in steps:
            alive.add(i)
            numbers = max(numbers, sum(prod(self.values[j].shape[1:]) for j in alive))
            alive -= {j for j in network.nodes[i].inputs if self.last[j] == i}
        more = [self._bent(i).flatten(1).sum(1) for i in steps if not network.rules[i].affine]
        most = torch.stack(more).amax(0) if more else 0
        return (self.directions + most).clamp(min=1) * numbers

    def _together(self, node: int, samples: Bool[Tensor, " batch"]) -> int:
        """How many samples go to a node at a time."""
        each = max(1, int(self._numbers(node)[samples].max()))
        # Samples share nothing on this way: together they are no quicker than what the caches of a processor hold.
        return int(min(self.room // each, max(1, CHUNK // (each * self.values[0].lower.element_size()))))

    @torch.no_grad()
    def interval(self, node: int) -> Interval:
        """The interval of a node's output; those of the nodes before it have to be final."""
        if not self._made:
            self._made[0] = self._of_input()
        for index in range(self.done + 1, node + 1):
            before = [self._made[j] for j in self.network.nodes[index].inputs]
            affine = self.network.rules[index].affine
            found = self._through_affine(index, before) if affine else self._through_activation(index, before[0])
            if not affine:
                self.directions = self.directions + self._bent(index).flatten(1).sum(1)
            self.credit = self.credit - self.efforts[index] * self.directions * prod(found.center.shape[1:])
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
