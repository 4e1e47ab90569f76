"""Values whose batch is not axis 0, for as long as their axes are moved and picked from."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from robust_plugins.intervals.network.calls import is_along_axes, is_entrywise
from robust_plugins.intervals.rules.elementwise import activation_of
from robust_plugins.intervals.rules.structure import IDENTITIES

_MOVING = {
    torch.permute, torch.transpose, torch.swapaxes, torch.swapdims, torch.movedim, torch.moveaxis, torch.t,
    "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "contiguous",
}  # fmt: skip

Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class Turned:
    """A value whose batch the model has at `axis`; ours, at `node`, has it in front of the other axes in order."""

    node: int
    axis: int

    def permuted(self, order: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """The batch's axis after a permutation of the model's axes, and our other axes in their new order."""
        ours = [*range(1, self.axis + 1), 0, *range(self.axis + 1, len(order))]
        new = [ours[axis] for axis in order]
        return new.index(0), tuple(axis for axis in new if axis)


def permutation(node: fx.Node, rank: int) -> tuple[int, ...] | None:
    """The order of the axes that a call gives to a tensor with `rank` axes; None for calls that do something else."""
    arguments = (node.args[1:], dict(node.kwargs))
    if node.target not in _MOVING or any(isinstance(a, fx.Node) for a in node.all_input_nodes[1:]):
        return None
    example = torch.empty(tuple(range(2, rank + 2)), device="meta")
    call = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
    return tuple(n - 2 for n in call(example, *arguments[0], **arguments[1]).shape)


def picked(node: fx.Node, shape: torch.Size, axis: int) -> list[tuple[Index, int]] | None:
    """For each part that a call picks, our index for it and the batch's axis; None for calls that do something else."""
    if node.target in ("unbind", torch.unbind):
        dim = _argument(node, 1, "dim", 0) % len(shape)
        indices: list[Any] = [(*[slice(None)] * dim, n) for n in range(shape[dim])]
    elif node.target in ("select", torch.select):
        dim = _argument(node, 1, "dim", None) % len(shape)
        indices = [(*[slice(None)] * dim, _argument(node, 2, "index", None))]
    elif node.target is operator.getitem:
        index: Any = node.args[1]
        indices = [index if isinstance(index, tuple) else (index,)]
    else:
        return None
    found: list[tuple[Index, int]] = []
    for index in indices:
        if Ellipsis in [i for i in index if not isinstance(i, slice)]:
            at = next(n for n, i in enumerate(index) if i is Ellipsis)
            index = (*index[:at], *[slice(None)] * (len(shape) - len(index) + 1), *index[at + 1 :])
        index = (*index, *[slice(None)] * (len(shape) - len(index)))
        if index[axis] != slice(None) or not all(isinstance(i, int | slice) for i in index):
            return None
        gone = sum(isinstance(i, int) for i in index[:axis])
        found.append(((*index[:axis], *index[axis + 1 :]), axis - gone))
    return found


def knows_no_batch(node: fx.Node, layer: nn.Module | None, axis: int, rank: int) -> bool:
    """Whether a node, of values of this rank with their batch at `axis`, computes the same wherever that is.

    It acts on each entry, along the axes behind the batch, or along axes that it names.
    """
    behind = rank - 1 - axis
    if layer is None:
        return is_entrywise(node) or is_along_axes(node) or (node.target is F.linear and behind > 0)
    if isinstance(layer, nn.MultiheadAttention):
        return not layer.batch_first and axis == 1 and rank == 3
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return len(layer.normalized_shape) <= behind
    return (
        isinstance(layer, IDENTITIES) or activation_of(layer) is not None or (type(layer) is nn.Linear and behind > 0)
    )


def with_batch_in_front(node: fx.Node, axis: int, rank: int) -> tuple[Any, Any]:
    """The arguments of a call of values whose batch is moved from `axis` to the front."""
    if node.op == "call_module" or not is_along_axes(node):
        return node.args, node.kwargs
    dims = _argument(node, 1, "dim", None)
    moved = [d % rank + (d % rank < axis) if d % rank != axis else 0 for d in _several(dims)]
    new: Any = moved[0] if isinstance(dims, int) else tuple(moved)
    if len(node.args) > 1:
        return (node.args[0], new, *node.args[2:]), node.kwargs
    return node.args, {**node.kwargs, "dim": new}


def gone_before(node: fx.Node, axis: int, rank: int) -> int:
    """How many of the axes before the batch a call removes that acts along axes."""
    return sum(d % rank < axis for d in _several(_argument(node, 1, "dim", None)))


def _several(dims: Any) -> tuple[int, ...]:
    return (dims,) if isinstance(dims, int) else tuple(dims or ())


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
