"""Room for rounding in what nonlinear layers are told about their inputs.

A gradient jumps where an input of a nonlinear layer crosses a kink. Bounds on that input which rounding has moved to
one side of the kink would miss one of the two gradients, and no room at the end could make up for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from robust_plugins.explanations.band import ULPS
from robust_plugins.explanations.bounds.mixing import mixes
from robust_plugins.harness.component import ERRORS
from robust_plugins.harness.functional import other_precision
from robust_plugins.intervals import Interval, Network, rounding

_exactly: ContextVar[bool] = ContextVar("exactly", default=False)


@contextmanager
def exactly() -> Iterator[None]:
    """Inside it bounds get no room for rounding: for what is trained on them and is no proof."""
    token = _exactly.set(True)
    try:
        yield
    finally:
        _exactly.reset(token)


def widened(network: Network, values: Sequence[Interval], inside: Tensor | None = None) -> list[Interval]:
    """`values`, bounds on the outputs of the network's nodes, with those that nonlinear layers take widened.

    By what rounding may have moved them: the error of the network's own evaluation at a point, node by node, measured
    as in `Band`, or what the bounds miss there. The point is the centre of the box, or one that is `inside` a smaller
    set for which the bounds hold. Bounds that were rounded outward are returned as they are.
    """
    found = list(values)
    # Gradients of softmax and the like do not jump; and masked scores are too large for one room for all.
    jumping = (
        node
        for node, layer, rules in zip(network.nodes, network.layers, network.rules, strict=True)
        if node.inputs and not rules.affine and not mixes(layer)
    )
    wanted = {source for node in jumping for source in node.inputs} - {0}
    if _exactly.get() or rounding.active() or not wanted or not len(values[0]):
        return found
    with torch.no_grad():
        rooms = _rooms(network, found, sorted(wanted), values[0].center if inside is None else inside)
    for index, room in rooms.items():
        found[index] = Interval(values[index].lower - room, values[index].upper + room)
    return found


def _rooms(network: Network, values: Sequence[Interval], wanted: Sequence[int], x: Tensor) -> dict[int, Tensor]:
    """For each wanted node, how far its bounds may be off: one number per sample, (batch, 1, ...)."""
    x, last, found = x.detach(), wanted[-1], {}
    dtype, ratio = other_precision(x.dtype)
    own, other = _points(network, x, x.dtype, last), _points(network, x, dtype, last)
    for index in wanted:
        low, up = values[index].lower, values[index].upper
        room = ULPS * torch.finfo(x.dtype).eps * torch.maximum(_largest(low), _largest(up))
        if own is not None:
            missed = _largest(torch.maximum(low - own[index], own[index] - up).clamp(min=0))
            if other is not None:
                off = ratio * _largest(own[index].double() - other[index].double())
                missed = torch.maximum(missed, off.to(missed))
            room = room + ERRORS * missed
        found[index] = room.view(-1, *[1] * (low.dim() - 1))
    return found


def _points(network: Network, x: Tensor, dtype: torch.dtype, last: int) -> list[Tensor] | None:
    """The outputs of the nodes up to `last` at `x`, evaluated in `dtype`; None where a layer runs in one dtype only."""
    parameters: list[dict[str, Interval | None]] = [
        {
            k: None if p is None else Interval.point((p.lower if p.is_point else p.center).to(dtype))
            for k, p in own.items()
        }
        for own in network.parameters
    ]
    layers = [_in(dtype, layer) for layer in network.layers]
    cast = Network.from_parts(network.model, network.nodes, layers, network.rules, parameters)
    try:
        return [v.lower for v in cast.forward(Interval.point(x.to(dtype)), until=last)]
    except (RuntimeError, TypeError):  # a third party's rule with constants, a device without float64
        return None


def _in(dtype: torch.dtype, layer: nn.Module) -> nn.Module:
    """The layer with its buffers in `dtype`; its parameters come as intervals."""
    if not any(b is not None and b.is_floating_point() and b.dtype != dtype for b in layer._buffers.values()):
        return layer
    found = layer.__new__(type(layer))
    buffers = {k: b.to(dtype) if b is not None and b.is_floating_point() else b for k, b in layer._buffers.items()}
    found.__dict__ = {**layer.__dict__, "_buffers": buffers}
    return found


def _largest(t: Tensor) -> Tensor:
    return t.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).flatten(1).abs().amax(1)
