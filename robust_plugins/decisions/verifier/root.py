"""`Root`: a network over one box, made compact in float64, with a bound on every rounding error on the way.

The search runs in float32 on a copy, and nothing it finds is believed: slopes and multipliers are *evaluated* here once
more. A bound is valid for any of them, so that only the evaluation's own rounding counts, which is bounded a priori:

- every node's output is `C s + o` up to `slack`, with the state s of the compact network. An affine layer adds what its
  own rule states in outward rounding, at the columns' magnitudes weighted by the state's;
- a lower bound computed backward is off by at most `gamma (|c| S + sum |p| (|M| S + |b|) + sum |a| T) + sum |p| slack`,
  where S bounds the state and T the inputs of the units. Coefficients are what they were computed to be: their error
  is one of the constant term, `|M^T p|` times S.

Higham, "Accuracy and stability of numerical algorithms", chapter 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.decisions.verifier.clock import Clock
from robust_plugins.decisions.verifier.trees import Trees
from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.methods.columns import Columns
from robust_plugins.intervals.methods.compact import Bound, Compact, Reach
from robust_plugins.intervals.methods.piecewise import PiecewiseLinear, piecewise_linear
from robust_plugins.intervals.methods.unfolding import Unfolding
from robust_plugins.intervals.rules.elementwise import Activation

UNIT = 2.0**-53
NONE = PiecewiseLinear(0.0, 0.0, ())


@dataclass(frozen=True, eq=False)
class Duals:
    """The duals that make a bound: slopes in [0, 1], multipliers >= 0, and signs of units' inputs, (units, rows)."""

    slopes: Tensor
    multipliers: Tensor
    signs: Tensor
    """1 where z >= 0 was assumed, -1 where z <= 0 was, else 0."""


