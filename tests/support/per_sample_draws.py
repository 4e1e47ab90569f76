"""Per-sample gradients of every kind of sign, and their sums computed plainly in float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from robust_plugins.intervals import Interval
from robust_plugins.poisoning.box.sums.per_sample import Dense, Outer, PerSample

KINDS = ["point", "positive", "negative", "any"]


def box(g: torch.Generator, shape: tuple[int, ...], kind: str, dtype: torch.dtype) -> Interval:
    """An interval of that sign; a fifth of its entries are zero, as behind a ReLU."""
    a, b = torch.randn((2, *shape), generator=g, dtype=torch.float64).to(dtype)
    off = torch.rand(shape, generator=g) < 0.2
    low, up = torch.minimum(a, b).masked_fill(off, 0), torch.maximum(a, b).masked_fill(off, 0)
    if kind == "point":
        return Interval.point(a.masked_fill(off, 0))
    if kind == "positive":
        return Interval(low.abs(), low.abs() + (up - low))
    if kind == "negative":
        return Interval(-low.abs() - (up - low), -low.abs())
    return Interval(low, up)


class Drawn:
    """A term: its factors, the object under test, and all its bounds in float64."""

    def __init__(self, sign: float, g: PerSample, factors: Sequence[Interval], clip: float | None) -> None:
        self.sign, self.g = sign, g
        ends = [[f.lower.double(), f.upper.double()] for f in factors]
        corners = torch.stack([torch.stack(torch.broadcast_tensors(*c)).prod(0) for c in itertools.product(*ends)])
        bound = torch.inf if clip is None else clip
        self.lower, self.upper = (t.clamp(-bound, bound) for t in (corners.amin(0), corners.amax(0)))

    def outer(self) -> bool:
        return isinstance(self.g, Outer)


def outer(g: torch.Generator, shape: tuple[int, int, int], kinds: tuple[str, str], sign: float, scaled: bool,
          clip: float | None, dtype: torch.dtype) -> Drawn:  # fmt: skip
    b, out, inputs = shape
    delta, activation = box(g, (b, out), kinds[0], dtype), box(g, (b, inputs), kinds[1], dtype)
    scale = box(g, (b,), "positive", dtype) if scaled else None
    factors = [delta.map(lambda t: t[:, :, None]), activation.map(lambda t: t[:, None, :])]
    if scale is not None:
        factors.append(scale.map(lambda t: t[:, None, None]))
    return Drawn(sign, Outer(delta, activation, scale=scale, clip=clip), factors, clip)


def dense(g: torch.Generator, shape: tuple[int, ...], kind: str, sign: float, scaled: bool, clip: float | None,
          dtype: torch.dtype) -> Drawn:  # fmt: skip
    values = box(g, shape, kind, dtype)
    scale = box(g, shape[:1], "positive", dtype) if scaled else None
    factors = [values] if scale is None else [values, scale.map(lambda t: t.view(-1, *[1] * (len(shape) - 1)))]
    return Drawn(sign, Dense.stored(values, scale=scale, clip=clip), factors, clip)


@st.composite
def terms(draw: st.DrawFn, dtype: torch.dtype = torch.float64, largest: int = 4) -> list[Drawn]:
    """One to four terms for one parameter and batch: linear layers, or others, or both."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    b, out, inputs = (draw(st.integers(1, n)) for n in (12, 4, 40))
    found = []
    for _ in range(draw(st.integers(1, largest))):
        sign = draw(st.sampled_from([1.0, -1.0]))
        scaled, clip = draw(st.booleans()), draw(st.sampled_from([None, 0.3, 1.5]))
        if draw(st.sampled_from(["outer", "outer", "outer", "dense"])) == "outer":
            kinds = draw(st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)))
            found.append(outer(g, (b, out, inputs), kinds, sign, scaled, clip, dtype))
        else:
            found.append(dense(g, (b, out, inputs), draw(st.sampled_from(KINDS)), sign, scaled, clip, dtype))
    return found


def plain(terms: Sequence[Drawn], k: int, *, offset: float = 0.0, signed: bool = False) -> tuple[Tensor, Tensor]:
    """The sums of the k largest, by sorting everything."""
    results = []
    for ends in ([-t.sign * t.lower for t in terms], [t.sign * t.upper for t in terms]):
        d = torch.stack(ends).sum(0) + offset
        if not signed:
            d = d.clamp(min=0)
        results.append(d.sort(0, descending=True).values[:k].sum(0))
    return results[0], results[1]
