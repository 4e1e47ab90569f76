"""Joint gates: slope and gradient of a smooth activation relaxed together, and the slope's dependence on x kept.

A gate of the backward pass is `h = s g` with `s = f'(z)`. With `s = s0 + ds p`, `g = g0 + dg q` and p, q in [-1, 1]

    s g = s0 g + g0 s - s0 g0 + ds dg p q,    sign p q <= 1 + 2 tau (p - sign q)    for every tau in [-1/2, 1/2]:

a plane above the product (tau = 0 is Taylor's, +-1/2 are McCormick's). Substituting it back through the backward pass
leaves coefficients C on the slopes f'(z); sent back through the forward pass, they meet coefficients M on the outputs
f(z) of the same layer, and one line bounds `M f(z) + C f'(z)`, so that what x does to both survives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from robust_plugins.explanations.bounds.adjoint import Adjoint
from robust_plugins.explanations.bounds.curvature import PIECES, Smooth, smooth_of
from robust_plugins.intervals import Interval, Network, Relaxation
from robust_plugins.intervals.methods.substitution import Support

Through = Callable[[int, Tensor | None], tuple[Tensor, Tensor] | None]
"""Sends a coefficient through a layer: a number to add for each row, and the coefficient of the layer's input."""


@dataclass(frozen=True)
class Plane:
    """Which plane bounds a gate from above, and how the line through the forward pass lies."""

    tau: float | None
    """None: the one that leaves the fewest coefficients on the slopes."""
    flatness: float
    """The line's slope: 0 for the chord's, 1 for none, or between."""

    def tau_of(self, gate: int, a: Tensor, g: Interval) -> Tensor:
        """The plane's tau at a gate with coefficients `a`, whose gradient lies in `g`: any in [-1/2, 1/2] is sound."""
        if self.tau is not None:
            return torch.full_like(g.lower.unsqueeze(1), self.tau)
        width = g.width.unsqueeze(1)
        return (-a.sign() * g.center.unsqueeze(1) / torch.where(width > 0, width, 1)).clamp(-0.5, 0.5)

    def slope_of(self, activation: int, rise: Tensor, size: Tensor) -> Tensor:
        """The line's slope, for the chord's slope `rise` and coefficients of that size: any is sound."""
        return rise * (1 - self.flatness)


@dataclass(frozen=True, eq=False)
class Tuned(Plane):
    """A choice for each row and unit."""

    taus: dict[int, Tensor]
    """By gate of the adjoint, (batch, rows, *shape)."""
    flat: dict[int, Tensor]
    """By activation of the network."""
    tilt: dict[int, Tensor]
    """By activation: what is added to the line's slope, in units of its coefficients."""

    def tau_of(self, gate: int, a: Tensor, g: Interval) -> Tensor:
        """The gate's own choice, cut to where it is sound."""
        return self.taus[gate].clamp(-0.5, 0.5)

    def slope_of(self, activation: int, rise: Tensor, size: Tensor) -> Tensor:
        """The activation's own flatness and tilt of the chord's slope."""
        return rise * (1 - self.flat[activation]) + self.tilt[activation] * size


TAYLOR = Plane(0.0, 0.0)
PLANES = (TAYLOR, Plane(0.0, 0.5), Plane(None, 0.0))


def largest(relaxation: Relaxation, start: dict[int, Tensor], through: Through, last: int) -> Tensor:
    """The largest value over the box of the combination with coefficients `start` of nodes up to `last`: (batch, rows).

    `through` treats layers in a way of its own. It is asked at every layer, also where no coefficient arrives; None
    leaves a layer to its relaxation.
    """
    waiting = dict(start)
    total = relaxation.values[0].lower.new_zeros(())
    for index in range(last, 0, -1):
        a = waiting.pop(index, None)
        below: list[Tensor]
        if (found := through(index, a)) is not None:
            number, below = found[0], [found[1]]
        elif a is None:
            continue
        else:
            step = relaxation.substituted(index, None, a)
            assert step.upper is not None
            number, below = step.upper, [t for _, t in step.inputs if t is not None]
        total = total + number
        for source, t in zip(relaxation.network.nodes[index].inputs, below, strict=bool(below)):
            waiting[source] = waiting[source] + t if source in waiting else t
    if 0 not in waiting:
        return total
    _, most = relaxation.over_inputs(None, waiting[0])
    assert most is not None
    return total + most


