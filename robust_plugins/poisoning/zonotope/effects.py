"""Bounds on what one poisoned sample adds to the clean batch's gradient, along chosen directions of the parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.intervals import Interval
from robust_plugins.poisoning.zonotope.gradient import Gradient, sent_back_range
from robust_plugins.poisoning.zonotope.moves import Moves
from robust_plugins.poisoning.zonotope.set import State
from robust_plugins.poisoning.zonotope.slopes import LossSlope, Shift


@dataclass(frozen=True)
class Change:
    """dL/do of a poisoned sample: e' - e = slope (sensitivity u) +- remainder with its own label, u the move."""

    shift: Shift
    deviation: Float[Tensor, "batch outputs"]
    """|e' - error|, other labels among it where they are allowed."""
    size: Float[Tensor, "batch outputs"]
    """|e'|."""
    sent_back: Interval
    """dL/dh, (batch, neurons)."""
    sent_back_deviation: Float[Tensor, "batch neurons"]
    excess: Float[Tensor, "batch neurons"]
    """How far dL/dh is from that of the clean sample for the same parameters, where the gate depends on these."""


class Poisoned:
    """The samples of a batch with features moved within `moves` (None: kept) and labels changed, over a state.

    For the same parameters, the gradient of a poisoned sample minus that of the clean one: the part that is linear in
    the move u is kept as such, and bounded over the moves at the end; the rest is bounded in size. Where the gate of
    a neuron depends on the parameters, it counts as 1/2 here: `flips` adds what a gate is off by.
    """

    def __init__(self, state: State, loss: LossSlope, clean: Gradient, y: Tensor, moves: Moves | None) -> None:
        self.state, self.loss, self.clean, self.y, self.moves = state, loss, clean, y, moves
        layout = state.layout
        w, v = layout.split(state.center)
        rw, rv = layout.split(state.radius)
        self.last, self.last_radius = v[:, : layout.neurons], rv[:, : layout.neurons]
        h = clean.hidden
        zero = torch.zeros_like(h.reach)
        own = torch.eye(layout.outputs, dtype=v.dtype, device=v.device)
        self.labels = loss.relabelled(y, own, torch.zeros_like(own))
        """The range of e' - e by a change of the label."""
        self.sent_back_labels = loss.relabelled(y, self.last, self.last_radius)
        if moves is None:
            return
        far = moves.magnitude
        d = far.shape[1]
        self.weights = w[..., :d]
        if layout.neurons:
            self.stray = far @ rw[..., :d].T  # |u (w - center)|
            pushed = moves.support(self.weights[:, None]).magnitude.T + self.stray
            self.pushed = pushed.expand(len(y), -1)
            low, high = h.before.lower - pushed, h.before.upper + pushed
            self.flips = (low <= 0) & (high > 0) & ~h.open
            over = torch.where(h.on, (-low).clamp(min=0), high.clamp(min=0))
            self.feature_error = torch.where(h.open, pushed / 2, torch.where(self.flips, over, zero))
            gates = h.gates
            each = (self.last[..., None] * self.weights).transpose(0, 1).flatten(1)  # (neurons, outputs inputs)
            self.sensitivity = (gates @ each).unflatten(1, (layout.outputs, d))
            deviation = self._output_deviation(loss.rows @ self.last, loss.rows.abs() @ self.last_radius, pushed)
        else:
            self.sensitivity = v[None, :, :d].expand(len(y), -1, -1)
            deviation = far @ (loss.rows.abs() @ rv[:, :d]).T
        moving = moves.support((loss.rows @ self.sensitivity).transpose(0, 1)).magnitude.T
        z = clean.outputs.range
        total = moving + deviation
        moved = Interval(z.lower - total, z.upper + total)
        self.shift = loss.shift(z, moved, total, deviation.expand_as(total), y)
        self.slope = self.shift.slope @ self.sensitivity
        """The linear part of e' - e in the move: (batch, outputs, inputs)."""

    def _output_deviation(self, rows: Tensor, radius: Tensor, pushed: Tensor) -> Tensor:
        """|rows (o' - o - sensitivity u)|."""
        gates = self.clean.hidden.gates
        size = rows.abs()
        return (gates * self.stray) @ size.T + (gates * pushed) @ radius.T + self.feature_error @ (size + radius).T

    def change(self, features: bool, labels: bool) -> Change:
        """The poisoned errors, and what they send back to the hidden layer."""
        e = self.clean.line.error
        zero = torch.zeros_like(e)
        if features:
            shift = self.shift
        else:
            shift = Shift(torch.zeros_like(self.clean.line.slope), zero, Interval.point(zero), self.clean.line.range)
        reached = shift.range + self.labels if labels else shift.range
        deviation = torch.maximum(reached.upper - e, e - reached.lower).clamp(min=0)
        back = sent_back_range(reached, e, deviation, self.last, self.last_radius)
        back_deviation = deviation @ self.last.abs() + (e.abs() + deviation) @ self.last_radius
        step = shift.change.magnitude @ self.last.abs() + shift.change.magnitude @ self.last_radius
        if labels:
            step = step + self.sent_back_labels.magnitude
        excess = torch.where(self.clean.hidden.open, step, 0.0)
        return Change(shift, deviation, e.abs() + deviation, back, back_deviation, excess)

    def neurons(
        self, change: Change, features: bool, labels: bool, part: slice, axes: Float[Tensor, "part inputs inputs"]
    ) -> Interval:
        """Bounds what a sample adds to the hidden rows of `part` along their axes: (part, inputs, batch)."""
        h, clean = self.clean.hidden, self.clean
        t = (h.x @ axes).transpose(1, 2)  # x q
        gates, open_ = h.gates.T[part, None], h.open.T[part, None]
        back, size = change.sent_back.map(lambda s: s.T[part, None]), change.sent_back.magnitude.T[part, None]
        # where gates depend on the parameters, what the change of the rest adds to (a - 1/2) s x
        excess = change.excess.T[part, None] / 2 * t.abs()
        low, high = -excess, excess
        if labels:
            other = self.sent_back_labels.map(lambda s: s.T[part, None]) * (gates * t)
            low, high = low + other.lower, high + other.upper
        if not features or self.moves is None:
            return Interval(low, high)
        far = self.moves.magnitude
        d = far.shape[1]
        moving = (axes.mT[..., :d].abs() @ far.T).expand_as(t)  # |q u|
        last, last_radius = self.last[:, part], self.last_radius[:, part]
        remainder, jump = change.shift.remainder, change.shift.change
        # first order in u, and the size of the rest
        through = (last.T @ self.slope.transpose(0, 1).flatten(1)).unflatten(1, (-1, d))[:, None]  # (part, 1, batch, d)
        push = gates[..., None] * t[..., None] * through
        push = push + (gates * clean.sent_back.T[part, None])[..., None] * axes.mT[:, :, None, :d]
        linear = self.moves.support(push)
        rest = (remainder @ last.abs() + jump.magnitude @ last_radius).T[:, None] * t.abs()
        rest = gates * (rest + change.sent_back_deviation.T[part, None] * moving)
        # or the exact range of e' - e, without its dependence on u
        weights = Interval(last - last_radius, last + last_radius)
        ranges = [jump[:, k, None] * weights[k] for k in range(len(last))]
        whole = sum(ranges[1:], start=ranges[0]).map(lambda s: s.T[:, None]) * (gates * t)
        loose = gates * size * moving
        low = low + torch.maximum(linear.lower - rest, whole.lower - loose)
        high = high + torch.minimum(linear.upper + rest, whole.upper + loose)
        # gates that only the move can flip: from on to off it takes e' v x' away, from off to on it adds that
        flips = self.flips.T[part, None]
        sign = torch.where(h.on.T[part, None], -1.0, 1.0)
        flipped = Interval(back.lower.clamp(max=0), back.upper.clamp(min=0)) * (sign * t)
        turned = size * moving * torch.where(open_, 0.5, flips.to(t.dtype))
        low = low + torch.where(flips, flipped.lower, 0.0) - turned
        return Interval(low, high + torch.where(flips, flipped.upper, 0.0) + turned)

    def last_rows(
        self, change: Change, features: bool, labels: bool, k: int, axes: Float[Tensor, "features part"]
    ) -> Interval:
        """Bounds what a sample adds to the last layer's row k along some axes: (part, batch)."""
        h, clean = self.clean.hidden, self.clean
        t = (h.features @ axes).T
        blur = (h.deviation @ axes.abs()).T
        low = high = torch.zeros_like(t)
        if labels:
            other = self.labels[:, k] * Interval(t - blur, t + blur)
            low, high = other.lower, other.upper
        if not features or self.moves is None:
            return Interval(low, high)
        remainder, jump = change.shift.remainder[:, k], change.shift.change[:, k]
        d = self.moves.magnitude.shape[1]
        if self.state.layout.neurons:
            neurons = self.state.layout.neurons
            each = axes[:neurons, :, None] * self.weights[:, None]
            turn = (h.gates @ each.flatten(1)).unflatten(1, (-1, d)).transpose(0, 1)
            stray = ((h.gates * self.stray + self.feature_error) @ axes[:neurons].abs()).T
        else:
            turn = axes[:d].T[:, None]
            stray = torch.zeros_like(t)
        turning = self.moves.support(turn).magnitude
        linear = self.moves.support(t[..., None] * self.slope[:, k] + clean.line.error[:, k, None] * turn)
        blurred = jump.magnitude * blur + change.size[:, k] * stray
        rest = t.abs() * remainder + change.deviation[:, k] * turning + blurred
        whole, loose = jump * t, change.size[:, k] * turning + blurred
        low = low + torch.maximum(linear.lower - rest, whole.lower - loose)
        return Interval(low, high + torch.minimum(linear.upper + rest, whole.upper + loose))

    def weights_guess(self, points: int, labels: int) -> Float[Tensor, "batch neurons"]:
        """About how much the samples' poison weighs in each neuron's remainder; no bound."""
        change = self.change(points > 0, labels > 0)
        if self.moves is None:
            return torch.zeros_like(self.clean.sent_back)
        h = self.clean.hidden
        jump = (change.shift.change.magnitude @ self.last_radius) * h.gates + change.excess / 2
        weights = jump + torch.where(self.flips, change.sent_back.magnitude, 0.0)
        k = points + labels
        share: Tensor = k / (weights > 0).sum(0).clamp(min=k)
        return weights * share
