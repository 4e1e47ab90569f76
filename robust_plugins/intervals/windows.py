"""`Windows`: coefficients on an image of which each row sees only a window, as those of a convolution's output do.

A row is one neuron's bound on the way back through a network. Its window lies at a place of its own; outside of it the
coefficients are zero. Values are stored channels last, so that a window of an image is a few contiguous pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robust_plugins.intervals.convolutions import convolution, gradient_by_input

Pair = Sequence[int]


class Picture:
    """An image for each sample, or one for all, of which windows are looked at; zero outside."""

    def __init__(self, image: Float[Tensor, "samples channels height width"]) -> None:
        self.image = image.permute(0, 2, 3, 1).contiguous()
        self.margins = (0, 0, 0, 0)
        """How many zeros `padded` has above, below, left and right of the image."""
        self.padded = self.image

    @property
    def of_channels(self) -> Tensor | None:
        """The number of each channel, where it is the same at all positions and for all samples."""
        first = self.image[:1, :1, :1]
        return first.flatten() if torch.equal(first.expand_as(self.image), self.image) else None

    def seen(self, windows: Windows) -> Float[Tensor, "rows height width channels"]:
        """The part of the image that each row's window shows."""
        height, width = windows.size
        tops, lefts = windows.top.aminmax(), windows.left.aminmax()
        needed = (
            max(0, -int(tops.min)),
            max(0, int(tops.max) + height - self.image.shape[1]),
            max(0, -int(lefts.min)),
            max(0, int(lefts.max) + width - self.image.shape[2]),
        )
        if any(n > m for n, m in zip(needed, self.margins, strict=True)):
            self.margins = tuple(max(n, m) for n, m in zip(needed, self.margins, strict=True))  # type: ignore[assignment]
            above, below, before, behind = self.margins
            self.padded = F.pad(self.image, (0, 0, before, behind, above, below))
        samples = windows.sample if len(self.image) > 1 else None
        return _cut(self.padded, samples, windows.top + self.margins[0], windows.left + self.margins[2], windows.size)


