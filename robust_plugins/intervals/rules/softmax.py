"""Rules of softmax and of its logarithm.

With `t_i = z_i - logsumexp_{j != i} z_j`, which is concave in z, the probability is `p_i = sigmoid(t_i)`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.products import total
from robust_plugins.intervals.rules import simplex
from robust_plugins.intervals.rules.activations import sigmoid
from robust_plugins.intervals.rules.registry import LinearBound, backward_rule, forward_rule, relaxation_rule
from robust_plugins.intervals.rules.selection import lead, softmax_range

Softmax = nn.Softmax | nn.LogSoftmax


@forward_rule(nn.Softmax)
def softmax(layer: nn.Softmax, x: Interval) -> Interval:
    """The range of each probability, exact."""
    return softmax_range(x, _axis(layer, x))


@backward_rule(nn.Softmax)
def softmax_vjp(layer: nn.Softmax, x: Interval, grad: Interval) -> Interval:
    """`p_i m_i` with `m_i = sum_j p_j (g_i - g_j)`, a mean by probabilities that sum to one.

    It is `p_i (1 - p_i)` times a mean of the others' differences, too.
    """
    dim = _axis(layer, x)
    p = softmax_range(x, dim)
    if p.is_point and grad.is_point:
        mean = total(p * grad, (dim % x.lower.dim(),)).map(lambda t: t.unsqueeze(dim))
        return p * (grad - mean)
    p, g = (i.map(lambda t: t.movedim(dim, -1)) for i in (p, grad))
    itself = torch.eye(g.shape[-1], dtype=torch.bool, device=g.device)
    differences = g.map(lambda t: t.unsqueeze(-1)) - g.map(lambda t: t.unsqueeze(-2))
    differences = Interval(*(end.masked_fill(itself, 0.0) for end in (differences.lower, differences.upper)))
    found = p * simplex.mean(p.map(lambda t: t.unsqueeze(-2)), differences)
    if g.shape[-1] > 1:
        others = Interval(
            differences.lower.masked_fill(itself, torch.inf).amin(-1),
            differences.upper.masked_fill(itself, -torch.inf).amax(-1),
        )
        found = found.agreeing(_variance(p) * others)
    return found.map(lambda t: t.movedim(-1, dim))


def _variance(p: Interval) -> Interval:
    """The range of `p (1 - p)`."""
    ends = p.lower * (1 - p.lower), p.upper * (1 - p.upper)
    inside = (p.lower <= 0.5) & (p.upper >= 0.5)
    low, up = torch.minimum(*ends), torch.where(inside, 0.25, torch.maximum(*ends))
    return Interval(*rounding.widened(low.clamp(min=0), up, ulps=4))


@relaxation_rule(nn.Softmax, outward=True)
def softmax_relaxation(layer: nn.Softmax, x: Interval) -> tuple[LinearBound, LinearBound]:
    """Linear functions of the whole vector: of several, those that are nearest in the middle of the box.

    Above: a line over the sigmoid of t, and t below its tangent. Below: a line under the sigmoid with a linear bound
    below t, or the tangent of one of two convex functions in which `exp` is replaced by its chords (Wei et al. 2023,
    "Convex bounds on the softmax function with applications to robustness verification", equations ER and LSE); or the
    least probability.
    """
    dim = _axis(layer, x)
    z = x.map(lambda t: t.movedim(dim, -1))
    scores = _Scores.of(z)
    p = softmax_range(z, -1)
    t = Interval(scores.t_low, scores.t_up)
    (low_slope, low), (up_slope, up) = sigmoid(nn.Sigmoid()).lines(t)
    low_slope, up_slope = low_slope.clamp(min=0), up_slope.clamp(min=0)
    above = up_slope.unsqueeze(-1) * scores.tangent, up_slope * scores.t_center + up
    below = torch.where(scores.known, low_slope * scores.t_below + low, -torch.inf)
    candidates = [
        (low_slope.unsqueeze(-1) * scores.below, below),
        _by_logarithms(z, scores),
        _by_differences(z),
        (torch.zeros_like(scores.tangent), p.lower),
    ]
    above = _best([above, (torch.zeros_like(scores.tangent), p.upper)], -1)
    return _bounds(_best(candidates, 1), above, z, dim)


@forward_rule(nn.LogSoftmax)
def log_softmax(layer: nn.LogSoftmax, x: Interval) -> Interval:
    """`log sigmoid(t)`, whose range is exact."""
    dim = _axis(layer, x)
    if x.is_point:
        result = x.map(lambda t: t.log_softmax(dim))
    else:
        z = x.map(lambda t: t.movedim(dim, -1))
        ends = (lead(a, b) for a, b in ((z.lower, z.upper), (z.upper, z.lower)))
        result = Interval(*(torch.nn.functional.logsigmoid(t).movedim(-1, dim) for t in ends))
    if not rounding.active():
        return result
    scale = 1 + x.magnitude.amax(dim, True) + result.magnitude
    low, up = rounding.widened(result.lower, result.upper, ulps=4 * (x.shape[dim] + 16), scale=scale)
    return Interval(low, up.clamp(max=0))


@backward_rule(nn.LogSoftmax)
def log_softmax_vjp(layer: nn.LogSoftmax, x: Interval, grad: Interval) -> Interval:
    """`g_i - p_i sum_j g_j = (1 - p_i) g_i - p_i sum_{j != i} g_j`."""
    dim = _axis(layer, x)
    p = softmax_range(x, dim)
    if p.is_point and grad.is_point:
        return grad - p * total(grad, (dim % x.lower.dim(),)).map(lambda t: t.unsqueeze(dim))
    p, g = (i.map(lambda t: t.movedim(dim, -1)) for i in (p, grad))
    itself = torch.eye(g.shape[-1], dtype=torch.bool, device=g.device)
    others = g.map(lambda t: t.unsqueeze(-2).expand(*t.shape, t.shape[-1]).masked_fill(itself, 0.0))
    rest = total(others, (others.lower.dim() - 1,))
    return ((-p + 1.0) * g - p * rest).map(lambda t: t.movedim(-1, dim))


@relaxation_rule(nn.LogSoftmax, outward=True)
def log_softmax_relaxation(layer: nn.LogSoftmax, x: Interval) -> tuple[LinearBound, LinearBound]:
    """Above the tangent, as it is concave; below, with the chords of `exp` and the tangent of their logarithm."""
    dim = _axis(layer, x)
    z = x.map(lambda t: t.movedim(dim, -1))
    value, slope = chords(z)
    size = value.sum(-1, keepdim=True)
    itself = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    center = z.center
    top = z.upper.amax(-1, keepdim=True)
    below = itself - (slope / size).unsqueeze(-2), center - top - size.log()
    above = itself - center.softmax(-1).unsqueeze(-2), center.log_softmax(-1)
    return _bounds(below, above, z, dim)


class _Scores(NamedTuple):
    """The range of t, its value and slopes at the centre, and a linear lower bound: its value there, and slopes."""

    t_low: Tensor
    t_up: Tensor
    t_center: Tensor
    tangent: Tensor
    t_below: Tensor
    below: Tensor
    known: Tensor
    """Where the linear lower bound is one; elsewhere the others' exponentials are below what is computed."""

    @classmethod
    def of(cls, z: Interval) -> _Scores:
        """The logarithm of a sum of exponentials lies above its tangent, and below the logarithm of their chords."""
        n = z.shape[-1]
        itself = torch.eye(n, dtype=torch.bool, device=z.device)
        center = z.center
        others = center.unsqueeze(-2).masked_fill(itself, torch.finfo(z.dtype).min)
        shares = others.softmax(-1).masked_fill(itself, 0.0)
        value, slope = chords(z)
        size = value.unsqueeze(-2).masked_fill(itself, 0.0).sum(-1)
        known = size > 0
        size = torch.where(known, size, 1)  # before it is divided by: also its gradient is finite
        slopes = slope.unsqueeze(-2).masked_fill(itself, 0.0) / size.unsqueeze(-1)
        top = z.upper.amax(-1, keepdim=True)
        eye = itself.to(z.dtype)
        return cls(
            lead(z.lower, z.upper), lead(z.upper, z.lower), lead(center, center),
            eye - shares, center - top - size.log(), eye - slopes, known,
        )  # fmt: skip


