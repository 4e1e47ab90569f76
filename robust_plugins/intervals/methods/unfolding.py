"""A traced network over the box of one sample, unfolded into a compact network of its unstable neurons.

The graph is walked once, with a batch of basis columns: every node's output is kept as an affine function of the
compact network's state. An affine layer maps the columns by its own forward rule, so that convolutions, sums of
branches, normalisations and averages need no code here; a piecewise linear one keeps the rows of the neurons that do
not pass a kink, and opens a unit for each one that does; any other is replaced by its relaxation's lower line plus a
unit for the gap between its lines. On the way, the bounds of the inputs of nonlinear layers are optimised.

With outward rounding each node has, besides, the largest distance of its output, as it is in real arithmetic and as
the network computes it, from that function: errors go forward through the absolute values of the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.methods.ascent import Ascent
from robust_plugins.intervals.methods.columns import MAGNIFIED, Columns, padded
from robust_plugins.intervals.methods.compact import Compact
from robust_plugins.intervals.methods.piecewise import piecewise_linear
from robust_plugins.intervals.methods.reach import size_of, terms_of
from robust_plugins.intervals.methods.relaxation import Relaxation
from robust_plugins.intervals.network.graph import Network
from robust_plugins.intervals.rules.elementwise import Activation, activation_of

STABLE = 300
"""Up to so many active neurons of a layer stay in the state: substituted, they would fill the blocks after them."""


class TooLargeError(Exception):
    """The columns of a layer do not fit the memory."""


@dataclass(eq=False)
class Unfolding:
    """The compact network of one sample's box, and the columns and intervals of the nodes so far.

    `known` are sound intervals of all nodes' outputs, of batch 1; those of `values` are at least as tight. Raises
    TooLargeError where columns do not fit `memory` bytes.
    """

    network: Network
    known: Sequence[Interval]
    ascent: Ascent
    memory: int

    def __post_init__(self) -> None:
        if any(p is not None and not p.is_point for ps in self.network.parameters for p in ps.values()):
            raise ArgumentError(
                "network", "with intervals of weights", accepted="a network of points", hint="Use `crown` for those."
            )
        self.differentiable = torch.is_grad_enabled() and any(v.lower.requires_grad for v in self.known)
        box = self.known[0]
        self.outward = rounding.active()
        self.values: list[Interval] = [box]
        self.relaxation = Relaxation(self.network, self.values, memory=self.memory)
        center, radius = box.center, box.radius.flatten()
        if self.outward:
            u, _ = rounding.unit(box.dtype)
            radius = torch.maximum(box.upper - center, center - box.lower).flatten() * (1 + 4 * u)
        moving = radius.nonzero().flatten()
        self.compact = self._begun(len(moving), radius)
        self._check(len(moving), box.lower)
        start = radius.new_zeros((len(moving), len(radius)))
        self.scale = MAGNIFIED if torch.finfo(radius.dtype).max > MAGNIFIED**2 else 1.0
        start[torch.arange(len(moving), device=moving.device), moving] = radius[moving] * self.scale
        error = torch.zeros_like(center) if self.outward else None
        self.columns: dict[int, Columns] = {0: Columns(0, start.view(-1, *box.shape[1:]), center, self.scale, error)}
        last = {j: index for index, node in enumerate(self.network.nodes) for j in node.inputs}
        for index in range(1, len(self.network.nodes)):
            self._step(index)
            for j in self.network.nodes[index].inputs:
                if last[j] == index:
                    self.columns.pop(j, None)

    def _begun(self, inputs: int, like: Tensor) -> Compact:
        """The compact network before any layer."""
        return Compact(inputs, like)

    def bound(
        self, node: int, spec: Float[Tensor, "rows outputs"], threshold: Float[Tensor, " rows"] | None = None
    ) -> Float[Tensor, " rows"]:
        """The best lower bounds found of `spec` times a node's output; those above `threshold` are left at that."""
        columns = self.columns[node]
        rows, const = columns.rows(self.compact, spec=spec)
        found = self._maximised(self.ascent, rows, const, threshold)
        if not self.outward:
            return found
        size = self.values[node].magnitude.flatten()
        own = rounding.once(len(size), size.dtype)  # of whoever adds up the outputs
        room = spec.abs() @ ((1 + own) * columns.room(self.compact) + own * size)
        return rounding.lessened(found, room.detach() + rounding.underflow(len(size), size.dtype))

    def _maximised(self, ascent: Ascent, rows: Tensor, const: Tensor, threshold: Tensor | None) -> Tensor:
        # Rows, coefficients, lines and moments of a row: some ten numbers for each entry of the state.
        at_once = self.memory // (10 * max(1, self.compact.size) * const.element_size())
        return ascent.bounds(self.compact, rows, const, threshold, at_once=at_once, differentiable=self.differentiable)

    def _step(self, index: int) -> None:
        network, layer = self.network, self.network.layers[index]
        self.values.append(self._interval(index))
        activation = activation_of(layer)
        if network.rules[index].affine:
            self.columns[index] = self._affine(index)
        elif activation is not None:
            self.columns[index] = self._elementwise(index, activation)
        else:
            self.columns[index] = self._any_layer(index)
        readers = [i for i, node in enumerate(network.nodes) if index in node.inputs and not network.rules[i].affine]
        if readers:
            self._sharpen(index, [network.layers[i] for i in readers])

    def _interval(self, index: int) -> Interval:
        """The interval of a node's output before its bounds are optimised."""
        return self.network.step(index, self.values).agreeing(self.known[index])

    def _sharpen(self, index: int, readers: Sequence[nn.Module]) -> None:
        """Optimises the bounds of a node's entries, as far as the layers that read it gain from better ones."""
        if not bool(self.compact.free.any()):
            return
        value, functions = self.values[index], [piecewise_linear(layer) for layer in readers]
        low, up = value.lower.flatten(), value.upper.flatten()
        kinks = {kink for f in functions if f is not None for kink, _ in f.kinks}
        if None in functions:
            worth = low < up
        else:
            worth = torch.zeros_like(low, dtype=torch.bool)
            for kink in kinks:
                worth |= (low < kink) & (up > kink)
        entries = worth.nonzero().flatten()
        if not len(entries):
            return
        rows, const = self.columns[index].rows(self.compact, at=entries)
        threshold = None
        if None not in functions and len(kinks) == 1:  # beyond its only kink a neuron needs no better bound
            (kink,) = kinks
            threshold = torch.cat([torch.full_like(const, kink), torch.full_like(const, -kink)])
        # A layer has many rows and gains less by each than the output does: two thirds of the steps are enough.
        ascent = replace(self.ascent, steps=max(1, 2 * self.ascent.steps // 3))
        below, above = self._maximised(
            ascent, torch.cat([rows, -rows], 1), torch.cat([const, -const]), threshold
        ).chunk(2)  # fmt: skip
        if self.outward:
            room = self.columns[index].room(self.compact)[entries]
            below, above = rounding.lessened(below, room), rounding.lessened(above, room)
        ends = [end.index_copy(0, entries, found) for end, found in ((low, below), (up, -above))]
        # Where numbers have overflowed, nothing is found.
        ends = [torch.where(end.isnan(), old, end) for end, old in zip(ends, (low, up), strict=True)]
        self.values[index] = value.agreeing(Interval(*(end.view(value.shape) for end in ends)))

    def _affine(self, index: int) -> Columns:
        network = self.network
        rule, layer, parameters = network.rules[index].forward, network.layers[index], network.parameters[index]
        assert rule is not None
        before = [self.columns[j] for j in network.nodes[index].inputs]
        start, stop = min(c.start for c in before), max(c.start + len(c.coefficients) for c in before)
        with rounding.outward(False):
            offset: Tensor = rule(layer, *[Interval.point(c.offset) for c in before], **parameters).lower
            self._check(stop - start, offset)
            error = self._affine_error(index) if self.outward else None
            if stop == start:
                return Columns(start, offset.new_zeros((0, *offset.shape[1:])), offset, self.scale, error)
            zero = rule(layer, *[Interval.point(torch.zeros_like(c.offset)) for c in before], **parameters).lower
            inputs = [Interval.point(padded(c, start, stop)) for c in before]
            moved: Tensor = rule(layer, *inputs, **parameters).lower
        return Columns(start, moved - zero if bool(zero.any()) else moved, offset, self.scale, error)

    @torch.no_grad()
    def _affine_error(self, index: int) -> Tensor:
        """The errors behind an affine node: those of its inputs, and of its evaluations, the network's and ours.

        Columns are moved one by one, each with the node's constant part, which is then taken away again.
        """
        sources = self.network.nodes[index].inputs
        before, values = [self.columns[j] for j in sources], [self.values[j] for j in sources]

        def size(inputs: Sequence[Tensor]) -> Tensor:
            return size_of(self.network, index, inputs)

        errors = [c.error for c in before if c.error is not None]
        zero, moved = size([torch.zeros_like(e) for e in errors]), size(errors)
        linear = (moved - zero).clamp(min=0)
        forward, _ = terms = terms_of(self.network, index, values)
        if terms == (0, 0):
            return linear
        kappa = 2 * rounding.kappa(forward, zero.dtype)
        computed = size([torch.maximum(v.magnitude, c.size(self.compact)) for v, c in zip(values, before, strict=True)])
        constant = zero * (1 + self.compact.largest.sum() / self.scale)
        return linear + kappa * (2 * computed + moved + constant) + rounding.underflow(forward, zero.dtype)

    def _elementwise(self, index: int, activation: Activation) -> Columns:
        """Entries of a piecewise linear layer that pass at most one kink are linear or a ReLU; lines bound the rest."""
        (source,) = self.network.nodes[index].inputs
        z, value, function = self.columns[source], self.values[source], piecewise_linear(self.network.layers[index])
        low, up = value.lower.flatten(), value.upper.flatten()
        passed = [] if function is None else [(low < kink) & (up > kink) for kink, _ in function.kinks]
        between = torch.full_like(low, function is None, dtype=torch.bool)
        if len(passed) > 1:
            between = torch.stack(passed).sum(0) > 1
        slope, offset = torch.zeros_like(low), torch.zeros_like(low)
        opened: list[_Opened] = []
        if bool(between.any()):
            (a, b), (c, d) = ((x.flatten(), y.flatten()) for x, y in _lines(activation, value))
            slope, offset = torch.where(between, a, slope), torch.where(between, b, offset)
            terms = (a.abs() + c.abs()) * value.magnitude.flatten() + b.abs() + d.abs()
            opened.append(self._gaps(z, between, c - a, d - b, terms))
        if function is not None:
            slope = torch.where(between, slope, function.slope)
            offset = torch.where(between, offset, function.value)
            for (kink, change), unstable in zip(function.kinks, passed, strict=True):
                active, unstable = (low >= kink) & ~between, unstable & ~between
                # A unit for `z - kink` would round like the kink, which may be far larger than z.
                units = active | unstable if kink == 0 and self._keeps(active | unstable) else unstable
                linear = (active & ~units).to(low)
                slope, offset = slope + change * linear, offset - change * kink * linear
                opened.append(self._relus(z, units, low - kink, up - kink, kink, change))
        shape = z.offset.shape
        moved = z.coefficients * slope.view(shape) if bool(slope.any()) else None
        offset = z.offset * slope.view(shape) + offset.view(shape)
        error = None
        if z.error is not None:
            with torch.no_grad():
                steep = 1.0 if function is None else 1 + abs(function.slope) + sum(abs(c) for _, c in function.kinks)
                terms = (slope.abs().view(shape) * z.size(self.compact) + offset.abs()
                         + steep * (value.magnitude + self.values[index].magnitude))  # fmt: skip
                error = slope.abs().view(shape) * z.error + self._roundings(terms)
        return self._joined(z.start, moved, offset, opened, error)

    def _roundings(self, terms: Tensor) -> Tensor:
        """The error of a few operations on numbers whose absolute values add up to `terms`."""
        u, tiny = rounding.unit(terms.dtype)
        return 16 * u * terms + 16 * tiny

    def _any_layer(self, index: int) -> Columns:
        """The lower line of each entry, and a unit for the gap between its lines."""
        shape = self.values[index].shape
        before = [self.columns[j] for j in self.network.nodes[index].inputs]
        start, stop = min(c.start for c in before), max(c.start + len(c.coefficients) for c in before)
        size, widest = prod(shape[1:]), max(c.offset.numel() for c in before)
        self._check(stop - start, self.values[index].lower)
        flat = [c._replace(coefficients=padded(c, start, stop)).flat() for c in before]
        lower: list[tuple[Tensor, Tensor]] = []
        gaps: list[tuple[Tensor, Tensor]] = []
        errors: list[tuple[Tensor, Tensor]] = []
        rooms = [c.room(self.compact) if self.outward else torch.zeros_like(c.offset).flatten() for c in before]
        at_once = max(1, self.memory // (8 * widest * flat[0].element_size()))
        for part in torch.arange(size, device=flat[0].device).split(at_once):
            eye = flat[0].new_zeros((len(part), size))
            eye[torch.arange(len(part), device=part.device), part] = 1
            eye = eye.view(1, len(part), *shape[1:])
            found = self.relaxation.substituted(index, eye, eye)
            assert found.lower is not None  # both were asked for
            assert found.upper is not None
            below, above = flat[0].new_zeros((stop - start, len(part))), flat[0].new_zeros((stop - start, len(part)))
            least, most = found.lower.expand(1, -1)[0], found.upper.expand(1, -1)[0]
            under, over = self._roundings(least.detach().abs()), self._roundings(most.detach().abs())
            for columns, c, room, (one, two) in zip(flat, before, rooms, found.inputs, strict=bool(found.inputs)):
                assert one is not None
                assert two is not None
                one, two = one[0].flatten(1), two[0].flatten(1)
                below, above = below + columns @ one.t(), above + columns @ two.t()
                least, most = least + one @ c.offset.flatten(), most + two @ c.offset.flatten()
                under, over = under + one.detach().abs() @ room, over + two.detach().abs() @ room
            lower.append((below, least))
            gaps.append((above - below, most - least))
            errors.append((under, under + over))
        below, least = torch.cat([c for c, _ in lower], 1), torch.cat([o for _, o in lower])
        gap, width = torch.cat([c for c, _ in gaps], 1), torch.cat([o for _, o in gaps])
        units = (gap != 0).any(0) | (width > 0)
        one, terms = torch.ones_like(width), torch.zeros_like(width)
        under, between = (torch.cat([e[k] for e in errors]).view(shape) for k in (0, 1))
        line = Columns(start, below.view(-1, *shape[1:]), least.view(shape), 1.0)
        z = Columns(start, gap.view(-1, *shape[1:]), width.view(shape), 1.0)
        if self.outward:
            ends = line.size(self.compact), z.size(self.compact)
            under, between = under + self._roundings(ends[0]), between + self._roundings(2 * ends[0] + ends[1])
            units, z = torch.ones_like(units), z._replace(error=between)
        opened = self._gaps(z, units, one, torch.zeros_like(width), terms)
        coefficients = line.coefficients * self.scale
        return self._joined(start, coefficients, line.offset, [opened], under if self.outward else None)

    def _relus(self, z: Columns, units: Tensor, low: Tensor, up: Tensor, kink: float, change: float) -> _Opened:
        """Opens `relu(z - kink)` for these entries, whose inputs lie between `low` and `up`; active ones are linear."""
        entries = units.nonzero().flatten()
        low, up = low[entries], up[entries]
        if self.outward and kink:
            low, up = rounding.widened(low, up, scale=low.abs() + abs(kink))
        unstable = low < 0
        chord = torch.where(unstable, up / torch.where(unstable, up - low, 1), 1)
        intercept = torch.where(unstable, -chord * low, 0)
        if self.outward:
            above = torch.maximum(intercept, up - chord * up)
            above = above + self._roundings(low.abs() + up.abs()).detach()
            intercept = torch.where(unstable, above, 0)
        return self._add(
            z, entries, torch.ones_like(low), torch.full_like(low, -kink), change, torch.zeros_like(low),
            least=(~unstable).to(low), most=torch.ones_like(low), chord=chord, intercept=intercept,
            largest=up.detach().clamp(min=0) if self.outward else None,
        )  # fmt: skip

    def _gaps(self, z: Columns, units: Tensor, scale: Tensor, shift: Tensor, terms: Tensor) -> _Opened:
        """Opens what lies between 0 and `scale z + shift` for these entries, differences of what adds up to `terms`."""
        entries = units.nonzero().flatten()
        zero, one = torch.zeros_like(scale[entries]), torch.ones_like(scale[entries])
        return self._add(
            z, entries, scale[entries], shift[entries], 1.0, terms[entries],
            least=zero, most=zero, chord=one, intercept=zero,
        )  # fmt: skip

    def _add(
        self, z: Columns, entries: Tensor, scale: Tensor, shift: Tensor, weight: float, terms: Tensor,
        **lines: Tensor | None,
    ) -> _Opened:  # fmt: skip
        first = self.compact.size
        if len(entries):
            matrix = (z.flat(entries) * scale).t()
            if z.error is not None:
                with torch.no_grad():
                    size = scale.abs() * z.size(self.compact).flatten()[entries] + shift.abs() + terms
                    lines["error"] = scale.abs() * z.error.flatten()[entries] + self._roundings(size)
            self.compact.add(z.start, matrix, z.offset.flatten()[entries] * scale + shift, **lines)  # type: ignore[arg-type]
        return _Opened(first, entries, weight)

    def _joined(
        self, start: int, moved: Tensor | None, offset: Tensor, opened: Sequence[_Opened], error: Tensor | None
    ) -> Columns:
        """The columns of a linear part, None for zero, and of units."""
        first, stop = min(o.first for o in opened), self.compact.size
        if moved is None:
            start, moved = first, offset.new_zeros((0, *offset.shape[1:]))
        self._check(stop - start, offset)
        after = offset.new_zeros((stop - start - len(moved), offset.numel()))
        for units in opened:
            place = units.first - start - len(moved) + torch.arange(len(units.entries), device=offset.device)
            after[place, units.entries] = units.weight * self.scale
        return Columns(start, torch.cat([moved, after.view(-1, *offset.shape[1:])]), offset, self.scale, error)

    def _keeps(self, live: Tensor) -> bool:
        """Whether active neurons stay in the state as units, which are exact."""
        count = int(live.sum())
        return count <= STABLE and 2 * count < self.compact.inputs

    def _check(self, entries: int, like: Tensor) -> None:
        """Before and behind a layer, and enlarged on the way: some four tensors of columns are alive at once."""
        if 4 * entries * like.numel() * like.element_size() > self.memory:
            raise TooLargeError


class _Opened(NamedTuple):
    """Units that a layer opened: their first place in the state, the entries they belong to, and their factor there."""

    first: int
    entries: Tensor
    weight: float


def _lines(activation: Activation, z: Interval) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    if activation.relaxable:
        return activation.lines(z)
    y = activation.range(z)
    return (torch.zeros_like(y.lower), y.lower), (torch.zeros_like(y.upper), y.upper)
