"""`Shape`: the set around an input as its record says it, and how far one has to reach to hold another."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

AT_ALL = 5e-324
"""The smallest reach that lets features move which may be anywhere."""


@dataclass(frozen=True)
class Shape:
    """The norm, the range and the box of a record, radius apart; `box` is empty for balls of a norm."""

    norm: str
    clip: str
    box: str

    @cached_property
    def features(self) -> tuple[int, ...] | None:
        """The shape of an input; None where nobody says it."""
        found = json.loads(self.box).get("shape") if self.box else None
        return None if found is None else tuple(found)

    @cached_property
    def scale(self) -> float:
        """The smallest change of an input that counts as a distance of 1, from a radius that is not 0."""
        if not self.box:
            return 1.0
        radius = np.asarray(json.loads(self.box)["radius"], float)
        radius = radius[np.isfinite(radius) & (radius > 0)]
        return float(radius.min()) if radius.size else 1.0

    def sides(self, features: tuple[int, ...]) -> Sides:
        """The set, feature by feature, for inputs of this shape."""
        said = json.loads(self.box) if self.box else {}
        low, high = json.loads(self.clip) if self.clip else (-math.inf, math.inf)

        def each(value: object) -> NDArray[np.float64]:
            return np.broadcast_to(np.asarray(value, np.float64), features).ravel().copy()

        radius = each(said.get("radius", 1.0))
        lower = np.maximum(each(low), each(said.get("lower", -math.inf)))
        upper = np.minimum(each(high), each(said.get("upper", math.inf)))
        groups = tuple(map(tuple, said.get("one_hot", ())))
        grouped = [i for group in groups for i in group]
        radius[grouped] = np.inf
        lower[grouped], upper[grouped] = np.maximum(lower[grouped], 0), np.minimum(upper[grouped], 1)
        radius[list(said.get("immutable", ()))] = 0.0
        whole = np.zeros(len(radius), bool)
        whole[list(said.get("integers", ()))] = True
        return Sides(radius, lower, upper, whole, groups)

    def reach(self, other: Shape, reach: NDArray[np.float64], eps: NDArray[np.float64]) -> NDArray[np.float64]:
        """The radius from which on this set holds a point that lies `reach` from the input in `other`; inf for none.

        - `reach`: an upper bound of each point's distance, as `other` measures it
        - `eps`: the radius of the ball that each point was found in

        At least one of the two is a box.
        """
        if self == other:
            # Features that may be anywhere count nothing in a distance, as soon as the radius is above 0.
            return np.where(eps > 0, np.maximum(reach, AT_ALL if self.anywhere else 0.0), 0.0)
        features = self.features or other.features
        if features is None or (other.features or features) != features:
            return np.full(len(reach), np.inf)
        outer, inner = self.sides(features), other.sides(features)
        if not outer.hold(inner):
            return np.full(len(reach), np.inf)
        found = outer.radius_for(inner, reach) if self.box else inner.norm(self.norm, reach)
        return np.where(eps > 0, found, 0.0)

    @cached_property
    def anywhere(self) -> bool:
        """Whether some features may be anywhere in their range."""
        said = json.loads(self.box) if self.box else {}
        return bool(said.get("one_hot")) or bool(np.isinf(np.asarray(said.get("radius", 1.0), float)).any())


@dataclass(frozen=True, eq=False)
class Sides:
    """A set feature by feature, flattened: radii where eps is 1, ranges, whole numbers, and one-hot groups."""

    radius: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    whole: NDArray[np.bool_]
    groups: tuple[tuple[int, ...], ...]

    def hold(self, inner: Sides) -> bool:
        """Whether the ranges, categories and whole numbers of another set that moves are this one's, too."""
        moves = inner.radius > 0
        within = (inner.lower >= self.lower) & (inner.upper <= self.upper) & (inner.whole | ~self.whole)
        return bool(within[moves].all()) and all(
            group in inner.groups or not moves[list(group)].any() for group in self.groups
        )

    def radius_for(self, inner: Sides, reach: NDArray[np.float64]) -> NDArray[np.float64]:
        """The radius from which on this box holds the points of another set with this reach."""
        moves, free, mine = inner.radius > 0, np.isinf(inner.radius), np.isinf(self.radius)
        step, jump = moves & ~free & ~mine, free & ~mine
        with np.errstate(divide="ignore"):
            steps = (inner.radius[step] / self.radius[step]).max(initial=0.0)
            jumps = ((inner.upper - inner.lower)[jump] / self.radius[jump]).max(initial=0.0)
        least = max(float(jumps), AT_ALL if (moves & mine).any() else 0.0)
        found: NDArray[np.float64] = np.maximum(_times(reach, float(steps)), least)
        return found

    def norm(self, name: str, reach: NDArray[np.float64]) -> NDArray[np.float64]:
        """An upper bound of the distance, in a norm, of points of this box with this reach."""
        free = np.isinf(self.radius)
        grouped = np.zeros(len(free), bool)
        groups = [list(group) for group in self.groups if free[list(group)].any()]
        for group in groups:
            grouped[group] = True
        steps, jumps = self.radius[~free], (self.upper - self.lower)[free & ~grouped]
        if name == "linf":
            least = max(float(jumps.max(initial=0.0)), 1.0 if groups else 0.0)
            return np.maximum(_times(reach, float(steps.max(initial=0.0))), least)
        power = 2 if name == "l2" else 1
        # Of a group one feature goes from 1 to 0, and another one from 0 to 1.
        fixed = float((jumps**power).sum()) + 2.0 * len(groups)
        found: NDArray[np.float64] = (_times(reach**power, float((steps**power).sum())) + fixed) ** (1 / power)
        return found


def _times(reach: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """The product, where nothing times infinity is nothing."""
    with np.errstate(invalid="ignore"):
        return np.where(reach == 0, 0.0, reach * factor)
