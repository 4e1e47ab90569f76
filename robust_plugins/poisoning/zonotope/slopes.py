"""How a loss's gradient with respect to the outputs depends on these: linear pieces with rigorous remainders.

Each loss gives the error e = dL/do of one sample as a function of the outputs o, which are those of the network or
combinations of them that say as much. Bounds hold where `rows @ o` lies in a given box.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from robust_plugins.intervals import Interval
from robust_plugins.intervals.methods.loss_gradients import softmax_of_differences


@dataclass(frozen=True)
class Line:
    """e(o) = error + slope (o - center) +- remainder, and `range`, which holds e(o)."""

    error: Float[Tensor, "batch outputs"]
    slope: Float[Tensor, "batch outputs outputs"]
    remainder: Float[Tensor, "batch outputs"]
    range: Interval


@dataclass(frozen=True)
class Shift:
    """e(o') - e(o) = slope d +- remainder, where d is the known linear part of o' - o.

    `change` holds e(o') - e(o) too, and `range` holds e(o').
    """

    slope: Float[Tensor, "batch outputs outputs"]
    remainder: Float[Tensor, "batch outputs"]
    change: Interval
    range: Interval


class LossSlope(ABC):
    """dL/do of one sample's loss. `rows`, (rows, outputs), are the combinations of outputs that it depends on."""

    rows: Tensor
    centered = False
    """Whether the errors sum to 0, so that the rows of the last layer matter up to a common part."""

    @abstractmethod
    def line(self, z: Interval, center: Float[Tensor, "batch rows"], y: Shaped[Tensor, "batch *labels"]) -> Line:
        """The line for rows @ o in `z`, through o = center (given as rows @ o)."""

    @abstractmethod
    def shift(
        self,
        z: Interval,
        moved: Interval,
        size: Float[Tensor, "batch rows"],
        error: Float[Tensor, "batch rows"],
        y: Shaped[Tensor, "batch *labels"],
    ) -> Shift:
        """For rows @ o in z, rows @ o' in moved, |rows @ (o' - o)| <= size, |rows @ (o' - o - d)| <= error."""

    @abstractmethod
    def relabelled(
        self,
        y: Shaped[Tensor, "samples *labels"],
        center: Float[Tensor, "*batch outputs any"],
        radius: Float[Tensor, "*batch outputs any"],
    ) -> Interval:
        """The range of sum_k (e'_k - e_k) a_kj over the labels y' allowed, y itself among them.

        a lies within `radius` of `center`, both (outputs, any) or (batch, outputs, any); found: (batch, any).
        """


class Squared(LossSlope):
    """The mean over the outputs of (o - y)^2; labels move by at most `label_radius`."""

    def __init__(self, outputs: int, label_radius: float, like: Tensor) -> None:
        self.rows = torch.eye(outputs, dtype=like.dtype, device=like.device)
        self.scale, self.label_radius = 2 / outputs, label_radius

    def line(self, z: Interval, center: Float[Tensor, "batch rows"], y: Shaped[Tensor, "batch *labels"]) -> Line:
        """Exact."""
        slope = (self.scale * self.rows).expand(len(y), -1, -1)
        error = self.scale * (center - y)
        return Line(error, slope, torch.zeros_like(error), (z - y) * self.scale)

    def shift(
        self,
        z: Interval,
        moved: Interval,
        size: Float[Tensor, "batch rows"],
        error: Float[Tensor, "batch rows"],
        y: Shaped[Tensor, "batch *labels"],
    ) -> Shift:
        """Exact."""
        slope = (self.scale * self.rows).expand(len(y), -1, -1)
        change = Interval(-self.scale * size, self.scale * size)
        return Shift(slope, self.scale * error, change, (moved - y) * self.scale)

    def relabelled(
        self,
        y: Shaped[Tensor, "samples *labels"],
        center: Float[Tensor, "*batch outputs any"],
        radius: Float[Tensor, "*batch outputs any"],
    ) -> Interval:
        """A label moves every output's error alike."""
        reach = self.scale * self.label_radius * (center.abs() + radius).sum(-2)
        return Interval(-reach, reach).map(lambda t: t.expand(len(y), -1))


class Sigmoid(LossSlope):
    """The cross-entropy of two classes, as a function of one output: e = scale (sigmoid(scale o) - y)."""

    def __init__(self, scale: float, target: int | None, like: Tensor) -> None:
        self.rows = like.new_ones((1, 1))
        self.scale, self.target = scale, target

    def line(self, z: Interval, center: Float[Tensor, "batch rows"], y: Shaped[Tensor, "batch *labels"]) -> Line:
        """The chord of the sigmoid over the range, with the exact remainder."""
        k = self.scale
        low, high, middle = k * z.lower, k * z.upper, k * center
        p = z.map(lambda t: torch.sigmoid(k * t))
        slope = _secant(low, high)
        # The remainder is extreme at the ends, and where the sigmoid is as steep as the line.
        root = (1 - 4 * slope).clamp(min=0).sqrt()
        tiny = torch.finfo(low.dtype).tiny
        steep = [torch.logit(((1 + sign * root) / 2).clamp(tiny, 1 - torch.finfo(low.dtype).eps)) for sign in (-1, 1)]
        points = [low, high, *(torch.minimum(torch.maximum(t, low), high) for t in steep)]
        off = torch.stack([torch.sigmoid(t) - slope * (t - middle) for t in points])
        top, bottom = off.amax(0), off.amin(0)
        error = k * ((top + bottom) / 2 - y)
        # The last term covers the rounding of the steep points, where the remainder is flat.
        remainder = k * ((top - bottom) / 2 + 8 * torch.finfo(low.dtype).eps)
        return Line(error, (k * k * slope)[..., None], remainder, (p - y) * k)

    def shift(
        self,
        z: Interval,
        moved: Interval,
        size: Float[Tensor, "batch rows"],
        error: Float[Tensor, "batch rows"],
        y: Shaped[Tensor, "batch *labels"],
    ) -> Shift:
        """The middle of the slopes' range; the change itself is exact."""
        k = self.scale
        steepest, flattest = _slopes(k * moved.lower, k * moved.upper)
        slope = (steepest + flattest) / 2
        remainder = k * k * ((steepest - flattest) / 2 * size + slope * error)
        # sigmoid(t + s) - sigmoid(t) is largest at t = -s/2.
        half = k * size / 2
        low, high = k * z.lower, k * z.upper
        up_at = torch.minimum(torch.maximum(-half, low), high)
        down_at = torch.minimum(torch.maximum(half, low), high)
        up = k * (torch.sigmoid(up_at + 2 * half) - torch.sigmoid(up_at))
        down = k * (torch.sigmoid(down_at) - torch.sigmoid(down_at - 2 * half))
        p = moved.map(lambda t: torch.sigmoid(k * t))
        return Shift((k * k * slope)[..., None], remainder, Interval(-down, up), (p - y) * k)

    def relabelled(
        self,
        y: Shaped[Tensor, "samples *labels"],
        center: Float[Tensor, "*batch outputs any"],
        radius: Float[Tensor, "*batch outputs any"],
    ) -> Interval:
        """The other class, or the target."""
        change = self.scale * (2 * y - 1)  # e' - e = scale (y - y')
        if self.target is not None:
            change = torch.where(y == self.target, 0.0, change)
        found = Interval(center - radius, center + radius)
        found = Interval(found.lower[..., 0, :], found.upper[..., 0, :]) * change
        return Interval(found.lower.clamp(max=0), found.upper.clamp(min=0))


class Softmax(LossSlope):
    """Cross-entropy: e = softmax(o) - onehot(y). The errors sum to 0."""

    centered = True

    def __init__(self, classes: int, target: int | None, like: Tensor) -> None:
        self.classes, self.target = classes, target
        self.first, self.second = torch.triu_indices(classes, classes, 1, device=like.device)
        eye = torch.eye(classes, dtype=like.dtype, device=like.device)
        self.rows = eye[self.second] - eye[self.first]

    def _pairs(self, t: Tensor, sign: float) -> Tensor:
        """From rows to [batch, i, j] for o_j - o_i, or its size with sign 1."""
        found = t.new_zeros((len(t), self.classes, self.classes))
        found[:, self.first, self.second] = t
        found[:, self.second, self.first] = sign * t
        return found

    def _probabilities(self, z: Interval) -> Interval:
        low, high = self._pairs(z.lower, -1), self._pairs(z.upper, -1)
        lower = torch.where(self._upper_half, low, high)
        upper = torch.where(self._upper_half, high, low)
        return softmax_of_differences(Interval(lower, upper))

    @property
    def _upper_half(self) -> Tensor:
        return torch.ones(self.classes, self.classes, dtype=torch.bool, device=self.rows.device).triu(1)

    def line(self, z: Interval, center: Float[Tensor, "batch rows"], y: Shaped[Tensor, "batch *labels"]) -> Line:
        """The tangent, with the least of three remainders."""
        p = self._probabilities(z)
        at = softmax_of_differences(Interval.point(self._pairs(center, -1))).lower
        far = self._pairs(torch.maximum(z.upper - center, center - z.lower).clamp(min=0), 1)
        slope = torch.diag_embed(at) - at[:, :, None] * at[:, None, :]
        # d2 p_i [d, d] = p_i (2 t^2 - m), t = sum_j p_j (d_i - d_j), m = sum_j p_j (d_i - d_j)^2 >= t^2.
        square = torch.minimum((p.upper[:, None, :] * far.square()).sum(2), far.square().amax(2))
        second = p.upper * square / 2
        # The mean slope along the segment lies in the products' ranges.
        outer = at[:, :, None] * at[:, None, :]
        high, low = p.upper[:, :, None] * p.upper[:, None, :], p.lower[:, :, None] * p.lower[:, None, :]
        first = (torch.maximum(high - outer, outer - low) * far).sum(2)
        whole = torch.maximum(p.upper - at, at - p.lower) + (outer * far).sum(2)
        remainder = torch.minimum(torch.minimum(first, second), whole) + 8 * torch.finfo(at.dtype).eps
        label = F.one_hot(y, self.classes).to(at.dtype)
        return Line(at - label, slope, remainder, p - label)

    def shift(
        self,
        z: Interval,
        moved: Interval,
        size: Float[Tensor, "batch rows"],
        error: Float[Tensor, "batch rows"],
        y: Shaped[Tensor, "batch *labels"],
    ) -> Shift:
        """The mean slope between the two lies in the range of all slopes."""
        before, after, path = self._probabilities(z), self._probabilities(moved), self._probabilities(z.hull(moved))
        size, error = self._pairs(size, 1), self._pairs(error, 1)
        high = path.upper[:, :, None] * path.upper[:, None, :]
        low = path.lower[:, :, None] * path.lower[:, None, :]
        middle = (high + low) / 2
        remainder = ((high - low) / 2 * size + middle * error).sum(2)
        off_diagonal = middle.masked_fill(torch.eye(self.classes, dtype=torch.bool, device=middle.device), 0.0)
        slope = torch.diag_embed(off_diagonal.sum(2)) - off_diagonal
        reach = (high * size).sum(2)
        change = Interval(-reach, reach).sharpened(after - before)
        return Shift(slope, remainder, change, after - F.one_hot(y, self.classes).to(middle.dtype))

    def relabelled(
        self,
        y: Shaped[Tensor, "samples *labels"],
        center: Float[Tensor, "*batch outputs any"],
        radius: Float[Tensor, "*batch outputs any"],
    ) -> Interval:
        """The best of the other classes, or the target."""
        a, r = (t.expand(len(y), *t.shape[-2:]) for t in (center, radius))
        at = torch.arange(len(y), device=y.device)
        own, own_radius = a[at, y][:, None], r[at, y][:, None]
        other = torch.ones((len(y), self.classes), dtype=torch.bool, device=y.device)
        if self.target is not None:
            other = torch.zeros_like(other)
            other[:, self.target] = True
        other[at, y] = False
        inside = torch.where(other[..., None], own - a, 0.0)
        around = torch.where(other[..., None], own_radius + r, 0.0)
        zero = torch.zeros_like(inside[:, 0])
        low = torch.minimum((inside - around).amin(1), zero)
        return Interval(low, torch.maximum((inside + around).amax(1), zero))


def _secant(low: Tensor, high: Tensor) -> Tensor:
    """The slope of the sigmoid's chord over [low, high]; where this is tiny, the slope in the middle."""
    middle = torch.sigmoid((low + high) / 2)
    tiny = high - low < torch.finfo(low.dtype).eps ** 0.5
    chord = (torch.sigmoid(high) - torch.sigmoid(low)) / torch.where(tiny, 1.0, high - low)
    return torch.where(tiny, middle * (1 - middle), chord).clamp(0, 0.25)


def _slopes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The largest and the smallest slope of the sigmoid over [low, high]."""
    across = (low <= 0) & (high >= 0)
    near = torch.where(across, 0.0, torch.minimum(low.abs(), high.abs()))
    far = torch.maximum(low.abs(), high.abs())
    steep, flat = torch.sigmoid(near), torch.sigmoid(far)
    return steep * (1 - steep), flat * (1 - flat)
