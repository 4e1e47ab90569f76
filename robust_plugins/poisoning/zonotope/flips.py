"""Which gates can flip together: the hidden rows' remainder from gates that depend on the parameters.

A row's gradient is the sum of a_b s_b x_b, with gate a_b = [x_b w > 0] and s_b what is sent back. Where a_b depends on
w, the line 1/2 + (x_b D) / (u_b - l_b) follows it from l_b to u_b, D = w - center. For a single sample that gains
nothing, but the gates of many samples flip at different D, and their sum follows the sum of the lines closely. The
remainder is bounded in cells: D is cut along the directions in which it moves the pre-activations most, most gates are
certain in each cell, and the worst cell counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.intervals import Interval
from robust_plugins.poisoning.zonotope.forward import Hidden
from robust_plugins.poisoning.zonotope.set import State

CUTS = (24, 8)
"""Into how many cells each direction is cut."""
_ANGLES = 8


@dataclass(frozen=True)
class Flips:
    """The sum over the samples of (a - 1/2) s x for each hidden row, s at the centre: slope D +- remainder."""

    slope: Float[Tensor, "neurons inputs inputs"]
    along: Interval
    """The remainder along the axes of each row, (neurons, inputs), with what up to n moved samples add by a flip."""


def flips(
    state: State,
    h: Hidden,
    sent_back: Float[Tensor, "batch neurons"],
    axes: Float[Tensor, "neurons inputs inputs"],
    pushed: Float[Tensor, "batch neurons"] | None,
    points: int,
    *,
    memory: int,
) -> Flips:
    """The gates' part of the gradient; `pushed` is how far a move changes pre-activations, of `points` samples."""
    layout = state.layout
    slopes, lower, upper = torch.zeros_like(axes), axes.new_zeros(axes.shape[:2]), axes.new_zeros(axes.shape[:2])
    counts = h.open.sum(0)
    order = counts.argsort(descending=True)
    order = order[counts[order] > 0]
    cells = CUTS[0] * CUTS[1]
    each = state.generators.shape[1] + layout.inputs * (cells + 2 if points else 2) + 6 * cells
    while len(order):
        count = int(counts[order[0]])
        # neurons with about as many open gates as the first one, so that little is filled up with zeros
        part = order[: max(1, min(memory // (8 * count * each), int((2 * counts[order] >= count).sum())))]
        order = order[len(part) :]
        chosen = h.open[:, part].T.to(torch.uint8).topk(count, dim=1)

        def taken(t: Tensor, part: Tensor = part, rows: Tensor = chosen.indices) -> Tensor:
            return t[:, part].T.gather(1, rows)

        push = None if pushed is None else taken(pushed)
        samples, sent = h.x[chosen.indices], taken(sent_back) * chosen.values
        slopes[part], found = _flips(state, part, samples, sent, h.before.map(taken), axes[part], push, points)
        lower[part], upper[part] = found.lower, found.upper
    return Flips(slopes, Interval(lower, upper))


def _flips(
    state: State, part: Tensor, x: Tensor, s: Tensor, before: Interval, axes: Tensor, push: Tensor | None, points: int
) -> tuple[Tensor, Interval]:
    """For a few neurons: x (neurons, samples, inputs), s (neurons, samples), zero where a gate is certain."""
    weight = s / (before.upper - before.lower).clamp(min=torch.finfo(s.dtype).tiny)
    slope = (x * weight[..., None]).mT @ x
    generators = torch.cat([state.layout.split(state.generators)[0][part],
                            state.axes.hidden[part] * state.layout.split(state.radii)[0][part, None]], 2)  # fmt: skip
    ways, across = _directions(x, s, generators)
    moved = across.mT @ generators
    far = moved.abs().sum(2)
    rest = generators - ways @ moved
    grid, half = _grid(s)
    t, w = grid * far[:, None], half * far  # (neurons, cells, 2), (neurons, 2)
    center = state.layout.split(state.center)[0][part]
    step = x @ ways
    z = (x @ center[..., None]) + step @ t.mT  # (neurons, samples, cells)
    blur = (step.abs() @ w[..., None]) + (x @ rest).abs().sum(2, keepdim=True)
    low, high = torch.maximum(z - blur, before.lower[..., None]), torch.minimum(z + blur, before.upper[..., None])
    on, off = low > 0, high <= 0
    sure = (on.to(s) - off.to(s)) / 2
    unsure = (~on & ~off).to(s) / 2
    c = s[..., None] * (x @ axes)  # (neurons, samples, axes)
    middle, around = sure.mT @ c, unsure.mT @ c.abs()
    followed = axes.mT @ slope
    along = followed @ ways
    middle = middle - t @ along.mT
    around = around + (w[:, None] @ along.abs().mT) + (followed @ rest).abs().sum(2)[:, None]
    lower, upper = middle - around, middle + around
    if push is not None:
        ring = on & (low <= push[..., None]), off & (high > -push[..., None])
        turned = (ring[1].to(s) - ring[0].to(s))[..., None] * c[:, :, None]  # (neurons, samples, cells, axes)
        k = min(points, turned.shape[1])
        upper = upper + turned.topk(k, dim=1, sorted=False).values.clamp(min=0).sum(1)
        lower = lower - (-turned).topk(k, dim=1, sorted=False).values.clamp(min=0).sum(1)
    empty = _empty(moved, far, grid, half)[..., None]
    infinity = torch.inf
    return slope, Interval(lower.masked_fill(empty, infinity).amin(1), upper.masked_fill(empty, -infinity).amax(1))


def _directions(x: Tensor, s: Tensor, generators: Tensor) -> tuple[Tensor, Tensor]:
    """The two directions that move the pre-activations most, weighted by |s|: D = ways (across^T D) + the rest."""
    metric = (x * s.abs()[..., None]).mT @ x
    values, vectors = torch.linalg.eigh(metric)
    root = values.clamp(min=0).sqrt()
    root = torch.maximum(root, 1e-5 * root[:, -1:].clamp(min=1e-30))
    whiten, restore = vectors * root[:, None] @ vectors.mT, vectors / root[:, None] @ vectors.mT
    white = whiten @ generators
    main = torch.linalg.eigh(white @ white.mT).eigenvectors[..., -2:].flip(-1)
    return restore @ main, whiten @ main


def _grid(like: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of the cells of [-1, 1]^2, and half their size."""
    cuts = [(2 * torch.arange(n, dtype=like.dtype, device=like.device) + 1 - n) / n for n in CUTS]
    return torch.cartesian_prod(*cuts), like.new_tensor([1 / n for n in CUTS])


def _empty(moved: Tensor, far: Tensor, grid: Tensor, half: Tensor) -> Tensor:
    """Cells that the generators cannot reach, seen from a few angles: (neurons, cells)."""
    angle = torch.arange(1, _ANGLES, dtype=grid.dtype, device=grid.device) * torch.pi / _ANGLES
    normal = torch.stack([angle.cos(), angle.sin()], 1)
    unit = moved / far.clamp(min=torch.finfo(far.dtype).tiny)[..., None]
    reach = (normal @ unit).abs().sum(2) * (1 + 1e-9)  # (neurons, angles)
    nearest = (grid @ normal.T).abs() - normal.abs() @ half  # (cells, angles)
    return (nearest > reach[:, None]).any(2)
