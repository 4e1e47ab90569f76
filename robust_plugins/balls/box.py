"""`Box`: a radius and a range for each feature, features that stay, categories and whole numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from robust_plugins.balls.ball import Ball, Draw, Support, random_like
from robust_plugins.balls.box_arguments import (
    each_feature,
    feature_groups,
    feature_indices,
    flat_numbers,
    greatest,
    is_plain,
    least,
    pairs_are_ordered,
    refuse_row,
    shown,
    wrong_clip,
)
from robust_plugins.balls.box_numbers import NEAR, BoxNumbers
from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import Interval

NUMBERS = ("radius", "lower", "upper", "immutable", "one_hot", "integers")
"""The fields that say something of single features."""

Each = float | Sequence[Any] | Shaped[Tensor, "..."] | np.ndarray
"""One number, or one for each feature."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Box(Ball):
    """`|z_i - x_i| <= eps * radius_i` for every feature i, inside `clip`: the ball for data that are not images.

        rp.Box(eps=1, radius=[5, 0.1, 1, 1, 1, 0], clip=([0, 0, 0, 0, 0, 0], [99, 1, 1, 1, 1, 1]),
               one_hot=[[2, 3, 4]], integers=[0], immutable=[5])

    - `eps`: as for every ball, one number or one for each sample. Those for each sample are a tensor of shape
      (batch, 1) or a tuple; a plain row of numbers is refused, for it could as well be one for each feature.
    - `radius`: how far a feature may move where `eps` is 1, one number or one for each feature, of the shape of one
      sample (axes of size 1 repeat). `math.inf` is anywhere in `clip`, as soon as `eps` is above 0.
    - `clip`: None, or the valid range (low, high), each a number or one for each feature; infinite ends are none.
    - `immutable`: features that stay as they are. Features are counted in the flattened sample.
    - `one_hot`: groups of features of which one is 1 and the others are 0. A group may change to any category that
      `clip` allows, as soon as `eps` is above 0, unless it is immutable; it counts nothing in `distance`.
    - `integers`: features that are whole numbers.

    `rp.Box(eps=1, radius=math.inf, clip=(lower, upper))` is the box from `lower` to `upper`, wherever x is.

    `distance` is the largest `|z_i - x_i| / radius_i`. `project`, `sample` and `contains` are about the set itself:
    attacks search the box around it, in which the model sees each input at its nearest category and whole number, and
    return points of the set. Certifiers bound over `box(x)`, that box with whole numbers for ends; linear relaxation
    also over the simplex of each group, where nothing is rounded outward.
    """

    clip: tuple[Each, Each] | None  # type: ignore[assignment]  # __post_init__ makes it a pair of numbers
    radius: Each = 1.0
    lower: Each | None = None
    """What `clip` says of each feature, kept apart from the range that holds all of them."""
    upper: Each | None = None
    immutable: Sequence[int] = ()
    one_hot: Sequence[Sequence[int]] = ()
    integers: Sequence[int] = ()

    norm: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        refuse_row(self.eps)
        clip = self.clip
        if clip is not None and not is_plain(clip):
            if not isinstance(clip, tuple | list) or len(clip) != 2:
                raise wrong_clip(clip)
            low, high = (each_feature("clip", end) for end in clip)
            self._set(lower=low, upper=high)
            if not pairs_are_ordered(low, high):
                raise wrong_clip(clip)
            self._set(clip=(least(low), greatest(high)))
            if self.clip is not None and self.clip[0] == self.clip[1]:
                self._set(clip=None)
        super().__post_init__()
        self._set(
            radius=each_feature("radius", self.radius),
            lower=None if self.lower is None else each_feature("lower", self.lower),
            upper=None if self.upper is None else each_feature("upper", self.upper),
            immutable=feature_indices("immutable", self.immutable),
            one_hot=feature_groups(self.one_hot),
            integers=feature_indices("integers", self.integers),
        )
        if least(cast(float, self.radius)) < 0:
            raise ArgumentError(
                "radius", shown(self.radius), accepted="numbers >= 0", hint="0 keeps a feature as it is."
            )
        grouped = [i for group in self.one_hot for i in group]
        for what, found in (
            ("one_hot", [i for i in set(grouped) if grouped.count(i) > 1]),
            ("integers", sorted({*grouped} & {*self.integers})),
        ):
            if found:
                raise ArgumentError(
                    what, f"with the features {found} of a one-hot group", accepted="each feature once",
                    hint="A feature is part of one group, or a whole number, or neither.",
                )  # fmt: skip
        for group in self.one_hot:
            if 0 < len({*group} & {*self.immutable}) < len(group):
                raise ArgumentError(
                    "immutable", f"{list(self.immutable)}, some features of the group {list(group)}",
                    accepted="all features of a group or none",
                    hint="To close a category, give its feature the upper end 0 in clip.",
                )  # fmt: skip

    def __repr__(self) -> str:
        parts = [f"eps={self._eps_text()}"]
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if field.name in ("clip", "radius") or value not in (None, ()):
                parts.append(f"{field.name}={shown(value)}")
        return f"Box({', '.join(parts)})"

    def eps_for(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch *broadcast"]:
        """How far each feature may move, shaped like `x`: `eps * radius`, or the width of its whole range."""
        set_, eps = self._set_like(x), super().eps_for(x)
        return torch.where(set_.anywhere & (eps > 0), set_.upper - set_.lower, eps * set_.radius.nan_to_num(posinf=0.0))

    def box(self, x: Float[Tensor, "batch *features"]) -> Interval:  # noqa: D102 (inherited)
        set_, eps = self._set_like(x), super().eps_for(x)
        step = eps * set_.radius.nan_to_num(posinf=0.0)
        if self.integers:
            step = torch.where(set_.whole, (step + NEAR * step.clamp(min=1)).floor(), step)
        free = set_.anywhere & (eps > 0)
        low = torch.where(free, set_.lower, torch.minimum(torch.maximum(x - step, set_.lower), set_.upper))
        up = torch.where(free, set_.upper, torch.minimum(torch.maximum(x + step, set_.lower), set_.upper))
        return Interval(low, up)

    def distance(
        self, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"]
    ) -> Float[Tensor, " batch"]:
        """The largest `|z_i - x_i| / radius_i`: 0 / 0 and a move by any part of an infinite radius count as 0."""
        moved, radius = (z - x).abs(), self._set_like(x).radius
        far = torch.where((moved == 0) | radius.isinf(), torch.zeros_like(moved), moved / radius)
        return torch.where(moved.isnan(), moved, far).flatten(1).amax(1) if x[0:1].numel() else x.new_zeros(len(x))

    def costs(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "1 *features"]:
        """The weight of each feature in `distance`: 1 / radius, or 0 for a radius of 0 or inf."""
        radius = self._set_like(x).radius
        return torch.where(radius > 0, 1 / radius, 0.0)

    def units(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "1 *features"]:
        """The radius of each feature at an `eps` of 1, and the width of its range where that is infinite."""
        set_ = self._set_like(x)
        return torch.where(set_.anywhere, set_.upper - set_.lower, set_.radius)

    def contains(
        self, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"], *, tolerance: float = 1e-6
    ) -> Bool[Tensor, " batch"]:
        """Tests membership in the set: what `project` returns lies in it with tolerance 0."""
        slack = self._slack(x, tolerance).view(-1, *[1] * (x.dim() - 1))
        box = self.box(x)
        inside = (z >= box.lower - slack) & (z <= box.upper + slack)
        if self.relaxed is not self:
            inside &= (z - self.project(z, x)).abs() <= slack
        return inside.flatten(1).all(1)

    def project(
        self, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"]
    ) -> Float[Tensor, "batch *features"]:
        """The point of the set nearest to `z`: of a group the category with the largest entry."""
        box = self.box(x)
        found = self.landed(torch.minimum(torch.maximum(z, box.lower), box.upper))
        # Where nothing moves, a category stays even if `clip` closes it for others.
        return torch.minimum(torch.maximum(found, box.lower), box.upper) if self.one_hot else found

    def landed(self, z: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch *features"]:  # noqa: D102 (inherited)
        set_ = self._set_like(z)
        if self.integers:
            z = torch.where(set_.whole, z.round(), z)
        if self.one_hot:
            flat = z.flatten(1).clone()
            for group, open_ in set_.groups:
                entries = flat[:, group]
                entries = entries if bool(open_.all()) else entries.masked_fill(~open_, -torch.inf)
                flat[:, group] = torch.nn.functional.one_hot(entries.argmax(1), len(group)).to(z)
            z = flat.view_as(z)
        return z

    def steepest(self, gradient: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch *features"]:
        """The corner that the signs of the gradient name; of a group, towards the category with the largest slope.

        `project(x + steepest(gradient), x)` maximises the linearised function over the set.
        """
        step = self.eps_for(gradient) * gradient.sign()
        if not self.one_hot:
            return step
        flat, reach = step.flatten(1).clone(), self.eps_for(gradient).flatten(1)
        for group, open_ in self._set_like(gradient).groups:
            slopes = gradient.flatten(1)[:, group]
            best = slopes.masked_fill(~open_, -torch.inf).argmax(1)
            towards = 2 * torch.nn.functional.one_hot(best, len(group)).to(gradient) - 1
            level = (slopes == slopes[:, :1]).all(1, keepdim=True)
            moves = reach[:, group].amax(1, keepdim=True) > 0
            flat[:, group] = torch.where(moves & ~level, towards, torch.zeros_like(towards))
        return flat.view_as(step)

    def check(self, x: Float[Tensor, "batch *features"]) -> None:
        """Raises ArgumentError unless each sample of `x` lies in the range, in one category and at whole numbers."""
        self._set_like(x)
        super().check(x)
        self._check_ranges(x)
        if not torch.equal(landed := self.landed(x), x):
            sample, feature = (landed != x).flatten(1).nonzero()[0].tolist()
            kind = "a whole number" if feature in self.integers else "part of a one-hot group, 0 or 1, and open in clip"
            raise ArgumentError(
                "x", f"{x.flatten(1)[sample, feature].item():.9g} at feature {feature} of sample {sample}",
                accepted=f"what the ball says of it: {kind}",
                hint="Give inputs before they are normalised, or leave the feature out of the ball's list.",
            )  # fmt: skip

    @property
    def relaxed(self) -> Ball:
        """The smallest box around the set; where there are no groups and whole numbers, the set itself."""
        if not (self.one_hot or self.integers):
            return self
        return _Relaxed(**{field.name: getattr(self, field.name) for field in fields(self)})

    def support(self, x: Float[Tensor, "batch *features"]) -> Support | None:
        """The least values over the box with the simplex of each one-hot group, if there are any."""
        if not self.one_hot:
            return None
        box, flat = self.box(x), x.flatten(1)
        center, radius = box.center.flatten(1), box.radius.flatten(1)
        groups = self._set_like(x).groups
        others = torch.ones(center.shape[1], dtype=torch.bool, device=x.device)
        others[[i for group, _ in groups for i in group]] = False

        def least(a: Tensor) -> Tensor:
            rows = a.flatten(2)
            rest = rows[:, :, others]
            total = rest @ center[:, others].unsqueeze(2) - rest.abs() @ radius[:, others].unsqueeze(2)
            for group, open_ in groups:
                part = rows[:, :, group]
                cheapest = part.masked_fill(~open_, torch.inf).amin(2, keepdim=True)
                moves = (radius[:, group] > 0).any(1).view(-1, 1, 1)
                total = total + torch.where(moves, cheapest, part @ flat[:, group].unsqueeze(2))
            return total.squeeze(2)

        return least

    def unclipped(self, x: Float[Tensor, "batch *features"]) -> Ball:
        """A box for inputs like `x` whose points are as far from its centre, and which can be put around any centre."""
        set_ = self._set_like(x.double())
        smallest = min((r for r in flat_numbers(self.radii) if r > 0), default=1.0)
        radius = torch.where(set_.anywhere, (set_.upper - set_.lower) / smallest, set_.radius)
        radius = torch.where(set_.whole & (radius > 0), radius * (1 + NEAR) + 4 * NEAR / smallest, radius)
        return Box(eps=self.radii, clip=None, radius=radius[0] * (1 + NEAR), immutable=self.immutable)

    def _set_like(self, x: Tensor) -> BoxNumbers:
        key = x.dtype, x.device, x.shape[1:]
        cache: dict[Any, BoxNumbers] = self.__dict__.setdefault("_sets", {})
        if key not in cache:
            with torch.inference_mode(False), torch.no_grad():  # kept for callers that differentiate
                cache[key] = BoxNumbers(
                    torch.zeros((1, *x.shape[1:]), dtype=x.dtype, device=x.device),
                    clip=cast("tuple[float, float] | None", self.clip),
                    **{name: getattr(self, name) for name in NUMBERS},
                )
        return cache[key]

    def _check_ranges(self, x: Tensor) -> None:
        set_ = self._set_like(x)
        outside = (x < set_.lower) | (x > set_.upper)
        if bool(outside.any()):
            sample, feature = outside.flatten(1).nonzero()[0].tolist()
            low, high = (t.flatten()[feature].item() for t in (set_.lower, set_.upper))
            raise ArgumentError(
                "x", f"{x.flatten(1)[sample, feature].item():.9g} at feature {feature} of sample {sample}",
                accepted=f"values inside the ball's range there, ({low:.9g}, {high:.9g})",
                hint="Scale or clamp x, or give the ball the range that x really has.",
            )  # fmt: skip

    def _spread(self, unit: Tensor, x: Tensor) -> Tensor:
        box = self.box(x)
        room = 0.5 if self.integers else 0.0  # so that the ends are as likely as what lies between
        radius = box.radius
        if self.integers:
            radius = torch.where(self._set_like(x).whole, (radius + room) * (1 - NEAR), radius)
        spread = box.center + unit * radius
        return self._project_each(spread, x)

    def _unit(self, like: Tensor, draw: Draw, generator: torch.Generator | None) -> Tensor:
        t = 2 * random_like(torch.rand, like, generator) - 1
        if draw != "corner":
            return t
        corners = torch.where(t < 0, -torch.ones_like(t), torch.ones_like(t))
        for group in self.one_hot:
            corners[..., list(group)] = t[..., list(group)]  # else the first of many ends would be drawn
        return corners

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True, repr=False)
class _Relaxed(Box):
    """The smallest box around a set of separate points, in which attacks move; its `steepest` is that of the set."""

    def contains(
        self, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"], *, tolerance: float = 1e-6
    ) -> Bool[Tensor, " batch"]:
        """Tests membership in the box."""
        slack = self._slack(x, tolerance).view(-1, *[1] * (x.dim() - 1))
        box = self.box(x)
        return ((z >= box.lower - slack) & (z <= box.upper + slack)).flatten(1).all(1)

    def project(
        self, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"]
    ) -> Float[Tensor, "batch *features"]:
        """The nearest point of the box."""
        box = self.box(x)
        return torch.minimum(torch.maximum(z, box.lower), box.upper)

    def check(self, x: Float[Tensor, "batch *features"]) -> None:
        """Raises ArgumentError unless each sample of `x` lies in the range: it may lie between categories."""
        self._set_like(x)
        Ball.check(self, x)
        self._check_ranges(x)

    @property
    def relaxed(self) -> Ball:
        """Itself."""
        return self

    def _spread(self, unit: Tensor, x: Tensor) -> Tensor:
        box = self.box(x)
        return self._project_each(box.center + unit * box.radius, x)
