"""How far linear functions of the parameters go over a `State`, a few samples or neurons at a time."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.poisoning.zonotope.set import State

_EXACT = 200
"""Generators per neuron whose contributions are added up exactly; the others go into a box along principal axes."""


def pieces(count: int, width: int, memory: int) -> list[slice]:
    """Slices of `count` items such that `width` numbers for each take about `memory` bytes."""
    step = max(1, memory // (8 * max(width, 1)))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def neuron_reach(state: State, x: Float[Tensor, "batch inputs"], memory: int) -> Float[Tensor, "batch neurons"]:
    """A bound on |x (w_j - center_j)| for each row w_j of the hidden layer."""
    layout = state.layout
    w, _ = layout.split(state.generators)
    radii, _ = layout.split(state.radii)
    box, _ = layout.split(state.radius)
    sizes = w.norm(dim=1)
    few = sizes.shape[1] <= max(_EXACT, 4 * layout.inputs)
    found = torch.zeros((len(x), layout.neurons), dtype=x.dtype, device=x.device)
    for part in pieces(layout.neurons, len(x) * (2 * layout.inputs + min(_EXACT, w.shape[2])), memory):
        large = w[part]
        reach = ((x @ state.axes.hidden[part]).abs() @ radii[part, :, None])[..., 0]
        if not few:
            chosen = sizes[part].topk(_EXACT, dim=1).indices[:, None].expand(-1, layout.inputs, -1)
            small = large.scatter(2, chosen, 0.0)
            large = large.gather(2, chosen)
            axes = torch.linalg.eigh(small @ small.mT).eigenvectors
            rotated = ((x @ axes).abs() @ (axes.mT @ small).abs().sum(2, keepdim=True))[..., 0]
            reach = reach + torch.minimum(rotated, (x.abs() @ small.abs().sum(2, keepdim=True))[..., 0])
        found[:, part] = (reach + (x @ large).abs().sum(2)).T
    return torch.minimum(found, x.abs() @ box.T)


def output_reach(
    state: State,
    x: Float[Tensor, "batch inputs"],
    slopes: Float[Tensor, "batch neurons"],
    features: Float[Tensor, "batch features"],
    rows: Float[Tensor, "#batch rows outputs"],
    memory: int,
) -> Float[Tensor, "batch rows"]:
    """A bound on rows @ (V_c diag(slopes) (W - W_c) x + (V - V_c) features), the linear part of the outputs."""
    layout = state.layout
    _, last = layout.split(state.center)
    last = last[:, : layout.neurons]
    gw, gv = layout.split(state.generators)
    rw, rv = layout.split(state.radii)
    bw, bv = layout.split(state.radius)
    mixed = (rows @ last).abs()  # (#batch, rows, neurons)

    def along(w: Tensor, v: Tensor) -> Tensor:
        """The bound from what each neuron and each output reaches alone: (neurons, batch), (outputs, batch)."""
        return (mixed @ (slopes * w.T)[..., None])[..., 0] + (rows.abs() @ v.T[..., None])[..., 0]

    spread = along(((x @ state.axes.hidden).abs() @ rw[..., None])[..., 0],
                   ((features @ state.axes.last).abs() @ rv[..., None])[..., 0])  # fmt: skip
    count = state.generators.shape[1]
    found = torch.empty_like(spread)
    flat_w, flat_v = gw.flatten(0, 1), gv.transpose(0, 1).flatten(1)
    for part in pieces(len(x), layout.outputs * (2 * count + layout.size) + rows.shape[1] * count, memory):
        weighted = (last * slopes[part, None])[..., None] * x[part, None, None]  # (part, outputs, neurons, inputs)
        moved = weighted.flatten(2) @ flat_w + (features[part] @ flat_v).unflatten(1, (layout.outputs, count))
        found[part] = ((rows if len(rows) == 1 else rows[part]) @ moved).abs().sum(2)
    return torch.minimum(found + spread, along((x.abs() @ bw.T).T, (features.abs() @ bv.T).T))
