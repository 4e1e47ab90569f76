"""The part of a network that is trained, and the fixed part before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from robust_plugins.errors import ArgumentError, UnsupportedModelError
from robust_plugins.intervals import Interval, Network
from robust_plugins.intervals.layers import Input
from robust_plugins.intervals.network.graph import Node


@dataclass(frozen=True, eq=False)
class Split:
    """A network cut where its trained part begins: `features`, which never changes, and `trained` on top of it."""

    features: Network | None
    """From the input to the features; None where the trained part begins at the input."""
    nodes: tuple[Node, ...]
    """Of the trained part. Node 0 stands for the features."""
    first: int
    """The first of these that has trained parameters."""
    model: nn.Module

    def trained(self, parameters: Mapping[str, Interval]) -> Network:
        """The trained part for these values of the parameters."""
        return Network(self.model, self.nodes, parameters)


def split(network: Network, names: Iterable[str]) -> Split:
    """Cuts `network` at the last node that everything from the first trained parameter on can be computed from.

    Raises UnsupportedModelError where a trained parameter reaches the output other than as a layer's own.
    """
    wanted = set(names)
    used = wanted & used_names(network)
    using = [index for index, named in enumerate(network.names) if used & set(named.values())]
    if not using:
        raise ArgumentError("parameters", sorted(wanted), accepted="parameters that the output depends on",
                            hint="Choose others of model.named_parameters().")  # fmt: skip
    for name in sorted(wanted & network.derived):
        raise UnsupportedModelError(
            f"parameter {name!r} cannot be trained abstractly: the model computes a layer's weight from it; "
            "freeze it, or use it as the layer's weight itself"
        )
    first = using[0]
    cut = _before(network, first)
    nodes = [Node("features", (), Input(), {})]
    nodes += [Node(n.name, tuple(j - cut for j in n.inputs), n.layer, n.operands) for n in network.nodes[cut + 1 :]]
    features = Network(network.model, network.nodes[: cut + 1]) if cut else None
    return Split(features, tuple(nodes), first - cut, network.model)


def used_names(network: Network) -> set[str]:
    """The names of the parameters that the output depends on."""
    reached = {len(network.nodes) - 1}
    for index in range(len(network.nodes) - 1, 0, -1):
        if index in reached:
            reached.update(network.nodes[index].inputs)
    return {name for index in reached for name in network.names[index].values()}


def _before(network: Network, first: int) -> int:
    """The last node before `first` that all nodes after it are computed from."""
    for cut in range(first - 1, 0, -1):
        if all(j >= cut for node in network.nodes[cut + 1 :] for j in node.inputs):
            return cut
    return 0