@dataclass(frozen=True, eq=False)
class Windows:
    """Coefficients of bounds on `rows` numbers, on a node whose output is an image."""

    values: Float[Tensor, "any height width channels"]
    """Those of the lower bounds; with `split` those of the upper bounds after them. With `kind` one of each kind."""
    sample: Int[Tensor, " rows"]
    """Whose image it is."""
    top: Int[Tensor, " rows"]
    """The first line of the window in the image; below zero where it begins outside."""
    left: Int[Tensor, " rows"]
    split: bool = False
    kind: Int[Tensor, " rows"] | None = None
    """Which of `values` are the row's, while rows share them."""
    inside: bool = True
    """Whether coefficients outside of the image are known to be zero."""

    @classmethod
    def unit(cls, shape: Sequence[int], entries: Int[Tensor, " rows"], like: Tensor) -> Windows:
        """Rows that are entries of the flattened outputs of all samples, each sample's of the given shape."""
        channels, height, width = shape
        place = entries % prod(shape)
        eye = torch.eye(channels, dtype=like.dtype, device=like.device).view(channels, 1, 1, channels)
        at = place % (height * width)
        return cls(eye, entries // prod(shape), at // width, at % width, kind=place // (height * width))

    def signed(self, negative: Bool[Tensor, " rows"]) -> Windows:
        """The same, with the coefficients of some rows negated, while rows share them."""
        assert self.kind is not None
        return replace(
            self, values=torch.cat((self.values, -self.values)), kind=self.kind + len(self.values) * negative.long()
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the windows."""
        return self.values.shape[1], self.values.shape[2]

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.sample)

    @property
    def own(self) -> Windows:
        """The same, each row with values of its own."""
        return self if self.kind is None else replace(self, values=self.values.index_select(0, self.kind), kind=None)

    @property
    def sides(self) -> list[Tensor]:
        """The coefficients of lower and upper bounds, (rows, height, width, channels); the same while they are one."""
        values = self.own.values
        return [*values.split(self.rows)] if self.split else [values, values]

    def within(self, image: Pair) -> Windows:
        """The same, with coefficients outside an image of that height and width set to zero."""
        if self.inside:
            return self
        if all(
            int(first.min()) >= 0 and int(first.max()) + extent <= limit
            for first, extent, limit in zip((self.top, self.left), self.size, image, strict=True)
        ):
            return replace(self, inside=True)
        ones = self.values.new_ones((1, 1, *image))
        own = self.own
        shown = Picture(ones).seen(own)
        values = torch.cat([side * shown for side in own.sides]) if own.split else own.values * shown
        return replace(own, values=values, inside=True)

    def times(self, factor: Picture) -> Windows:
        """The coefficients multiplied by an image; those outside become zero unless it is one number a channel."""
        if (numbers := factor.of_channels) is not None:
            return replace(self, values=self.values * numbers)
        own, shown = self.own, factor.seen(self)
        return replace(
            own, values=torch.cat([side * shown for side in (own.sides if own.split else own.sides[:1])]), inside=True
        )

    def dots(self, image: Picture) -> list[Tensor]:
        """The sum of each row's coefficients times an image: (rows,), for lower and upper bounds."""
        if (numbers := image.of_channels) is not None and self.inside:
            found = (self.values.flatten(0, 2) @ numbers).view(len(self.values), -1).sum(1)
            if self.kind is not None:
                found = found[self.kind]
            return [*found.split(self.rows)] if self.split else [found, found]
        shown = image.seen(self)
        low, up = self.sides
        first = dot(low, shown)
        return [first, first if up is low else dot(up, shown)]

    def back_through_convolution(
        self, weight: Tensor, *, stride: Pair, padding: Pair, dilation: Pair, groups: int, image: Pair
    ) -> Windows:
        """The coefficients of a convolution's input, where these are of its output, an image of that size."""
        w = self.within(image)
        size = [
            (n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(w.size, stride, dilation, weight.shape[2:], strict=True)
        ]
        chosen = w.values.permute(0, 3, 1, 2)
        below = gradient_by_input(chosen, weight, size, stride=stride, padding=(0, 0), dilation=dilation, groups=groups)
        return w._at(below, w.top * stride[0] - padding[0], w.left * stride[1] - padding[1])

    def back_through_average(self, kernel: Pair, *, stride: Pair, padding: Pair, factor: float, image: Pair) -> Windows:
        """The coefficients of the input of sums over windows, times a factor, where these are of its output."""
        w = self.within(image)
        values = w.values * factor
        for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), start=1):
            length = (values.shape[axis] - 1) * s + 1
            shape = [*values.shape]
            shape[axis] = length + k - 1
            spread = values.new_zeros(shape)
            for i in range(k):
                spread[(slice(None),) * axis + (slice(i, i + length, s),)] += values
            values = spread
        return replace(
            w, values=values, top=w.top * stride[0] - padding[0], left=w.left * stride[1] - padding[1], inside=False
        )

    def through_convolution(
        self, weight: Tensor, *, stride: Pair, padding: Pair, dilation: Pair, groups: int, image: Pair
    ) -> Windows:
        """The coefficients of the input of a transposed convolution, where these are of its output: a convolution.

        The weight is that of the convolution, as are stride, padding and dilation.
        """
        aligned = self.within(image)._aligned(weight.shape[2:], stride, padding, dilation)
        chosen = aligned.values.permute(0, 3, 1, 2)
        below = convolution(chosen, weight, stride=stride, padding=(0, 0), dilation=dilation, groups=groups)
        return aligned._at(below, aligned.top, aligned.left)

    def through_average(self, kernel: Pair, *, stride: Pair, padding: Pair, factor: float, image: Pair) -> Windows:
        """The coefficients of the input of an average's transpose, where these are of its output."""
        aligned = self.within(image)._aligned(kernel, stride, padding, (1, 1))
        below = F.avg_pool2d(aligned.values.permute(0, 3, 1, 2), tuple(kernel), tuple(stride)) * (prod(kernel) * factor)
        return aligned._at(below, aligned.top, aligned.left)

    def moved(self, down: int, right: int) -> Windows:
        """The same in an image that begins elsewhere, of which some may now lie outside."""
        return replace(self, top=self.top + down, left=self.left + right, inside=False)

    def plus(self, other: Windows) -> Windows:
        """The sum of two ways to one image, whose windows may differ in place and size."""
        one, two = self.own, other.own
        split = one.split or two.split
        top, left = torch.minimum(one.top, two.top), torch.minimum(one.left, two.left)
        size = [
            int(torch.maximum(one_first + one_size, two_first + two_size).sub(first).max())
            for first, one_first, one_size, two_first, two_size in (
                (top, one.top, one.size[0], two.top, two.size[0]),
                (left, one.left, one.size[1], two.left, two.size[1]),
            )
        ]
        parts = [w._split(split)._placed(w.top - top, w.left - left, size) for w in (one, two)]
        return replace(
            one, values=parts[0] + parts[1], top=top, left=left, split=split, inside=one.inside and two.inside
        )

    def whole(self, image: Pair) -> list[Float[Tensor, "rows channels height width"]]:
        """The coefficients on the whole image: those of lower and those of upper bounds."""
        own = self.own
        values = own.values
        sides = 2 if own.split else 1
        # What an image of one row shows in a window as large as the image is the row, at its place. One axis after
        # the other: the margins of both together would take a multiple of the memory.
        every = torch.arange(len(values), device=values.device)
        for axis, first in ((1, own.top), (2, own.left)):
            first = first.repeat(sides)
            limit = image[axis - 1]
            before = max(0, int(first.max()))
            behind = max(0, limit - int(first.min()) - values.shape[axis])
            padded = F.pad(values, (0, 0, before, behind) if axis == 2 else (0, 0, 0, 0, before, behind))
            zero = torch.zeros_like(first)
            size = (limit, values.shape[2]) if axis == 1 else (limit if axis == 1 else values.shape[1], limit)
            start = (before - first, zero) if axis == 1 else (zero, before - first)
            values = _cut(padded, every, *start, size)
        found = [*values.permute(0, 3, 1, 2).contiguous().split(own.rows)]
        return found if own.split else [found[0], found[0]]

    def _split(self, wanted: bool) -> Windows:
        return self if self.split or not wanted else replace(self, values=self.values.repeat(2, 1, 1, 1), split=True)

    def _at(self, values: Tensor, top: Tensor, left: Tensor) -> Windows:
        return replace(self, values=values.permute(0, 2, 3, 1).contiguous(), top=top, left=left, inside=False)

    def _aligned(self, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Windows:
        """The same windows enlarged by zeros to what all outputs of a convolution that sees any of them see.

        `top` and `left` are those of the convolution's outputs.
        """
        own = self.own
        firsts, shifts, sizes = [], [], []
        for first, extent, k, s, p, d in zip(
            (own.top, own.left), own.size, kernel, stride, padding, dilation, strict=True
        ):
            reach = d * (k - 1)
            begin = -((-(first + p - reach)).div(s, rounding_mode="floor"))  # rounded up
            last = (first + p + extent - 1).div(s, rounding_mode="floor")
            firsts.append(begin)
            shifts.append(first - (begin * s - p))
            sizes.append((max(1, int((last - begin).max()) + 1) - 1) * s + reach + 1)
        return replace(own, values=own._placed(shifts[0], shifts[1], sizes), top=firsts[0], left=firsts[1])

    def _placed(self, down: Tensor, right: Tensor, size: Pair) -> Tensor:
        """The values in larger windows, each row moved by numbers of its own; what falls out is dropped."""
        height, width = self.size
        places = torch.stack((down, right), 1).unique(dim=0)
        if len(places) == 1 and min(places[0].tolist()) >= 0:
            y, x = places[0].tolist()
            return F.pad(self.values, (0, 0, x, size[1] - x - width, y, size[0] - y - height))
        found = self.values.new_zeros((len(self.values), *size, self.values.shape[3]))
        sides = 2 if self.split else 1
        for y, x in places.tolist():
            rows = ((down == y) & (right == x)).repeat(sides).nonzero().squeeze(1)
            lines, columns = slice(max(y, 0), min(y + height, size[0])), slice(max(x, 0), min(x + width, size[1]))
            from_lines = slice(lines.start - y, lines.stop - y)
            from_columns = slice(columns.start - x, columns.stop - x)
            found[rows, lines, columns] = self.values[rows, from_lines, from_columns]
        return found


WindowRule = Callable[..., Windows | None]
"""Sends coefficients of a layer's output to its input, `(layer, windows, image, **parameters)`, `image` the height and
width of the output; None where it cannot."""


def dot(a: Float[Tensor, "rows *shape"], b: Float[Tensor, "rows *shape"]) -> Float[Tensor, " rows"]:
    """The sum of the products of each row."""
    found: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
    return found


def _cut(image: Tensor, samples: Tensor | None, top: Tensor, left: Tensor, size: Pair) -> Tensor:
    """Windows of that size of images that are stored channels last: (rows, height, width, channels)."""
    count, lines, columns, channels = image.shape
    starts = top * columns + left
    if samples is not None:
        starts = starts + samples * (lines * columns)
    every = count * lines * columns - ((size[0] - 1) * columns + size[1] - 1)
    # All windows, those across the border included, as views of the same memory: only the wanted ones are copied.
    views = image.flatten().as_strided((every, size[0], size[1] * channels), (channels, columns * channels, 1))
    return views.index_select(0, starts).view(len(top), *size, channels)