LARGEST = 40.0
"""Up to which difference of scores probabilities are bounded by their ratios; the square of a ratio is finite, too."""

Plane = tuple[Tensor, Tensor]
"""Slopes, (..., n, n), and values in the middle of the box, (..., n)."""


def _by_logarithms(z: Interval, scores: _Scores) -> Plane:
    """`exp(z_i) / sum_j chord_j(z_j)`, whose logarithm is convex."""
    value, slope = chords(z)
    size = value.sum(-1, keepdim=True)
    found = (z.center - z.upper.amax(-1, keepdim=True)).exp() / size
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    return found.unsqueeze(-1) * (eye - (slope / size).unsqueeze(-2)), found


def _by_differences(z: Interval) -> Plane:
    """`1 / (1 + sum_j chord_ij(z_j - z_i))`, convex."""
    itself = torch.eye(z.shape[-1], dtype=torch.bool, device=z.device)
    differences = z.map(lambda t: t.unsqueeze(-2)) - z.map(lambda t: t.unsqueeze(-1))
    # What no floating-point number holds is left out before the exponential, whose gradient would be infinite too.
    known = differences.upper.masked_fill(itself, 0.0).amax(-1) < LARGEST
    differences = differences.map(lambda t: t.masked_fill(itself | ~known.unsqueeze(-1), 0.0))
    value, slope = _chord(differences)
    size = 1 + value.masked_fill(itself, 0.0).sum(-1)
    slopes = slope.masked_fill(itself, 0.0)
    slopes = torch.where(itself, -slopes.sum(-1, keepdim=True), slopes)
    found = (-slopes / (size**2).unsqueeze(-1)), 1 / size
    return torch.where(known.unsqueeze(-1), found[0], 0), torch.where(known, found[1], 0)


