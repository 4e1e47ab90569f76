"""`Outline`: what tells that a model, traced again, is computed in the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from robust_plugins.intervals.network.fingerprint import settings
from robust_plugins.intervals.network.symbolic import Whole, path_in_model
from robust_plugins.intervals.rules.registry import rules_for


@dataclass(frozen=True, eq=False)
class Outline:
    """The way an output is computed, without names: calls, tensors that forward made, and shapes of what they find."""

    calls: list[Any]
    constants: list[Tensor]
    parts: list[Any]

    def computes_as(self, other: Outline) -> bool:
        """Whether the output is computed in the same way, with the same constants."""
        return (
            self.calls == other.calls
            and len(self.constants) == len(other.constants)
            and all(
                a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
                for a, b in zip(self.constants, other.constants, strict=True)
            )
        )

    def same(self, other: Outline) -> bool:
        """Whether the graph has the same nodes."""
        return self.parts == other.parts and self.computes_as(other)


def outline(root: Whole, graph: fx.Graph) -> Outline:
    """The way the output of a traced model is computed."""
    nodes = live(graph)
    place = {node: f"%{index}" for index, node in enumerate(nodes)}
    own = vars(root)
    # As text, because 0.0 and -0.0, 1 and True are equal and not the same.
    calls = [
        (n.op, None if str(n.target) in own else n.target, repr(fx.map_arg((n.args, n.kwargs), place.__getitem__)))
        for n in nodes
    ]
    return Outline(calls, [t.detach() for t in constants(root, graph)], [_parts(root, n) for n in nodes])


def live(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that the output depends on, in order."""
    needed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in needed:
            needed.update((node, *node.all_input_nodes))
    return [node for node in graph.nodes if node in needed]


def constants(root: Whole, graph: fx.Graph) -> list[Tensor]:
    """The tensors that forward has created itself, and on which the output depends, in order."""
    own = vars(root)
    found = [own.get(str(node.target)) for node in live(graph) if node.op == "get_attr"]
    return [t for t in found if isinstance(t, Tensor)]


def _parts(root: Whole, node: fx.Node) -> Any:
    """The parts of the model that a node finds, as far as its value's shape may depend on them."""
    if node.op not in ("get_attr", "call_module") or str(node.target) in vars(root):
        return None
    path = path_in_model(str(node.target))
    if node.op == "call_module":
        layer = root.get_submodule(str(node.target))
        tensors = [(name, _described(t)) for name, t in (*layer.named_parameters(), *layer.named_buffers())]
        return path, type(layer), rules_for(layer) is not None, settings(layer), tensors
    owner, _, name = str(node.target).rpartition(".")
    return path, _described(getattr(root.get_submodule(owner), name))


def _described(t: Any) -> Any:
    """The facts that are known of a tensor without its values."""
    return (t.shape, t.dtype, t.device, t.requires_grad) if isinstance(t, Tensor) else repr(t)
