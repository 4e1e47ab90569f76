"""Intervals of `dL/dz` of a loss for one sample, from an interval of its logits z: where a backward pass begins.

Derivatives are those of the sample's own loss: divide by the batch size for a mean over the batch. All hold for every
z in the box, with outward rounding also in floating point.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.rules.selection import softmax_range


def cross_entropy(z: Interval, y: Int[Tensor, " batch"] | None, *, differences: Interval | None = None) -> Interval:
    """`softmax(z) - onehot(y)`, z of shape (batch, classes); for `y=None` over all labels.

    The range of each probability over the box is exact. `differences` are bounds on `z_j - z_i` at [batch, i, j],
    which are tighter than those of z where they come from rows of the last layer; the probabilities
    `p_i = 1 / sum_j exp(z_j - z_i)` are then bounded by both. For `y=None` the components are [p_min - 1, p_max].
    """
    p = softmax_range(z, -1)
    if differences is not None:
        p = p.sharpened(softmax_of_differences(differences))
    if y is None:
        return Interval(*rounding.widened(p.lower - 1, p.upper))
    return p - F.one_hot(y, z.shape[-1]).to(p.dtype)


def softmax_of_differences(differences: Interval) -> Interval:
    """Bounds on each probability from bounds on `z_j - z_i` at [..., i, j], the diagonal taken as 0."""
    same = torch.eye(differences.shape[-1], dtype=torch.bool, device=differences.device)

    def of(d: Tensor) -> Tensor:
        return torch.exp(-d.masked_fill(same, 0.0).logsumexp(-1))

    upper = of(differences.lower)
    p = Interval.point(upper) if differences.is_point else Interval(of(differences.upper), upper)
    # As for softmax: the error of the exponents, times p, is absolute.
    return Interval(*rounding.widened(p.lower, p.upper, ulps=8 * (differences.shape[-1] + 16), scale=1.0))


def binary_cross_entropy_with_logits(z: Interval, y: Interval | Float[Tensor, "*shape"]) -> Interval:
    """`sigmoid(z) - y`, for labels in [0, 1] or intervals of them, in z's shape."""
    p = z.map(torch.sigmoid)
    return Interval(*rounding.widened(p.lower, p.upper, ulps=8, scale=1 + z.magnitude)) + -_label(y, z)


def mse(z: Interval, y: Interval | Float[Tensor, "*shape"]) -> Interval:
    """`2 (z - y)`, of the squared error summed over the outputs, for labels or intervals of them."""
    return (z + -_label(y, z)) * 2.0


def hinge(z: Interval, y: Interval | Float[Tensor, "*shape"], *, margin: float = 1.0) -> Interval:
    """The derivative of `max(0, margin - y z)`: `-y` where `y z < margin`, else 0; labels are -1 and 1.

    An interval of labels stands for all its values. At the kink it is 0, as automatic differentiation has it.
    """
    y = _label(y, z)
    slack = margin + -(z * y)
    # What overflowed to NaN stays NaN, instead of having no gradient.
    active = Interval(*(torch.where(s.isnan(), s, (s > 0).to(z.dtype)) for s in (slack.lower, slack.upper)))
    return -y * (Interval.point(active.lower) if z.is_point and y.is_point else active)


def _label(y: Interval | Tensor, z: Interval) -> Interval:
    return (y if isinstance(y, Interval) else Interval.point(y)).map(lambda t: t.to(z.dtype))
