"""`forward`: hidden features and outputs of clean samples as affine forms of the parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robust_plugins.intervals import Interval
from robust_plugins.poisoning.zonotope.reach import neuron_reach, output_reach
from robust_plugins.poisoning.zonotope.set import State


@dataclass(frozen=True)
class Hidden:
    """h = features + slopes (W - W_c) x +- error, and |h - features| <= deviation. D stands for W - W_c.

    Without a hidden layer the features are the inputs, there are no neurons, and error and deviation are 0.
    """

    x: Float[Tensor, "batch inputs"]
    before: Interval
    """The neurons' pre-activations."""
    reach: Float[Tensor, "batch neurons"]
    """|D_j x|."""
    slopes: Float[Tensor, "batch neurons"]
    features: Float[Tensor, "batch features"]
    error: Float[Tensor, "batch features"]
    deviation: Float[Tensor, "batch features"]

    @property
    def on(self) -> Bool[Tensor, "batch neurons"]:
        """Where the neuron is active for all parameters (its gate may close at exactly 0, where its input is 0)."""
        return self.before.lower > 0

    @property
    def open(self) -> Bool[Tensor, "batch neurons"]:
        """Where the gate depends on the parameters."""
        return (self.before.lower <= 0) & (self.before.upper > 0)

    @property
    def gates(self) -> Float[Tensor, "batch neurons"]:
        """The middle of the gates' ranges: 1, 0, and 1/2 where it depends on the parameters."""
        return torch.where(self.open, 0.5, self.on.to(self.slopes.dtype))


@dataclass(frozen=True)
class Outputs:
    """The range of rows @ o, with o at the centre, and how far o is from its affine form."""

    center: Float[Tensor, "batch rows"]
    linear: Float[Tensor, "batch rows"]
    """How far the affine form goes."""
    error: Float[Tensor, "batch rows"]
    """Beyond the affine form."""

    @property
    def range(self) -> Interval:
        """All values."""
        reach = self.linear + self.error
        return Interval(self.center - reach, self.center + reach)


def hidden(
    state: State, x: Float[Tensor, "batch inputs"], *, memory: int, extra: Float[Tensor, "batch neurons"] | None = None
) -> Hidden:
    """The hidden layer of the samples x, whose last column is 1 where the layer has a bias.

    `extra`, (batch, neurons), widens the pre-activations, for inputs that are not points.
    """
    layout = state.layout
    if not layout.neurons:
        none, zero = x[:, :0], torch.zeros_like(x)
        return Hidden(none, Interval.point(none), none, none, x, zero, zero)
    w, _ = layout.split(state.center)
    z = x @ w.T
    reach = neuron_reach(state, x, memory)
    wide = reach if extra is None else reach + extra
    low, high = z - wide, z + wide
    open_ = (low < 0) & (high > 0)
    chord = high / torch.where(open_, high - low, 1.0)
    slopes = torch.where(open_, chord, (low >= 0).to(z.dtype))
    error = torch.where(open_, -chord * low / 2, 0.0)
    features = slopes * z + error
    deviation = torch.maximum(high.clamp(min=0) - features, features - low.clamp(min=0))
    if layout.features > layout.neurons:
        one = torch.ones_like(z[:, :1])
        features = torch.cat([features, one], 1)
        error, deviation = (torch.cat([t, torch.zeros_like(one)], 1) for t in (error, deviation))
    return Hidden(x, Interval(low, high), reach, slopes, features, error, deviation)


def outputs(state: State, h: Hidden, rows: Float[Tensor, "#batch rows outputs"], *, memory: int) -> Outputs:
    """The outputs' combinations `rows` over the state."""
    _, v = state.layout.split(state.center)
    _, rv = state.layout.split(state.radius)
    center = (rows @ (h.features @ v.T)[..., None])[..., 0]
    linear = output_reach(state, h.x, h.slopes, h.features, rows, memory)
    error = ((rows @ v).abs() @ h.error[..., None])[..., 0] + (rows.abs() @ (h.deviation @ rv.T)[..., None])[..., 0]
    return Outputs(center, linear, error)


def outputs_over_box(
    state: State,
    center: Float[Tensor, "batch inputs"],
    radius: Float[Tensor, "batch features"],
    rows: Float[Tensor, "batch rows outputs"],
    *,
    memory: int,
) -> Interval:
    """The outputs' combinations `rows` over the state and over inputs within `radius` of `center`."""
    layout, d = state.layout, radius.shape[1]
    w, v = layout.split(state.center)
    rw, rv = layout.split(state.radius)
    if layout.neurons:
        h = hidden(state, center, memory=memory, extra=radius @ (w[:, :d].abs() + rw[:, :d]).T)
        mixed = (rows @ v[:, : layout.neurons]) * h.slopes[:, None]
        carried, blurred = mixed @ w[:, :d], mixed.abs() @ (radius @ rw[:, :d].T)[..., None]
    else:
        h = hidden(state, center, memory=memory)
        carried, blurred = rows @ v[:, :d], rows.abs() @ (radius @ rv[:, :d].T)[..., None]
    moved = (carried.abs() @ radius[..., None] + blurred)[..., 0]
    found = outputs(state, h, rows, memory=memory).range
    return Interval(found.lower - moved, found.upper + moved)
