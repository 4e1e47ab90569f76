"""`State`: a zonotope of parameters, and bounds on linear functions of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.intervals import Interval


@dataclass(frozen=True)
class Layout:
    """How the parameters lie in one vector: rows of the hidden layer (may be none), then rows of the last layer."""

    neurons: int
    inputs: int
    """Columns of the hidden layer's rows, its bias included."""
    outputs: int
    features: int
    """Columns of the last layer's rows, its bias included."""

    @property
    def size(self) -> int:
        """The number of parameters."""
        return self.neurons * self.inputs + self.outputs * self.features

    def split(self, t: Float[Tensor, "size *rest"]) -> tuple[Tensor, Tensor]:
        """The two layers' parts of a vector, or of each column: (neurons, inputs, ...) and (outputs, features, ...)."""
        cut, rest = self.neurons * self.inputs, t.shape[1:]
        return t[:cut].view(self.neurons, self.inputs, *rest), t[cut:].view(self.outputs, self.features, *rest)

    def join(
        self, hidden: Float[Tensor, "neurons inputs *rest"], last: Float[Tensor, "outputs features *rest"]
    ) -> Float[Tensor, "size *rest"]:
        """The inverse of `split`."""
        return torch.cat([hidden.flatten(0, 1), last.flatten(0, 1)])


@dataclass(frozen=True)
class Axes:
    """Orthonormal axes for each row of the parameters, as the columns of square matrices."""

    hidden: Float[Tensor, "neurons inputs inputs"]
    last: Float[Tensor, "outputs features features"]

    @classmethod
    def coordinates(cls, layout: Layout, like: Float[Tensor, "..."]) -> Axes:
        """The coordinates themselves."""

        def eye(rows: int, columns: int) -> Tensor:
            return torch.eye(columns, dtype=like.dtype, device=like.device).expand(rows, columns, columns)

        return cls(eye(layout.neurons, layout.inputs), eye(layout.outputs, layout.features))

    def combined(self, layout: Layout, t: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        """The sum over the axes, each times its entry of t."""
        w, v = layout.split(t)
        return layout.join((self.hidden @ w[..., None])[..., 0], (self.last @ v[..., None])[..., 0])

    def spread(self, layout: Layout, r: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        """The radius of every parameter, where each axis has radius r."""
        return Axes(self.hidden.abs(), self.last.abs()).combined(layout, r)

    def generators(self, layout: Layout, r: Float[Tensor, " size"]) -> Float[Tensor, "size any"]:
        """The box of radii r along the axes, as generators; axes of radius 0 are left out."""
        w, v = layout.split(r)
        blocks = [*(self.hidden * w[:, None]), *(self.last * v[:, None])]
        together: Tensor = torch.block_diag(*blocks)
        return together[:, r > 0]


@dataclass(frozen=True)
class State:
    """All parameters c + G xi + U (r eta) with |xi|, |eta| <= 1 that also lie in the box [lower, upper].

    U are the axes. One vector holds all parameters, as `layout` says.
    """

    layout: Layout
    center: Float[Tensor, " size"]
    generators: Float[Tensor, "size any"]
    axes: Axes
    radii: Float[Tensor, " size"]
    lower: Float[Tensor, " size"]
    upper: Float[Tensor, " size"]

    @classmethod
    def point(cls, layout: Layout, center: Float[Tensor, " size"]) -> State:
        """The one vector `center`."""
        none = center.new_zeros((layout.size, 0))
        return cls(layout, center, none, Axes.coordinates(layout, center), torch.zeros_like(center), center, center)

    def as_box(self) -> State:
        """Its box alone."""
        center, radius = (self.lower + self.upper) / 2, (self.upper - self.lower) / 2
        axes = Axes.coordinates(self.layout, center)
        return replace(self, center=center, generators=self.generators[:, :0], axes=axes, radii=radius)

    @property
    def reach(self) -> Float[Tensor, " size"]:
        """The zonotope's radius in each coordinate, its box left aside."""
        return self.generators.abs().sum(1) + self.axes.spread(self.layout, self.radii)

    @property
    def hull(self) -> Interval:
        """The smallest box around the zonotope, intersected with the box."""
        radius = self.reach
        around = Interval(self.center - radius, self.center + radius)
        return around.sharpened(Interval(self.lower, self.upper))

    @property
    def radius(self) -> Float[Tensor, " size"]:
        """The largest distance of each parameter from the centre."""
        hull = self.hull
        return torch.maximum(hull.upper - self.center, self.center - hull.lower).clamp(min=0)

    def all_generators(self) -> Float[Tensor, "size any"]:
        """The generators, those of the axes among them."""
        return torch.cat([self.generators, self.axes.generators(self.layout, self.radii)], 1)

    def with_row(self, row: Float[Tensor, " features"]) -> State:
        """With one more row in the last layer, which is known."""
        layout = self.layout
        wider = replace(layout, outputs=layout.outputs + 1)

        def joined(t: Tensor, added: Tensor) -> Tensor:
            return torch.cat([t, added.expand(layout.features, *t.shape[1:])])

        zero = row.new_zeros(())
        last = torch.cat([self.axes.last, torch.eye(layout.features, dtype=row.dtype, device=row.device)[None]])
        return State(wider, torch.cat([self.center, row]), joined(self.generators, zero), replace(self.axes, last=last),
                     joined(self.radii, zero), torch.cat([self.lower, row]), torch.cat([self.upper, row]))  # fmt: skip

    def reduced(self, count: int, probes: Float[Tensor, "probes size"]) -> State:
        """At most `count` generators; others become part of the box along the axes.

        Those go which then add least to the reach of the linear functions `probes`.
        """
        g = self.generators
        if g.shape[1] <= count:
            return self
        w, v = self.layout.split(g)
        a, b = self.layout.split(probes.T)
        boxed = self.layout.join(self.axes.hidden.mT @ w, self.axes.last.mT @ v).abs()
        weight = self.layout.join(self.axes.hidden.mT @ a, self.axes.last.mT @ b).abs().sum(1)
        order = (weight @ boxed - (probes @ g).abs().sum(0)).argsort()
        kept, cut = order[g.shape[1] - count :].sort().values, order[: g.shape[1] - count]
        return replace(self, generators=g[:, kept], radii=self.radii + boxed[:, cut].sum(1))

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors that `restored` needs."""
        names = ("center", "generators", "radii", "lower", "upper")
        return {n: getattr(self, n) for n in names} | {"hidden_axes": self.axes.hidden, "last_axes": self.axes.last}

    def restored(self, tensors: dict[str, Any]) -> State:
        """The state that `tensors()` came from, on this one's device."""
        values = {name: t.to(self.center) for name, t in tensors.items()}
        return State(self.layout, axes=Axes(values.pop("hidden_axes"), values.pop("last_axes")), **values)