@dataclass(eq=False)
class Root(Unfolding):
    """The compact network of a ReLU form in float64, and `fast`, its copy in float32 for searches.

    `known` are sound intervals of the nodes' outputs, or the input's box alone. The bounds of nonlinear layers' inputs
    are optimised by `ascent`; raises OutOfTimeError when `clock` says so.
    """

    clock: Clock = field(kw_only=True)
    trees: Trees | None = field(default=None, kw_only=True)
    """How bounds are improved that `known` has already optimised; None: not."""
    reach: Reach | None = field(default=None, kw_only=True)
    """A part of the box, in the state's coordinates, outside which nothing is asked."""

    def __post_init__(self) -> None:
        box = self.known[0]
        self.fast = self._begun(int((box.radius != 0).sum()), box.lower.float())
        self.slack: list[Tensor] = [4 * UNIT * (box.center.abs() + box.radius)]
        self.magnitudes: list[Tensor] = [box.radius]
        """The largest magnitude of the part of each node's output that the state moves."""
        self._sizes: list[Tensor] = [box.lower.new_ones(self.fast.inputs)]
        self._reach, self._pushed, self._off = ([box.lower.new_zeros(0)] for _ in range(3))
        with torch.no_grad():
            super().__post_init__()
            self._copy()

    def _begun(self, inputs: int, like: Tensor) -> Compact:
        compact = super()._begun(inputs, like)
        compact.reach = self.reach or compact.reach
        return compact

    @property
    def sizes(self) -> Float[Tensor, " state"]:
        """The largest magnitude of each entry of the state."""
        return torch.cat(self._sizes)

    def specified(
        self, spec: Float[Tensor, "rows outputs"], offsets: Float[Tensor, " rows"]
    ) -> tuple[Float[Tensor, "state rows"], Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """`spec z + offsets` of the network's output z as rows of the state, their constants, and how far off."""
        last = len(self.network.nodes) - 1
        columns = self.columns[last]
        rows, const = columns.rows(self.compact, spec=spec)
        size = self.magnitudes[last] + columns.offset.abs()
        off = spec.abs() @ (self.slack[last] + _gamma(spec.shape[1] + 8) * size).flatten()
        const = const + offsets
        return rows, const, off + 8 * UNIT * (const.abs() + offsets.abs())

    def input_at(self, point: Float[Tensor, "inputs 1"]) -> Float[Tensor, "1 *features"]:
        """The input whose entries of the state are these; inside the box."""
        box = self.known[0]
        moved = torch.zeros_like(box.center.flatten())
        moved[box.radius.flatten().nonzero().flatten()] = point[:, 0]
        x = box.center + box.radius * moved.view(box.shape)
        return torch.maximum(torch.minimum(x, box.upper), box.lower)

    def evaluate(
        self, rows: Float[Tensor, "state rows"], const: Float[Tensor, " rows"], duals: Duals
    ) -> Float[Tensor, " rows"]:
        """A lower bound of `rows^T s + const` in real arithmetic, over the part of the box where the signs hold."""
        compact, signs = self.compact, duals.signs
        free = 1 - signs.abs()
        positive = signs.clamp(min=0)
        least, most = torch.maximum(compact.least, positive), torch.minimum(compact.most, free + positive)
        slopes = torch.minimum(torch.maximum(duals.slopes, least), most)
        above = compact.chord * free + positive, compact.intercept * free
        multipliers = duals.multipliers.clamp(min=0) * signs.abs()
        found = compact.bound(rows, const, slopes, above=above, pull=multipliers * signs)
        return found.value - self._error(rows, const, found, multipliers)

    def _error(self, rows: Tensor, const: Tensor, found: Bound, multipliers: Tensor) -> Tensor:
        reach, pushed, off = torch.cat(self._reach), torch.cat(self._pushed), torch.cat(self._off)
        gamma = _gamma(2 * len(rows) + 64)
        a = found.coefficients[self.compact.inputs :].abs()
        p = (a * found.slopes.abs() + multipliers).t()
        size = rows.abs().t() @ self.sizes + const.abs() + p @ (pushed + self.compact.offset[:, 0].abs())
        return (gamma * (size + (a + multipliers).t() @ reach) + p @ off) * (1 + 1e-9)

    def _interval(self, index: int) -> Interval:
        with rounding.outward():
            found = self.network.step(index, self.values)
        return found if len(self.known) <= index else found.agreeing(self.known[index])

    def _affine(self, index: int) -> Columns:
        columns = super()._affine(index)
        network, layer = self.network, self.network.layers[index]
        rule, parameters, inputs = network.rules[index].forward, network.parameters[index], network.nodes[index].inputs
        assert rule is not None
        before = [self.columns[j] for j in inputs]
        total = self.sizes[columns.start : columns.start + len(columns.coefficients)].sum().clamp(min=1)

        def width(points: list[Interval]) -> Tensor:
            found: Interval = rule(layer, *points, **parameters)
            return found.upper - found.lower

        with rounding.outward():
            slack = width([Interval(-self.slack[j], self.slack[j]) for j in inputs])
            slack = slack + width([Interval.point(c.offset) for c in before])
            # Of a column c the layer's rounding errors are linear in |c|, and so in their weighted mean.
            means = [Interval.point(self.magnitudes[j] * (self.scale / total)) for j in inputs]
            slack = slack + 3 * (total / self.scale) * width(means)
        self.magnitudes.append(self._magnitude(columns))
        self.slack.append(slack * (1 + 1e-9) + 64 * UNIT * (columns.offset.abs() + self.magnitudes[-1]))
        return columns

    def _elementwise(self, index: int, activation: Activation) -> Columns:
        (source,) = self.network.nodes[index].inputs
        function = piecewise_linear(self.network.layers[index])
        assert function is not None  # the network is a ReLU form
        self._source = source
        columns = super()._elementwise(index, activation)
        steep, shift, slope = abs(function.slope), abs(function.value), function.slope
        total = steep
        for kink, change in function.kinks:
            slope += change
            steep, shift, total = max(steep, abs(slope)), shift + abs(kink * change), total + abs(change)
        size = self.magnitudes[source] + self.columns[source].offset.abs()
        self.magnitudes.append((total * size + shift) * (1 + 1e-9))
        self.slack.append(steep * self.slack[source] * (1 + 1e-9) + 8 * UNIT * (steep * size + shift))
        return columns

    def _relus(self, z: Columns, units: Tensor, low: Tensor, up: Tensor, kink: float, change: float) -> Any:
        entries = units.nonzero().flatten()
        stays = low >= 0
        low = torch.where(stays, low, low - 2 * UNIT * (low.abs() + abs(kink)))
        up = up + 2 * UNIT * (up.abs() + abs(kink))
        opened = super()._relus(z, units, low, up, kink, change)
        if len(entries):
            slack, size = self.slack[self._source].flatten(), self.magnitudes[self._source].flatten()
            offset = z.offset.flatten()[entries].abs() + abs(kink)
            self._pushed.append(size[entries])
            self._reach.append(2 * (low[entries].abs() + up[entries].abs()))
            self._off.append(slack[entries] + 4 * UNIT * offset)
            self._sizes.append(up[entries].clamp(min=0))
        return opened

    def _magnitude(self, columns: Columns) -> Tensor:
        size = self.sizes[columns.start : columns.start + len(columns.coefficients)] / columns.scale
        flat = columns.coefficients.reshape(len(size), columns.offset.numel())
        return (size @ flat.abs()).view(columns.offset.shape)

    def _sharpen(self, index: int, readers: Sequence[nn.Module]) -> None:
        """Bounds the node's entries that may pass a kink by their columns, then with CROWN's slopes, then with others.

        Each step goes on with those that still pass it.
        """
        kinks = sorted({k for layer in readers for k, _ in (piecewise_linear(layer) or NONE).kinks})
        if None in map(piecewise_linear, readers) or not kinks:
            kinks = [-torch.inf]
        ways = [self._by_columns, self._by_usual_slopes, self._by_ascent]
        if len(self.known) > 1:  # known from another unfolding, whose ways need not be gone again
            ways = [self._by_columns] if self.trees is None else [self._by_columns, self._by_trees]
        for bound in ways:
            self.clock.check()
            value = self.values[index]
            low, up = value.lower.flatten(), value.upper.flatten()
            open_entries = torch.stack([(low < k) & (up > k) for k in kinks]).any(0).nonzero().flatten()
            if not len(open_entries):
                return
            below, above = bound(index, open_entries, kinks)
            slack = self.slack[index].flatten()[open_entries]
            ends = low.index_copy(0, open_entries, below - slack), up.index_copy(0, open_entries, above + slack)
            self.values[index] = value.agreeing(Interval(*(end.view(value.shape) for end in ends)))
            if not bool(self.compact.free.any()):
                return

    def _by_columns(self, index: int, entries: Tensor, _: Sequence[float]) -> tuple[Tensor, Tensor]:
        columns = self.columns[index]
        n = max(0, self.compact.inputs - columns.start)
        coefficients = columns.flat(entries)
        size = self.sizes[columns.start : columns.start + len(coefficients)]
        offset, moved = columns.offset.flatten()[entries], size.unsqueeze(1) * coefficients
        error = _gamma(2 * len(size) + 64) * (offset.abs() + self.magnitudes[index].flatten()[entries])
        inputs, units = moved[:n].abs().sum(0), moved[n:]
        below = offset - inputs + units.clamp(max=0).sum(0)
        return below - error, offset + inputs + units.clamp(min=0).sum(0) + error

    def _by_usual_slopes(self, index: int, entries: Tensor, _: Sequence[float]) -> tuple[Tensor, Tensor]:
        return self._both_ends(index, entries, lambda rows, const: self.compact.usual_slopes().expand(-1, len(const)))

    def _by_ascent(self, index: int, entries: Tensor, kinks: Sequence[float]) -> tuple[Tensor, Tensor]:
        self._copy()
        only = kinks[0] if len(kinks) == 1 else None

        def found(rows: Tensor, const: Tensor) -> Tensor:
            threshold = None
            if only is not None:
                sign = torch.ones_like(const)
                sign[len(const) // 2 :] = -1
                threshold = (only * sign).float()
            return self.ascent.maximise(self.fast, rows.float(), const.float(), threshold)[1].double()

        return self._both_ends(index, entries, found)

    def _by_trees(self, index: int, entries: Tensor, kinks: Sequence[float]) -> tuple[Tensor, Tensor]:
        assert self.trees is not None
        self._copy()
        below, above = [], []
        for part in entries.split(max(1, self.memory // (64 * self.trees.leaves * max(1, self.compact.size)))):
            rows, const = self.columns[index].rows(self.compact, at=part)
            rows, const = torch.cat([rows, -rows], 1), torch.cat([const, -const])
            shift = torch.zeros_like(const)
            if len(kinks) == 1:  # beyond its only kink a neuron needs no better bound
                shift = kinks[0] * torch.ones_like(const)
                shift[len(part) :] *= -1
            leaves, about = self.trees.grow(self.fast, rows.float(), (const - shift).float(), self.clock)
            found = torch.full_like(const, torch.inf)
            for some in torch.arange(len(about)).split(4096):
                some_leaves, owner = leaves.select(some), about[some]
                duals = Duals(*(t.double() for t in (some_leaves.slopes, some_leaves.multipliers, some_leaves.signs)))
                value = self.evaluate(rows[:, owner], const[owner], duals)
                found.scatter_reduce_(0, owner, value, "amin")
            low, up = found.chunk(2)
            below.append(low)
            above.append(-up)
        return torch.cat(below), torch.cat(above)

    def _both_ends(
        self, index: int, entries: Tensor, slopes: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        below, above = [], []
        at_once = self.memory // (20 * max(1, self.compact.size) * entries.element_size())
        for part in entries.split(max(1, at_once)):
            self.clock.check()
            rows, const = self.columns[index].rows(self.compact, at=part)
            rows, const = torch.cat([rows, -rows], 1), torch.cat([const, -const])
            chosen = slopes(rows, const)
            none = torch.zeros_like(chosen)
            low, up = self.evaluate(rows, const, Duals(chosen, none, none)).chunk(2)
            below.append(low)
            above.append(-up)
        return torch.cat(below), torch.cat(above)

    def _copy(self) -> None:
        """Brings `fast` up to date."""
        compact, fast, n = self.compact, self.fast, self.compact.inputs
        for block in compact.blocks[len(fast.blocks) :]:
            at = slice(block.first - n, block.last - n)
            lines = {name: getattr(compact, name)[at, 0].float() for name in ("least", "most", "chord", "intercept")}
            fast.add(block.start, block.matrix.to_dense().float(), compact.offset[at, 0].float(), **lines)


def _gamma(terms: int) -> float:
    """Twice Higham's gamma: one for the evaluation, one for what is evaluated."""
    return 2 * terms * UNIT / (1 - 2 * terms * UNIT)
