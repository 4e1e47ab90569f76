"""The clean batch's gradient as an affine function of the parameters, plus a rigorous remainder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from robust_plugins.intervals import Interval
from robust_plugins.poisoning.zonotope.forward import Hidden, Outputs, hidden, outputs
from robust_plugins.poisoning.zonotope.reach import pieces
from robust_plugins.poisoning.zonotope.set import State
from robust_plugins.poisoning.zonotope.slopes import Line, LossSlope


@dataclass(frozen=True)
class Gradient:
    """The mean gradient: value + jacobian (theta - center) + remainder, over all theta of a state.

    Gates that depend on the parameters count as 1/2 here; `flips` adds the rest.

    The remainder of a hidden row j is a sum over the samples b of t_b x_b with |t_b| <= along_inputs[b, j] / batch;
    that of a last row k is one of t_b features_b, |t_b| <= along_features[b, k] / batch, plus a vector with
    entries below entries[k] in size.
    """

    hidden: Hidden
    outputs: Outputs
    line: Line
    sent_back: Float[Tensor, "batch neurons"]
    """dL/dh at the centre."""
    value: Float[Tensor, " size"]
    jacobian: Float[Tensor, "size size"]
    along_inputs: Float[Tensor, "batch neurons"]
    along_features: Float[Tensor, "batch outputs"]
    entries: Float[Tensor, "outputs features"]


def gradient(
    state: State, loss: LossSlope, x: Float[Tensor, "batch inputs"], y: Shaped[Tensor, "batch *labels"], *, memory: int
) -> Gradient:
    """The gradient of the mean loss over the samples x, which end with 1 where the first layer has a bias."""
    layout = state.layout
    _, v = layout.split(state.center)
    _, rv = layout.split(state.radius)
    h = hidden(state, x, memory=memory)
    o = outputs(state, h, loss.rows[None], memory=memory)
    line = loss.line(o.range, o.center, y)
    e = line.error
    deviation = _radius_around(line.range, e)
    size = e.abs() + deviation

    # e = error + slope (affine part of o) +- unexplained
    output_error = h.error @ v.abs().T + h.deviation @ rv.T
    unexplained = (line.slope.abs() @ output_error[..., None])[..., 0] + line.remainder
    last, last_radius = v[:, : layout.neurons], rv[:, : layout.neurons]
    sent_back = e @ last
    back = sent_back_range(line.range, e, deviation, last, last_radius)
    along_inputs = h.gates * (unexplained @ last.abs() + deviation @ last_radius)
    # what `flips` leaves of a gate that depends on the parameters: (a - 1/2) times the change of what is sent back
    along_inputs = along_inputs + torch.where(h.open, _radius_around(back, sent_back) / 2, 0.0)

    reach = torch.zeros_like(h.features)
    reach[:, : layout.neurons] = h.slopes * h.reach
    entries = torch.stack([
        torch.minimum(e[:, k, None].abs() * h.error + deviation[:, k, None] * h.deviation,
                      size[:, k, None] * h.error + deviation[:, k, None] * reach).sum(0)
        for k in range(layout.outputs)
    ])  # fmt: skip

    batch = len(x)
    value = layout.join((h.gates * sent_back).T @ h.x, e.T @ h.features) / batch
    return Gradient(h, o, line, sent_back, value,
                    _jacobian(state, h, line, memory) / batch, along_inputs, unexplained, entries / batch)  # fmt: skip


def sent_back_range(
    errors: Interval,
    center: Float[Tensor, "batch outputs"],
    deviation: Float[Tensor, "batch outputs"],
    last: Float[Tensor, "outputs neurons"],
    radius: Float[Tensor, "outputs neurons"],
) -> Interval:
    """The range of dL/dh = sum_k e_k V_k for errors in an interval around `center`, and V within radius of `last`."""
    middle = center @ last
    around = deviation @ last.abs() + (center.abs() + deviation) @ radius
    found = Interval(middle - around, middle + around)
    weights = Interval(last - radius, last + radius)
    products = [errors[:, k, None] * weights[k] for k in range(len(last))]
    total = products[0]
    for product in products[1:]:
        total = total + product
    return found.sharpened(total)


def output_slopes(
    state: State, h: Hidden, slopes: Float[Tensor, "batch neurons"], part: slice
) -> Float[Tensor, "part outputs size"]:
    """The derivative of a few samples' outputs by the parameters, for these slopes of the activation."""
    layout = state.layout
    _, v = layout.split(state.center)
    wide = (v[:, : layout.neurons] * slopes[part, None])[..., None] * h.x[part, None, None]
    own = torch.eye(layout.outputs, dtype=v.dtype, device=v.device)[..., None] * h.features[part, None, None]
    return torch.cat([wide.flatten(2), own.flatten(2)], 2)


def _jacobian(state: State, h: Hidden, line: Line, memory: int) -> Tensor:
    """The sum over the samples of d(gradient)/d(theta), as the affine forms have it."""
    layout = state.layout
    found = state.center.new_zeros((layout.size, layout.size))
    cut = layout.neurons * layout.inputs
    for part in pieces(len(h.features), 4 * layout.outputs * layout.size, memory):
        bent = line.slope[part] @ output_slopes(state, h, h.slopes, part)
        found += output_slopes(state, h, h.gates, part).flatten(0, 1).T @ bent.flatten(0, 1)
    if layout.neurons:
        each = torch.arange(layout.neurons, device=found.device)
        e = line.error
        down = found[cut:, :cut].unflatten(0, (layout.outputs, -1)).unflatten(2, (layout.neurons, -1))
        up = found[:cut, cut:].unflatten(0, (layout.neurons, -1)).unflatten(2, (layout.outputs, -1))
        for k in range(layout.outputs):
            down[k, each, each] += (e[:, k, None] * h.slopes).T @ h.x
            up[each, :, k, each] += (e[:, k, None] * h.gates).T @ h.x
    return found


def _radius_around(values: Interval, center: Tensor) -> Tensor:
    return torch.maximum(values.upper - center, center - values.lower).clamp(min=0)
