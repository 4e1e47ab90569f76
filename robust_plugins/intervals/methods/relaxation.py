"""`Relaxation`: bounds on any node's output as linear functions of the input.

Zhang et al. 2018, "Efficient neural network robustness certification with general activation functions", theorem 3.2,
for graphs: coefficients are sent backward, layer by layer. Through an affine layer they go by its backward rule, as
gradients do; through a nonlinear one by its relaxation, the lower line where a coefficient is positive and the upper
one where it is negative (mirrored for the upper bound). The coefficients of a convolution's outputs stay windows of
their images until these cover the image or a layer has no rule for windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.methods.coefficients import Coefficients, joined, lower_sum, upper_sum
from robust_plugins.intervals.methods.places import Places
from robust_plugins.intervals.methods.reach import Reach, dot
from robust_plugins.intervals.methods.substitution import Substitution, Support
from robust_plugins.intervals.methods.window_steps import WindowStep
from robust_plugins.intervals.network.graph import Network
from robust_plugins.intervals.rules.registry import LinearBound
from robust_plugins.intervals.windows import Windows

MEMORY = 2**30
"""Bytes that the coefficients of one chunk of rows may take."""

CHUNK = 2**26
"""Bytes that they take where more are allowed: what the caches of a processor hold is quicker."""

ALIVE = 28
"""How many tensors of the size of the largest coefficients are alive at a layer.