def chords(z: Interval) -> tuple[Tensor, Tensor]:
    """The chord of `exp(z_j - max)` in the middle of each interval, and its slope."""
    top = z.upper.amax(-1, keepdim=True)
    return _chord(Interval(z.lower - top, z.upper - top))


def _chord(z: Interval) -> tuple[Tensor, Tensor]:
    first, last = z.lower.exp(), z.upper.exp()
    # (e^b - e^a) / (b - a) = e^m sinh(r) / r, which is right for near ends too.
    r = z.radius
    wide = r > 1e-3
    near = torch.where(wide, 0, r)
    series = z.center.exp() * (1 + near**2 / 6 + near**4 / 120)
    slope = torch.where(wide, (last - first) / torch.where(wide, 2 * r, 1), series)
    return (first + last) / 2, slope


def _best(candidates: list[Plane], sign: int) -> Plane:
    """For each entry the plane with the largest value, or for sign -1 the smallest, in the middle."""
    values = torch.stack([value for _, value in candidates]).nan_to_num(nan=-sign * torch.inf)
    choice = (sign * values).argmax(0)
    slopes = candidates[0][0]
    for index, (other, _) in enumerate(candidates):
        slopes = torch.where((choice == index).unsqueeze(-1), other, slopes)
    return slopes, values.gather(0, choice.unsqueeze(0)).squeeze(0)


def _bounds(below: Plane, above: Plane, z: Interval, dim: int) -> tuple[LinearBound, LinearBound]:
    """Planes as bounds along an axis."""
    center, size = z.center, z.magnitude

    def bound(plane: Plane, sign: int) -> LinearBound:
        slopes, value = plane
        offset = value - (slopes * center.unsqueeze(-2)).sum(-1)
        if rounding.active():
            scale = 1 + value.abs() + (slopes.abs() * size.unsqueeze(-2)).sum(-1)
            ends = rounding.widened(offset, offset, ulps=16 * (z.shape[-1] + 16), scale=scale)
            offset = ends[0] if sign < 0 else ends[1]

        def transpose(coefficients: Tensor) -> Tensor:
            k = coefficients.movedim(dim if dim < 0 else dim + 1, -1).unsqueeze(-2)
            return torch.matmul(k, slopes.unsqueeze(1)).squeeze(-2).movedim(-1, dim if dim < 0 else dim + 1)

        return LinearBound(transpose, offset.movedim(-1, dim))

    return bound(below, -1), bound(above, 1)


def _axis(layer: Softmax, x: Interval) -> int:
    if layer.dim is None or layer.dim % x.lower.dim() == 0:
        raise UnsupportedModelError(
            f"{type(layer).__name__} with dim={layer.dim} is not supported: name an axis of each sample"
        )
    return layer.dim
