"""Bounds on the gradient of every sample for one parameter, held as factors and never as a whole.

A batch of 500 samples has 33 million weight gradients in one layer of 256 by 256 units. They are the products of two
small tensors, so a part of them at a time is enough.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import Interval


class PerSample(ABC):
    """Interval gradients of one parameter, one for each sample of a batch: (batch, *shape), made in parts.

    `by_rows` says whether a part of the rows costs only that part of the work; rows run along the parameter's first
    axis, a number counts as one row.
    """

    batch: int
    shape: torch.Size
    by_rows: ClassVar[bool]

    @abstractmethod
    def part(self, samples: slice, rows: slice) -> Interval:
        """The gradients of these samples for these rows: (samples, rows, *shape[1:]). Both slices have step 1."""

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the bounds' dtype and device."""

    def chunk(self, samples: slice) -> Interval:
        """The whole gradients of these samples: (samples, *shape)."""
        return self.part(samples, slice(0, rows_of(self.shape))).map(lambda t: t.reshape(-1, *self.shape))


def rows_of(shape: torch.Size) -> int:
    """The number of rows of a parameter."""
    return shape[0] if shape else 1


@dataclass(frozen=True, eq=False)
class Outer(PerSample):
    """A linear layer's weight on inputs of one axis: `delta_i * activation_j`, the exact product of two intervals.

    `delta`, (batch, out), bounds the loss's derivative by the layer's output, `activation`, (batch, in), its input.
    With `scale`, (batch,) and not negative, every sample's gradient is multiplied by a factor from its interval
    (clipping by norm); with `clip` every entry is then clamped to [-clip, clip].
    """

    delta: Interval
    activation: Interval
    scale: Interval | None = field(default=None, kw_only=True)
    clip: float | None = field(default=None, kw_only=True)
    batch: int = field(init=False)
    shape: torch.Size = field(init=False)

    by_rows = True

    def __post_init__(self) -> None:
        d, a = self.delta, self.activation
        if d.lower.dim() != 2 or a.lower.dim() != 2 or len(d) != len(a):
            raise ArgumentError(
                "activation",
                f"of shape {tuple(a.shape)} with delta of shape {tuple(d.shape)}",
                accepted="(batch, in) with (batch, out)",
                hint="Layers on inputs of more axes are bounded by Dense.",
            )
        object.__setattr__(self, "batch", len(d))
        object.__setattr__(self, "shape", torch.Size((d.shape[1], a.shape[1])))
        _check(self.scale, self.clip, len(d))

    @property
    def like(self) -> Tensor:
        """A tensor of the bounds' dtype and device."""
        return self.delta.lower

    @property
    def scaled(self) -> Interval:
        """`delta` times `scale`. Still exact: the products of two intervals' points fill an interval."""
        if self.scale is None:
            return self.delta
        return self.delta * self.scale.map(lambda t: t.unsqueeze(1))

    def part(self, samples: slice, rows: slice) -> Interval:
        """The gradients of these samples for these rows: (samples, rows, in)."""
        scale = None if self.scale is None else self.scale.map(lambda t: t[samples])
        delta = self.delta.map(lambda t: t[samples, rows].unsqueeze(2))
        activation = self.activation.map(lambda t: t[samples].unsqueeze(1))
        return _finished(delta * activation, scale, self.clip)


@dataclass(frozen=True, eq=False)
class Dense(PerSample):
    """Any other parameter: `values(slice)` gives the bounds of some samples, (samples, *shape).

    `values` is called for slices with step 1 inside the batch, the empty one among them, and more than once. `scale`
    and `clip` as in `Outer`.
    """

    values: Callable[[slice], Interval]
    batch: int
    shape: torch.Size
    scale: Interval | None = field(default=None, kw_only=True)
    clip: float | None = field(default=None, kw_only=True)

    by_rows = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", torch.Size(self.shape))
        _check(self.scale, self.clip, self.batch)

    @classmethod
    def stored(cls, values: Interval, *, scale: Interval | None = None, clip: float | None = None) -> Dense:
        """From all bounds, (batch, *shape), held in memory."""
        return cls(lambda s: values.map(lambda t: t[s]), len(values), values.shape[1:], scale=scale, clip=clip)

    @property
    def like(self) -> Tensor:
        """A tensor of the bounds' dtype and device."""
        return self.values(slice(0, 0)).lower

    def part(self, samples: slice, rows: slice) -> Interval:
        """The gradients of these samples for these rows: (samples, rows, *shape[1:])."""
        scale = None if self.scale is None else self.scale.map(lambda t: t[samples])
        values = self.values(samples)
        inner = self.shape[1:]
        values = values.map(lambda t: t.reshape(len(t), rows_of(self.shape), *inner)[:, rows])
        return _finished(values, scale, self.clip)


def _check(scale: Interval | None, clip: float | None, batch: int) -> None:
    if clip is not None and not clip > 0:
        raise ArgumentError("clip", clip, accepted="a number above 0, or None", hint="In the gradient's units.")
    if scale is not None and scale.shape != (batch,):
        raise ArgumentError("scale", f"of shape {tuple(scale.shape)}", accepted=f"({batch},)", hint="One per sample.")


def _finished(values: Interval, scale: Interval | None, clip: float | None) -> Interval:
    """Scaled, then clamped: the order in which training does it."""
    if scale is not None:
        values = values * scale.map(lambda t: t.view(-1, *[1] * (values.lower.dim() - 1)))
    return values if clip is None else values.map(lambda t: t.clamp(-clip, clip))