Both bounds, before and after it, their absolute values and products, and the columns and copies of convolutions.
"""


class Relaxation(Substitution):
    """Linear relaxations of a network over a box of inputs, as far as its nodes' bounds are known.

    `values` are sound intervals of the nodes' outputs, in their order, `values[0]` the box itself; more may be
    appended while bounds are being computed. Bounds hold in real arithmetic, in evaluation mode, over the box and over
    the intervals of weights that the network is bound to; inside `rounding.outward()`, where `values` must have been
    made too, also for the network's floating-point evaluation in any order of summation (see `Reach`). Layers that
    cannot be rounded outward raise UnsupportedModelError. `memory` is the number of bytes that coefficients take at a
    time, as long as one row of one sample fits and no gradients are recorded.

    `support` describes an input set smaller than the box: given coefficients a, (batch, rows, *features), it returns
    a lower bound of `a x` over the set for every row, shape (batch, rows).
    """

    def __init__(
        self, network: Network, values: Sequence[Interval], *, memory: int = MEMORY, support: Support | None = None
    ) -> None:
        if support is not None and rounding.active():
            raise ArgumentError("support", "given with outward rounding", accepted="None", hint="Leave it out.")
        super().__init__(network, values, support)
        self.memory = memory
        self._part: tuple[slice, Relaxation] = (slice(0, 0), self)

    def bounds(self, node: int, spec: Float[Tensor, "batch rows *shape"] | None = None) -> Interval:
        """The interval of `node`'s output, or of `spec` times it, (batch, rows), from the relaxations before it.

        `spec` holds for each sample and row one coefficient per entry of the node's output.
        """
        if spec is not None:
            return Interval(*self._of_rows(node, spec, upper=True))
        shape = self._shape(node)
        size = len(self.values[0]) * prod(shape)
        found = self._of_entries(node, torch.arange(size, device=self.values[0].device))
        return Interval(*(end.view(-1, *shape) for end in found))

    def lower(self, node: int, spec: Float[Tensor, "batch rows *shape"]) -> Float[Tensor, "batch rows"]:
        """The lower end of `bounds(node, spec)`, for half of its cost."""
        return self._of_rows(node, spec, upper=False)[0]

    def sharpened(self, node: int, needed: Bool[Tensor, "batch *shape"] | None = None) -> Interval:
        """The known interval of `node`'s output, intersected with `bounds(node)`; where `needed` is False as it is."""
        value = self.values[node]
        if needed is None or bool(needed.all()):
            return value.agreeing(self.bounds(node))
        entries = needed.flatten().nonzero().squeeze(1)
        if not len(entries):
            return value
        return self._with_entries(node, entries)

    def _with_entries(self, node: int, entries: Tensor, negated: Tensor | None = None) -> Interval:
        """The interval of a node's output, sharpened at some entries; of those `negated` rather the upper end."""
        value = self.values[node]
        present = Interval(value.lower.flatten()[entries], value.upper.flatten()[entries])
        low, up = self._of_entries(node, entries, negated)
        if negated is not None:
            low, up = torch.where(negated, -up, low), torch.where(negated, -low, up)
        found = present.agreeing(Interval(low, up))
        ends = ((value.lower, found.lower), (value.upper, found.upper))
        return Interval(*(old.flatten().index_put((entries,), new).view(old.shape) for old, new in ends))

    def inclined(
        self, node: int, needed: Bool[Tensor, "batch *shape"], positive: Bool[Tensor, "batch *shape"]
    ) -> Interval:
        """The interval of `node`'s output, one end of each entry as tight as by `sharpened`, for half the cost.

        It is the lower end of `positive` entries, and the upper end of others: so it is seen of most entries that keep
        their sign that they do. Both ends hold.
        """
        entries = needed.flatten().nonzero().squeeze(1)
        if not len(entries):
            return self.values[node]
        self.once = True
        try:
            return self._with_entries(node, entries, ~positive.flatten()[entries])
        finally:
            self.once = False

    def _of_rows(self, node: int, spec: Tensor, *, upper: bool) -> list[Tensor]:
        """The bounds of given rows, in chunks of samples and of rows."""
        blocks = []
        for samples, part, count in self._blocks(node):
            rows = spec[samples] if len(spec) > 1 else spec
            found = [part._of_given(node, r, r if upper else None) for r in rows.split(count, 1)]
            sides = [[end for end in ends if end is not None] for ends in zip(*found, strict=True)]
            blocks.append([torch.cat(ends, 1) for ends in sides if ends])
        return [torch.cat(ends) for ends in zip(*blocks, strict=True)]

    def _of_given(self, node: int, lower: Tensor, upper: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The bounds of rows that somebody will compute from the node's output: with room for the errors of that."""
        low, up = self._sent_back(node, lower, upper)
        if not rounding.active():
            return low, up
        with torch.no_grad():
            value = self.values[node] if node < len(self.values) else self.network.step(node, self.values)
            size, terms = value.magnitude, value.lower[0].numel()
            room = rounding.once(terms, size.dtype) * dot(lower.abs(), size) + rounding.underflow(terms, size.dtype)
        return rounding.lessened(low, room), None if up is None else rounding.increased(up, room)

    def _of_entries(self, node: int, entries: Tensor, negated: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of entries of the node's output, rising indices into all samples'; some negated."""
        shape = self._shape(node)
        if node < len(self.values) and self.steps.starts(node, shape):
            return self._of_windows(node, entries, negated)
        size, found = prod(shape), []
        for samples, part, count in self._blocks(node):
            of_part = (entries >= samples.start * size) & (entries < samples.stop * size)
            inside = entries[of_part]
            if len(inside):
                minus = None if negated is None else negated[of_part]
                found.append(part._of_dense(node, inside - samples.start * size, count, minus))
        low, up = zip(*found, strict=True)
        return torch.cat(low), torch.cat(up)

    def _of_dense(self, node: int, entries: Tensor, count: int, negated: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The bounds of entries, or of some negated, by as many rows for each sample, `count` at a time."""
        shape = self._shape(node)
        size = prod(shape)
        sample = entries // size
        present = sample.unique()
        if len(present) < len(self.values[0]) and self.support is None:  # others would have a table of zeros
            part = _OfSamples(self, present)
            part.once = self.once
            return part._of_dense(node, torch.searchsorted(present, sample) * size + entries % size, count, negated)
        places = Places(sample, len(self.values[0]))
        found = []
        codes = entries % size if negated is None else entries % size + size * negated
        for chosen in places.table(codes).split(count, 1):
            # Until rows meet what differs from sample to sample, one copy of each serves all samples.
            union, pick = chosen.unique(return_inverse=True)
            eye = self.values[0].lower.new_zeros((len(union), size))
            eye[torch.arange(len(union), device=eye.device), union % size] = torch.where(union < size, 1, -1).to(eye)
            start = eye.view(1, len(union), *shape)
            each = torch.arange(pick.shape[1], device=pick.device)
            same = len(union) == len(each) and torch.equal(pick, each.expand_as(pick))
            found.append(self._sent_back(node, start, start, pick=None if same else pick))
        low, up = (torch.cat([end for end in ends if end is not None], 1) for ends in zip(*found, strict=True))
        return places.flat(low), places.flat(up)

    def _of_windows(self, node: int, entries: Tensor, negated: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The bounds of entries by windows; what a chunk took tells how many rows the next one may have."""
        shape, x = self._shape(node), self.values[0].lower
        room = self._room() // (ALIVE * x.element_size())
        count, begin, found = max(1, room // self._largest(node)), 0, []
        while begin < len(entries):
            rows = _fitting(entries[begin : begin + count], prod(shape), count)
            start = Windows.unit(shape, rows, x)
            if negated is not None:
                start = start.signed(negated[begin : begin + len(rows)])
            low, up, largest = self._windows_sent_back(node, start)
            found.append((low, up))
            begin += len(rows)
            count = max(1, room * len(rows) // largest)
        lows, ups = zip(*found, strict=True)
        return torch.cat(lows), torch.cat(ups)

    def _windows_sent_back(self, node: int, start: Windows) -> tuple[Tensor, Tensor, int]:
        """The bounds of the rows of `start`, and how many numbers the largest of their coefficients were."""
        every = slice(0, len(self.values[0]))
        samples = slice(int(start.sample[0]), int(start.sample[-1]) + 1) if self.support is None else every
        places = Places(start.sample - samples.start, samples.stop - samples.start)
        whole = _Pass(self._of_samples(samples))
        waiting = {node: start}
        low = up = start.values.new_zeros(start.rows)
        largest = 1
        for index in range(node, -1, -1):
            w = waiting.pop(index, None)
            if w is not None:
                largest = max(largest, w.rows * w.values[0].numel())
                step = None if index in whole.waiting else self._window_step(index, w)
                if step is None:
                    lower, upper = w.whole(self.values[index].shape[2:])
                    table = places.table(lower)
                    whole.add(index, (table, table if upper is lower else places.table(upper)))
                    largest = max(largest, places.samples * places.width * self._largest(index))
                else:
                    low, up = lower_sum(low, step.lower), upper_sum(up, step.upper)
                    for source, below in zip(self.network.nodes[index].inputs, step.inputs, strict=bool(step.inputs)):
                        if source in waiting:
                            for windows in (waiting[source], below):
                                down, more = self.steps.errors(source, windows)
                                low, up = rounding.lessened(low, down), rounding.increased(up, more)
                            below = waiting[source].plus(below)
                        waiting[source] = below
            whole.step(index)
        shape = (places.samples, places.width)
        others = (places.flat(end.expand(shape)) for end in (whole.low, whole.up))
        return lower_sum(low, next(others)), upper_sum(up, next(others)), largest

    def _window_step(self, index: int, w: Windows) -> WindowStep | None:
        if index:
            return self.steps.step(index, w)
        return WindowStep(*self.steps.over_inputs(w), []) if self.support is None else None

    def _sent_back(
        self, node: int, lower: Tensor, upper: Tensor | None, *, pick: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Sends coefficients back to the input, and takes the extreme values over its box.

        Those of the upper bounds may be left out, and are the same tensor for as long as they are the lower bounds'.
        `pick` are the rows that each sample wants, (batch, wanted), of coefficients that are the same for all.
        """
        run = _Pass(self, pick)
        run.add(node, (lower, upper))
        for index in range(node, -1, -1):
            run.step(index)
        shape = (len(self.values[0]), lower.shape[1] if pick is None else pick.shape[1])
        return run.low.expand(shape), None if upper is None else run.up.expand(shape)

    def _shape(self, node: int) -> tuple[int, ...]:
        """The shape of a sample of the node's output."""
        if node < len(self.values):
            return tuple(self.values[node].shape[1:])
        with torch.no_grad():
            return tuple(self.network.step(node, [v[:1] for v in self.values]).shape[1:])

    def _of_samples(self, samples: slice) -> Relaxation:
        """The relaxation of some of the samples; the last one is kept."""
        if samples.stop - samples.start == len(self.values[0]):
            return self
        if self._part[0] != samples:
            self._part = samples, _OfSamples(self, samples)
        self._part[1].once = self.once
        return self._part[1]

    def _room(self) -> int:
        return min(self.memory, CHUNK)

    def _largest(self, node: int) -> int:
        """How many numbers the coefficients of one row of a sample are at most, on the way back from a node."""
        return max(prod(v.shape[1:]) for v in (self.values[i] for i in range(min(node + 1, len(self.values)))))

    def _blocks(self, node: int) -> Iterator[tuple[slice, Relaxation, int]]:
        """Samples, their relaxation, and how many rows of each can be handled at a time."""
        batch = len(self.values[0])
        room = self._room() // (ALIVE * self.values[0].lower.element_size() * self._largest(node))
        step = max(1, batch) if self.support is not None else min(batch, max(1, room))
        for begin in range(0, batch, step):
            samples = slice(begin, min(begin + step, batch))
            yield samples, self._of_samples(samples), max(1, room // (samples.stop - samples.start))


def _fitting(entries: Tensor, size: int, count: int) -> Tensor:
    """The first entries for which a table with as many rows for every sample has at most `count` of them."""
    while len(entries) > 1:
        sample = entries // size
        table = (int(sample[-1]) - int(sample[0]) + 1) * int((sample - sample[0]).bincount().max())
        if table <= count:
            break
        entries = entries[: max(1, min(len(entries) - 1, len(entries) * count // table))]
    return entries


class _OfSamples(Relaxation):
    """A part of the samples, whose lines and offsets are those of all."""

    def __init__(self, every: Relaxation, samples: slice | Tensor) -> None:
        super().__init__(every.network, _Sliced(every.values, samples), memory=every.memory)
        self.every, self.samples = every, samples

    def _lines(self, index: int) -> tuple[LinearBound, LinearBound] | None:
        lines = self.every._lines(index)
        if lines is None or any(line.slope is None for line in lines):
            return super()._lines(index)
        under, over = (
            LinearBound.elementwise(line.slope[self.samples], line.offset[self.samples])
            for line in lines
            if line.slope is not None
        )
        return under, over

    def _reach(self, index: int) -> Reach:
        return self.every._reach(index).of_samples(self.samples)


class _Sliced(Sequence[Interval]):
    """The same intervals for some of the samples, as far as there are any."""

    def __init__(self, every: Sequence[Interval], samples: slice | Tensor) -> None:
        self.every, self.samples = every, samples

    def __len__(self) -> int:
        return len(self.every)

    def __getitem__(self, index: Any) -> Any:
        return self.every[index][self.samples]


class _Pass:
    """Coefficients of whole outputs on their way back: those that wait at each node, and what was added up."""

    def __init__(self, relaxation: Relaxation, pick: Tensor | None = None) -> None:
        self.relaxation, self.pick = relaxation, pick
        self.waiting: dict[int, Coefficients] = {}
        self.low = self.up = relaxation.values[0].lower.new_zeros(())

    def add(self, index: int, pair: Coefficients) -> None:
        """Coefficients that come to a node, besides those that are there."""
        if index in self.waiting:
            for part in (pair, self.waiting[index]):
                self._error(*self.relaxation.errors(index, part))
            pair = joined(pair, self.waiting[index])
        self.waiting[index] = pair

    def step(self, index: int) -> None:
        """Replaces a node by what it is computed from; the input by its extreme values."""
        if index not in self.waiting:
            return
        network = self.relaxation.network
        if self.pick is not None and (index == 0 or not network.rules[index].affine):
            self._choose(self.pick)
        pair = self.waiting.pop(index)
        if index == 0:
            least, most = self.relaxation.over_inputs(*pair)
            self._number(least, most)
            return
        step = self.relaxation.substituted(index, *pair)
        self._number(step.lower, step.upper)
        for source, below in zip(network.nodes[index].inputs, step.inputs, strict=bool(step.inputs)):
            self.add(source, below)

    def _number(self, low: Tensor | None, up: Tensor | None) -> None:
        self.low = self.low if low is None else lower_sum(self.low, low)
        self.up = self.up if up is None else upper_sum(self.up, up)

    def _error(self, low: Tensor | None, up: Tensor | None) -> None:
        self.low = self.low if low is None else rounding.lessened(self.low, low)
        self.up = self.up if up is None else rounding.increased(self.up, up)

    def _choose(self, pick: Tensor) -> None:
        """The rows that each sample wants, from here on."""
        chosen: dict[int, Tensor] = {}

        def rows(t: Tensor) -> Tensor:
            if id(t) not in chosen:
                chosen[id(t)] = t[0].index_select(0, pick.flatten()).view(*pick.shape, *t.shape[2:])
            return chosen[id(t)]

        self.waiting = {
            index: (None if a is None else rows(a), None if b is None else rows(b))
            for index, (a, b) in self.waiting.items()
        }
        self.low, self.up = (
            t if t.dim() == 0 else t.expand(len(pick), t.shape[1]).gather(1, pick) for t in (self.low, self.up)
        )
        self.pick = None
