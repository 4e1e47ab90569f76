"""Bounds with slopes to choose through a traced network itself, for networks that are too large to be made compact.

The coefficients of a few rows go back through the graph by the layers' own rules, so that nothing is ever as large as a
layer times another; the gradient by the slopes is automatic differentiation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.methods.ascent import Dual, Gradient
from robust_plugins.intervals.methods.coefficients import lower_sum
from robust_plugins.intervals.methods.piecewise import PiecewiseLinear, piecewise_linear
from robust_plugins.intervals.methods.reach import arriving, dot
from robust_plugins.intervals.methods.relaxation import Relaxation
from robust_plugins.intervals.network.graph import Network


class GraphDual(Dual):
    """Lower bounds on combinations of the output of a network over the box of one sample.

    `values` are sound intervals of all nodes' outputs, of batch 1. The units are the kinks that the inputs of piecewise
    linear layers may pass; the other nonlinear layers keep their relaxations. Sound as `Relaxation`, for any slopes in
    [0, 1].
    """

    def __init__(self, network: Network, values: Sequence[Interval], *, memory: int) -> None:
        self.network, self.values = network, values
        self.relaxation = Relaxation(network, values, memory=memory)
        self.pieces: dict[int, _Pieces] = {}
        count = 0
        for index, layer in enumerate(network.layers):
            function = piecewise_linear(layer)
            if function is None:
                continue
            z = values[network.nodes[index].inputs[0]]
            self.pieces[index] = pieces = _pieces(z, function, count)
            count += sum(len(k.entries) for k in pieces.kinks)
        chords = [k.chord for pieces in self.pieces.values() for k in pieces.kinks]
        self.chord = torch.cat([values[0].lower.new_zeros(0), *chords]).unsqueeze(1)
        self.least, self.most = torch.zeros_like(self.chord), torch.ones_like(self.chord)

    def usual_slopes(self) -> Float[Tensor, "units 1"]:
        """CROWN's choice: 1 where the chord is steeper than 1/2, else 0."""
        return (self.chord > 0.5).to(self.chord)

    def evaluate(  # noqa: D102 (inherited)
        self, rows: Float[Tensor, "outputs rows"], const: Float[Tensor, " rows"], slopes: Float[Tensor, "units rows"]
    ) -> tuple[Float[Tensor, " rows"], Gradient]:
        with torch.enable_grad():
            chosen = slopes.detach().requires_grad_()
            value = self.differentiable_bound(rows.detach(), const.detach(), chosen)
            # Slopes before a layer that is bounded by constants have no part in the bound.
            (gradient,) = torch.autograd.grad(value.sum() + 0 * chosen.sum(), chosen)
        return value.detach(), lambda keep: gradient if keep is None else gradient[:, keep]

    def differentiable_bound(
        self, rows: Float[Tensor, "outputs rows"], const: Float[Tensor, " rows"], slopes: Float[Tensor, "units rows"]
    ) -> Float[Tensor, " rows"]:
        """Lower bounds of `rows^T y + const`, differentiable in weights and slopes."""
        last, value = len(self.network.nodes) - 1, const.unsqueeze(0)
        waiting = {last: rows.t().reshape(1, -1, *self.values[last].shape[1:])}
        number: Tensor | None
        if rounding.active():  # whoever adds up the outputs errs too
            value = rounding.lessened(value, dot(waiting[last].detach().abs(), arriving(self.values[last])))
        for index in range(last, 0, -1):
            if index not in waiting:
                continue
            a = waiting.pop(index)
            if index in self.pieces:
                number, below = self._piecewise(index, a, slopes)
                inputs = [below]
            else:
                step = self.relaxation.substituted(index, a, None)
                number, inputs = step.lower, [c for c, _ in step.inputs if c is not None]
            if number is not None:
                value = lower_sum(value, number)
            for source, c in zip(self.network.nodes[index].inputs, inputs, strict=bool(inputs)):
                if source in waiting:
                    for part in (waiting[source], c):
                        lost, _ = self.relaxation.errors(source, (part, None))
                        value = value if lost is None else rounding.lessened(value, lost)
                    c = waiting[source] + c
                waiting[source] = c
        if 0 in waiting:
            least, _ = self.relaxation.over_inputs(waiting[0], None)
            assert least is not None  # it was asked for
            value = lower_sum(value, least)
        return value.expand(1, rows.shape[1])[0]

    @torch.no_grad()
    def outward_bound(  # noqa: D102 (inherited)
        self, rows: Float[Tensor, "outputs rows"], const: Float[Tensor, " rows"], slopes: Float[Tensor, "units rows"]
    ) -> Float[Tensor, " rows"]:
        return self.differentiable_bound(rows, const, slopes)

    def _piecewise(self, index: int, a: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of the pieces and of the kinks that may be passed, sent to z, and what is constant."""
        pieces = self.pieces[index]
        flat = a.flatten(2)[0]  # (rows, entries)
        below, number = flat * pieces.slope, (flat * pieces.offset).sum(1)
        for kink in pieces.kinks:
            own = flat[:, kink.entries] * kink.change
            positive, negative = own.clamp(min=0), own.clamp(max=0)
            at = slice(kink.first, kink.first + len(kink.entries))
            through = positive * slopes[at].t() + negative * kink.chord
            below = below.index_add(1, kink.entries, through)
            number = number - through.sum(1) * kink.kink + (negative * kink.intercept).sum(1)
        if rounding.active():
            number = rounding.lessened(number, self._roundings(index, pieces, flat.detach().abs()))
        return number.unsqueeze(0), below.view(a.shape)

    @torch.no_grad()
    def _roundings(self, index: int, pieces: _Pieces, size: Tensor) -> Tensor:
        """The errors of all that `_piecewise` computes from coefficients of this size, and of the layer itself."""
        z, y = (self.values[i].magnitude.flatten() for i in (self.network.nodes[index].inputs[0], index))
        changes = sum(abs(kink.change) for kink in pieces.kinks)
        terms = (pieces.slope.abs() + 2 * changes) * z + y + pieces.offset.abs()
        for kink in pieces.kinks:
            terms = terms + 2 * abs(kink.change * kink.kink)
            terms = terms.index_add(0, kink.entries, abs(kink.change) * kink.intercept.abs())
        once = rounding.once(len(terms) + 8 * len(pieces.kinks), terms.dtype)
        return size @ (once * terms + rounding.underflow(8, terms.dtype))


class _Kink(NamedTuple):
    """One kink of a layer: the entries that may pass it, and the chords of `relu(z - kink)` there."""

    kink: float
    change: float
    first: int
    """The place of its first unit."""
    entries: Tensor
    chord: Tensor
    intercept: Tensor


class _Pieces(NamedTuple):
    """A layer as `slope z + offset`, an entry's own line below all kinks that it may pass, and these kinks.

    Summed up before it meets coefficients: between the ends of a clamp the offset is 0, not a difference of them.
    """

    slope: Tensor
    offset: Tensor
    kinks: list[_Kink]


def _pieces(z: Interval, function: PiecewiseLinear, first: int) -> _Pieces:
    lower, upper = z.lower.flatten(), z.upper.flatten()
    slope, offset = torch.full_like(lower, function.slope), torch.full_like(lower, function.value)
    kinks = []
    for kink, change in function.kinks:
        low, up = lower - kink, upper - kink
        active = change * (low >= 0).to(low)
        slope, offset = slope + active, offset - kink * active
        entries = ((low < 0) & (up > 0)).nonzero().flatten()
        low, up = low[entries], up[entries]
        chord = up / (up - low)
        intercept = -chord * low
        if rounding.active():  # no less than at either end
            scale = (low.abs() + up.abs() + abs(kink)).detach()
            intercept = torch.maximum(intercept, up - chord * up)
            intercept = rounding.widened(intercept, intercept, ulps=8, scale=scale)[1]
        kinks.append(_Kink(kink, change, first, entries, chord, intercept))
        first += len(entries)
    return _Pieces(slope, offset, kinks)
