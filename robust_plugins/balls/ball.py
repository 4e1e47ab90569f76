"""`Ball`: what all perturbation sets `B_eps(x)` share, cut to the valid range of inputs."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from robust_plugins.balls.plain import arguments, kind_of, written
from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import Interval

Draw = Literal["uniform", "corner", "gaussian"]
Support = Callable[[Tensor], Tensor]
"""From coefficients (batch or 1, rows, *features) to numbers (batch, rows)."""


SHOWN = 4
"""So many of the radii are printed."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Ball(ABC):
    """All inputs within distance `eps` of `x` in one norm, and inside `clip`.

    `eps` is in the units of the inputs: a number, or one number per sample (a sequence, or a tensor of shape (batch,)
    or (batch, 1, ...)), never one per feature, for which there is `Box(radius=...)`. What has one axis counts samples,
    even where a sample has as many features, and prints as `(0.1, 0.2) per sample`; a length that is not the batch's is
    refused as soon as the ball meets one. `clip` is the valid range (low, high) of every
    input value and part of the set, or None where every value is valid; it has no default because forgetting it changes
    every figure. Balls are plain data: they print, compare and hash.

    Sets are evaluated in the dtype of `x`: the L-infinity ball is the box between the rounded numbers `x - eps`
    and `x + eps`, the same one for attacks and certifiers.
    """

    eps: float | Sequence[float] | Shaped[Tensor, "*samples"] | np.ndarray
    clip: tuple[float, float] | None

    norm: ClassVar[float]

    def __new__(cls, *args: object, **fields: object) -> Ball:
        """Checks that the fields are named, and that nobody has forgotten the clip range."""
        if args or (fields and "clip" not in fields):  # without either when a ball is copied
            given = [repr(value) for value in args] + [f"{name}={value!r}" for name, value in fields.items()]
            raise ArgumentError(
                f"rp.{cls.__name__}", f"called with {', '.join(given)}",
                accepted="eps and clip, the valid range of inputs, both by name",
                hint=f"Write rp.{cls.__name__}(eps=0.1, clip=(0, 1)), or clip=None where every value is valid.",
            )  # fmt: skip
        return super().__new__(cls)

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", _checked_eps(self.eps))
        object.__setattr__(self, "clip", _checked_clip(self.clip))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(eps={self._eps_text()}, clip={self.clip})"

    def _eps_text(self) -> str:
        radii = self.radii
        if not isinstance(radii, tuple):
            return repr(radii)
        more = [f"... {len(radii)} in all"] if len(radii) > SHOWN else []
        return f"({', '.join([*map(repr, radii[:SHOWN]), *more])}) per sample"

    def to_dict(self) -> dict[str, Any]:
        """All that the ball says, ready for JSON: its type, its norm and its arguments, a `Box`'s for each feature.

        None stands for an infinite number, which JSON lacks: an end of a range, or a radius.
        """
        return {"type": type(self).__name__, "norm": str(self.norm)} | written(self)

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Ball:
        """The ball that `to_dict` described, of any class below this one: `rp.Ball.from_dict` reads them all.

        Raises ArgumentError for anything else.
        """
        kind = kind_of(said, {kind.__name__: kind for kind in Ball.__subclasses__() if issubclass(kind, cls)})
        return cast(Ball, kind(**arguments(said, kind)))

    @property
    def radii(self) -> float | tuple[float, ...]:
        """`eps` as plain numbers: one, or one per sample."""
        return cast("float | tuple[float, ...]", self.eps)  # __post_init__ has converted it

    @property
    def largest(self) -> float:
        """The largest radius; 0 where there is one per sample and no sample."""
        radii = self.radii
        return max(radii, default=0.0) if isinstance(radii, tuple) else radii

    @abstractmethod
    def distance(
        self, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"]
    ) -> Float[Tensor, " batch"]:
        """The distance of each sample of `z` from that of `x`, in this ball's norm: shape (batch,)."""

    @abstractmethod
    def project(
        self, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"]
    ) -> Float[Tensor, "batch *features"]:
        """The point of the ball nearest to `z`, then cut to `clip`.

        For `x` inside `clip`, cutting moves no coordinate away from `x`, so the result lies in both. For `Linf` it
        is the nearest point of the set, and inside `box(x)` to the bit.
        """

    @abstractmethod
    def _unit(self, like: Float[Tensor, "n batch dims"], draw: Draw, generator: torch.Generator | None) -> Tensor:
        """Points of the unit ball around zero, shaped like `like`: uniform ones, or corners."""

    @abstractmethod
    def steepest(self, gradient: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch *features"]:
        """The step of length `eps` in this ball's norm along which a function with this gradient rises most.

        `x + steepest(gradient)` maximises the linearised function over the ball without its clip range. Zero where the
        gradient is.
        """

    def scaled(self, factor: float) -> Ball:
        """The ball with its radius, or each of its radii, times `factor`."""
        radii = self.radii
        return replace(self, eps=tuple(factor * r for r in radii) if isinstance(radii, tuple) else factor * radii)

    def box(self, x: Float[Tensor, "batch *features"]) -> Interval:
        """The smallest box around the ball, `[x - eps, x + eps]`, cut to `clip`. For `Linf` this is the set itself."""
        eps = self.eps_for(x)
        low, up = x - eps, x + eps
        if self.clip is not None and not x.requires_grad:
            return Interval(low.clamp_(*self.clip), up.clamp_(*self.clip))  # a training step feels two tensors less
        return Interval(self._clipped(low), self._clipped(up))

    def bounds(self, x: Float[Tensor, "batch *features"]) -> Interval:
        """Returns `box(x)`, under its former name."""
        warnings.warn("Ball.bounds(x) is now Ball.box(x)", DeprecationWarning, stacklevel=2)
        return self.box(x)

    def contains(
        self,
        z: Float[Tensor, "batch *features"],
        x: Float[Tensor, "batch *features"],
        *,
        tolerance: float = 1e-6,
    ) -> Bool[Tensor, " batch"]:
        """Which samples of `z` lie in the set around those of `x`, up to rounding. NaN never does.

        `tolerance` is relative to the largest of 1, eps and the sample's `|x_i|`: inputs in [0, 255] are rounded more
        coarsely than those in [0, 1].
        """
        slack = self._slack(x, tolerance)
        inside = self.distance(z, x) <= self.radii_for(x) + slack
        if self.clip is not None:
            low, high = self.clip
            slack = slack.view(-1, *[1] * (x.dim() - 1))
            inside &= ((z >= low - slack) & (z <= high + slack)).flatten(1).all(1)
        return inside

    def sample(
        self,
        x: Float[Tensor, "batch *features"],
        n: int,
        generator: torch.Generator | None = None,
        *,
        draw: Draw = "uniform",
    ) -> Float[Tensor, "n batch *features"]:
        """`n` random points of the set around each sample: shape (n, batch, *features).

        `draw="uniform"` is uniform over the set for `Linf`; for `L2` and `L1` uniform over the ball and then cut to
        `clip`. `"corner"` draws vertices (for `L2`, points of the sphere). `"gaussian"` is the start of the
        lecture's PGD, `x + N(0, eps)` with standard deviation `eps`, projected. `generator` may live on the CPU
        while `x` does not. Raises ArgumentError for another `draw` and for n < 1.
        """
        if draw not in get_args(Draw):
            raise ArgumentError(
                "draw", repr(draw), accepted=", ".join(map(repr, get_args(Draw))), hint="Choose one of them."
            )
        if n < 1:
            raise ArgumentError("n", n, accepted="an integer of at least 1", hint="Ask for one point or more.")
        if draw == "gaussian":
            noise = random_like(torch.randn, x.new_empty((n, *x.shape)), generator)
            return self._project_each(x + self.eps_for(x) * noise, x)
        flat = x.flatten(1) if len(x) else x.new_empty((0, 0))
        return self._spread(self._unit(flat.expand(n, *flat.shape), draw, generator).view(n, *x.shape), x)

    def eps_for(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch *broadcast"]:
        """How far each feature may move, in x's dtype and device, shaped to broadcast against `x`.

        One value per sample, (batch, 1, ...); for a `Box` one per feature of each, shaped like `x`.
        """
        return self.radii_for(x).view(-1, *[1] * (x.dim() - 1))

    def radii_for(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, " batch"]:
        """`eps` in x's dtype and device, one value per sample: the largest `distance` of points of the set."""
        radii = self.radii
        if not isinstance(radii, tuple):
            eps = torch.full((len(x),), radii, dtype=x.dtype, device=x.device)
        elif len(radii) == len(x):
            eps = torch.tensor(radii, dtype=x.dtype, device=x.device)
        else:
            shape = tuple(x.shape[1:])
            features = len(radii) in (*shape, math.prod(shape))
            raise ArgumentError(
                "ball.eps",
                f"{len(radii)} values for a batch of {len(x)}",
                accepted="one number, or one per sample",
                hint=f"For one per feature take rp.Box(eps=1, radius=..., clip=...), radius with axes like {shape}."
                if features
                else "Give `eps` as many values as `x` has samples.",
            )
        return eps

    def check(self, x: Float[Tensor, "batch *features"]) -> None:
        """Raises ArgumentError unless there is a ball around every sample of `x`: it is finite and lies in `clip`."""
        self.radii_for(x)
        if not len(x):
            return
        if not x.numel():
            raise ArgumentError(
                "x", f"of shape {tuple(x.shape)}", accepted="samples of one feature or more",
                hint="Look at how the features were chosen: none is left.",
            )  # fmt: skip
        low, high = torch.aminmax(x)
        if not torch.isfinite(low + high):
            raise ArgumentError(
                "x", "not finite (NaN or infinity)", accepted="finite values", hint="Find them with x.isfinite()."
            )
        if self.clip is not None and (low < self.clip[0] or high > self.clip[1]):
            raise ArgumentError(
                "x",
                f"between {low.item():.9g} and {high.item():.9g}",
                accepted=f"values inside the ball's clip range {self.clip}",
                hint="Scale or clamp x, or give the ball the range that x really has.",
            )

    @property
    def relaxed(self) -> Ball:
        """The ball that gradients can be followed in: itself, or the smallest box around a set of separate points.

        Of a point of it, `landed` is the point of the set that `project` finds.
        """
        return self

    def landed(self, z: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch *features"]:
        """The point of the set nearest to each point of the `relaxed` one; `z` itself where there are no gaps."""
        return z

    def support(self, x: Float[Tensor, "batch *features"]) -> Support | None:
        """From coefficients to lower bounds of their products with all points of the set, as `Relaxation` takes it.

        None where nothing better is known than for `box(x)`.
        """
        return None

    def unclipped(self, x: Float[Tensor, "batch *features"]) -> Ball:
        """A ball whose points are as far from its centre, and which can be put around any inputs shaped like `x`."""
        return replace(self, clip=None)

    def __getitem__(self, samples: slice) -> Ball:
        """The ball for a slice of the batch: selects from a per-sample `eps`, keeps a number as it is."""
        radii = self.radii
        return replace(self, eps=radii[samples]) if isinstance(radii, tuple) else self

    def _slack(self, x: Tensor, tolerance: float) -> Tensor:
        largest = x.flatten(1).abs().amax(1) if x.numel() else x.new_zeros(len(x))
        return tolerance * torch.maximum(largest, self.radii_for(x)).clamp(min=1)

    def _spread(self, unit: Tensor, x: Tensor) -> Tensor:
        return self._project_each(x + self.eps_for(x) * unit, x)

    def _project_each(self, z: Tensor, x: Tensor) -> Tensor:
        """`project` for z of shape (n, batch, *features)."""
        radii, repeated = self.radii, x.expand(z.shape).flatten(0, 1)
        ball = replace(self, eps=radii * len(z)) if isinstance(radii, tuple) else self
        return ball.project(z.flatten(0, 1), repeated).view_as(z)

    def _clipped(self, z: Tensor) -> Tensor:
        return z if self.clip is None else z.clamp(*self.clip)


def random_like(kind: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws of one kind, `torch.rand` for one, shaped like `like`, in its dtype and where it is."""
    # A generator draws on its own device only.
    device = generator.device if generator is not None else like.device
    return kind(like.shape, generator=generator, dtype=like.dtype, device=device).to(like.device)


def _checked_eps(eps: object) -> float | tuple[float, ...]:
    accepted = "a finite number >= 0, or one per sample"
    hint = "Give the radius in the units of the inputs, for example 8/255 for images in [0, 1]."
    if isinstance(eps, Tensor | np.ndarray):
        if eps.ndim > 1 and any(size != 1 for size in eps.shape[1:]):
            raise ArgumentError(
                "eps", f"of shape {tuple(eps.shape)}", accepted=accepted + ", of shape (batch,) or (batch, 1, ...)",
                hint="This ball has one radius for all features of a sample: take rp.Box(eps=1, radius=...) for one "
                "each, or the largest, eps.flatten(1).amax(1).",
            )  # fmt: skip
        eps = (eps if eps.ndim < 2 else eps.reshape(-1)).tolist()
    values = tuple(eps) if isinstance(eps, Iterable) and not isinstance(eps, str) else (eps,)
    try:
        numbers = tuple(float(v) for v in values)
    except (TypeError, ValueError):
        raise ArgumentError("eps", repr(eps), accepted=accepted, hint=hint) from None
    if isinstance(eps, bool) or not all(math.isfinite(v) and v >= 0 for v in numbers):
        raise ArgumentError("eps", repr(eps), accepted=accepted, hint=hint)
    return numbers if isinstance(eps, Iterable) else numbers[0]


def _checked_clip(clip: object) -> tuple[float, float] | None:
    if clip is None:
        return None
    try:
        low, high = (float(v) for v in clip)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not low < high:
        raise ArgumentError(
            "clip",
            repr(clip),
            accepted="a pair (low, high) with low < high, or None",
            hint="Give the valid range of every input value, for example (0.0, 1.0), or None where there is none.",
        )
    return low, high