class JointGates:
    """Bounds on the gradients of a network by joint gates.

    `values` are the bounds of the network's nodes; `grads` those of the adjoint's, as far as they are known: more may
    be appended while bounds are being computed. `support` describes a smaller set than the box, as for `Relaxation`.
    """

    def __init__(
        self,
        network: Network,
        values: Sequence[Interval],
        adjoint: Adjoint,
        grads: Sequence[Interval],
        memory: int,
        support: Support | None,
    ) -> None:
        self.adjoint, self.grads, self.values, self.network = adjoint, grads, values, network
        self.forward = Relaxation(network, values, memory=memory, support=support)
        self.backward = Relaxation(adjoint, grads, memory=memory)
        self.smooth: dict[int, Smooth] = {}
        """By index in the network."""
        for index in set(adjoint.gates.values()):
            if (smooth := smooth_of(network.layers[index])) is not None:
                self.smooth[index] = smooth
        self.memory = memory

    def bounds(self, node: int, plane: Plane, *, steps: int = 0, entries: Tensor | None = None) -> Interval:
        """The interval of a node of the adjoint, from those before it; of entries that are not wanted, what is known.

        With `steps`, that many steps of Adam choose the plane and the line for each row and unit first, from `plane`.
        `entries` are indices into a sample's, None for all.
        """
        shape = tuple(self.grads[node].shape[1:])
        size = prod(shape)
        largest = max(v.lower.numel() for v in (*self.values, *self.grads))
        # Up to a dozen tensors of coefficients are alive while a line is looked for, for two signs each.
        # The search keeps those of all points of the line's grid, for its gradient.
        alive = 24 * (PIECES if steps else 1)
        step = max(1, self.memory // (alive * largest * self.grads[0].lower.element_size()))
        found: list[Tensor] = []
        eye = torch.eye(size, dtype=self.grads[0].dtype, device=self.grads[0].device)
        eye = eye if entries is None else eye[entries]
        for begin in range(0, len(eye), step):
            rows = eye[begin : begin + step]
            rows = torch.cat((rows, -rows)).view(1, -1, *shape)
            found.append(self._upper(rows, node, self._tuned(rows, node, plane, steps) if steps else plane))
        upper = torch.cat([f[:, : f.shape[1] // 2] for f in found], 1)
        lower = -torch.cat([f[:, f.shape[1] // 2 :] for f in found], 1)
        if entries is None:
            return Interval(lower.view(-1, *shape), upper.view(-1, *shape))
        known = self.grads[node]
        lower = known.lower.flatten(1).index_copy(1, entries, lower)
        upper = known.upper.flatten(1).index_copy(1, entries, upper)
        return Interval(lower.view(-1, *shape), upper.view(-1, *shape))

    def _tuned(self, rows: Tensor, node: int, plane: Plane, steps: int) -> Plane:
        """A choice for each row and unit with smaller upper bounds. Every choice is sound, so it may be rough."""
        taus: dict[int, Tensor] = {}
        with torch.no_grad():
            self._upper(rows, node, plane, record=taus)
        if not taus:
            return plane
        taus = {k: t.clone().requires_grad_() for k, t in taus.items()}
        flat = {self.adjoint.gates[k]: torch.full_like(t, plane.flatness).requires_grad_() for k, t in taus.items()}
        tilt = {k: torch.zeros_like(t).requires_grad_() for k, t in flat.items()}
        tuned = Tuned(plane.tau, plane.flatness, taus, flat, tilt)
        parts = ((taus, 0.1), (flat, 0.1), (tilt, 0.01))
        choices = [t for part, _ in parts for t in part.values()]
        optimizer = torch.optim.Adam([{"params": list(part.values()), "lr": rate} for part, rate in parts])
        rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
        for _ in range(steps):
            with torch.enable_grad():
                bound = self._upper(rows, node, tuned, pieces=PIECES // 2).sum()
            gradients = torch.autograd.grad(bound, choices, materialize_grads=True)
            for choice, gradient in zip(choices, gradients, strict=True):
                choice.grad = gradient
            optimizer.step()
            rates.step()
        detached = [{k: t.detach() for k, t in part.items()} for part in (taus, flat, tilt)]
        return Tuned(plane.tau, plane.flatness, *detached)

    def _upper(
        self, rows: Tensor, node: int, plane: Plane, *, record: dict[int, Tensor] | None = None, pieces: int = PIECES
    ) -> Tensor:
        """Upper bounds of `rows` times a node, (batch, rows); `record` receives the planes' tau at every gate."""
        on_slopes: dict[int, Tensor] = {}

        def gate(index: int, a: Tensor | None) -> tuple[Tensor, Tensor] | None:
            source = self.adjoint.gates.get(index)
            if a is None or source is None or source not in self.smooth:
                return None
            s, g = self.adjoint.slopes[index], self.grads[self.adjoint.nodes[index].inputs[0]]
            s0, ds, g0, dg = (t.unsqueeze(1) for t in (s.center, s.radius, g.center, g.radius))
            size, tau = a.abs(), plane.tau_of(index, a, g)
            if record is not None:
                record[index] = tau.expand(len(g), *a.shape[1:])
            c = a * g0 + 2 * tau * size * dg
            on_slopes[source] = on_slopes[source] + c if source in on_slopes else c
            constant = size * ds * dg - a * s0 * g0 - 2 * tau * (size * dg * s0 - a * ds * g0)
            return constant.flatten(2).sum(2), a * (s0 - 2 * tau * ds)

        total = largest(self.backward, {node: rows}, gate, node)

        def activation(index: int, m: Tensor | None) -> tuple[Tensor, Tensor] | None:
            if index not in on_slopes:
                return None
            z, c = self.values[self.network.nodes[index].inputs[0]], on_slopes[index]
            if m is None and not isinstance(plane, Tuned):
                # Of f' alone the line depends on the sign of c only.
                one = torch.ones_like(z.lower).unsqueeze(1)
                signs = torch.cat((one, -one), 1)
                lines = line_above(self.smooth[index], z, None, signs, partial(plane.slope_of, index), pieces)
                slope, offset = (c.clamp(min=0) * t[:, :1] - c.clamp(max=0) * t[:, 1:] for t in lines)
                return offset.flatten(2).sum(2), slope
            slope, offset = line_above(self.smooth[index], z, m, c, partial(plane.slope_of, index), pieces)
            return offset.flatten(2).sum(2), slope

        if on_slopes:
            total = total + largest(self.forward, {}, activation, max(on_slopes))
        return total


def gradient_interval(
    network: Network,
    values: Sequence[Interval],
    adjoint: Adjoint,
    start: Interval,
    planes: Sequence[Plane],
    memory: int,
    *,
    steps: int = 0,
    asked: Tensor | None = None,
    support: Support | None = None,
) -> Interval:
    """Bounds on the adjoint's output for derivatives `start` by the network's output.

    Every gate's gradient is bounded by interval propagation, by relaxed gates, by joint gates with each plane, and with
    `steps` by planes that are searched for from the first one. Of the output, joint gates bound the entries that are
    `asked` of some sample, (batch, *features), or for None all. `support` describes a smaller set than the box.
    """
    grads: list[Interval] = [start]
    relaxation = Relaxation(adjoint, grads, memory=memory)
    joint = JointGates(network, values, adjoint, grads, memory, support)
    chosen = planes if joint.smooth else ()
    last = len(adjoint.nodes) - 1
    bent = [index for index in range(1, last + 1) if not adjoint.rules[index].affine]
    wanted = {last}.union(*(adjoint.nodes[index].inputs for index in bent))
    gated: set[int] = set()  # what lies behind a gate; before the first one interval propagation is exact
    for index in range(1, last + 1):
        grads.append(adjoint.step(index, grads))
        if index in bent or gated.intersection(adjoint.nodes[index].inputs):
            gated.add(index)
        if index in wanted & gated:
            grads[index] = relaxation.sharpened(index, _unsteady(adjoint, index) if index != last else None)
            entries = None if asked is None or index != last else asked.flatten(1).any(0).nonzero().flatten()
            for plane in chosen:
                grads[index] = grads[index].agreeing(joint.bounds(index, plane, entries=entries))
            if steps and chosen:
                grads[index] = grads[index].agreeing(joint.bounds(index, chosen[0], steps=steps, entries=entries))
    return grads[last]


def _unsteady(adjoint: Adjoint, index: int) -> Tensor | None:
    """Where gates that read a node have a slope that is not known: others pass bounds on as they are. None: all."""
    gates = [g for g, node in enumerate(adjoint.nodes) if index in node.inputs and not adjoint.rules[g].affine]
    if not adjoint.slopes.keys() >= set(gates):
        return None
    found = [adjoint.slopes[g].lower != adjoint.slopes[g].upper for g in gates]
    return torch.stack(found).any(0)


def line_above(
    smooth: Smooth,
    z: Interval,
    m: Tensor | None,
    c: Tensor,
    slope_of: Callable[[Tensor, Tensor], Tensor],
    pieces: int = PIECES,
) -> tuple[Tensor, Tensor]:
    """Slope and intercept of a line above `m f(z) + c f'(z)` on z, for coefficients of shape (batch, rows, *shape).

    The intercept is the largest of `m f + c f' - slope z` on a grid, plus what the function can rise above its chord
    between two points w apart: `w^2 / 8 (|m| sup |f''| + |c| sup |f'''|)`. Sound for every slope.
    """
    f, df = smooth.activation.f, smooth.activation.slope
    width = z.upper - z.lower
    points = [z.lower + width * (k / pieces) for k in range(pieces)] + [z.upper]
    curves = [(f(p).unsqueeze(1), df(p).unsqueeze(1)) for p in points]

    def at(k: int) -> Tensor:
        value = c * curves[k][1]
        return value if m is None else value + m * curves[k][0]

    first, last = at(0), at(pieces)
    wide = (width > 1e-6).unsqueeze(1)
    rise = (last - first) / torch.where(wide, width.unsqueeze(1), 1)
    size_c, size_m = c.abs(), None if m is None else m.abs()
    size = size_c if size_m is None else size_c + size_m
    slope = slope_of(torch.where(wide, rise, 0.0), size * width.clamp(max=1).unsqueeze(1))
    before = first - slope * points[0].unsqueeze(1)
    offset = before
    for k in range(1, pieces + 1):
        here = (last if k == pieces else at(k)) - slope * points[k].unsqueeze(1)
        second, third = smooth.bends(Interval(points[k - 1], points[k]))
        step = (points[k] - points[k - 1]) ** 2 / 8
        highest = torch.maximum(before, here) + size_c * (third * step).unsqueeze(1)
        if size_m is not None:
            highest = highest + size_m * (second * step).unsqueeze(1)
        offset, before = torch.maximum(offset, highest), here
    # The ranges of f and f' alone are nearer where the line is flat and the interval wide.
    ranges = (Interval.point(c) * smooth.activation.slopes(z).map(lambda t: t.unsqueeze(1))).upper
    if m is not None:
        ranges = ranges + (Interval.point(m) * smooth.activation.range(z).map(lambda t: t.unsqueeze(1))).upper
    ends = torch.minimum(slope * z.lower.unsqueeze(1), slope * z.upper.unsqueeze(1))
    gaps = smooth.gaps(z)
    if isinstance(gaps, Tensor):
        offset = offset + gaps.unsqueeze(1) * size
    return slope, torch.minimum(offset, ranges - ends)
