"""`Constants`: what a traced model computes without its input, as the parameters of our nodes."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor, fx

from robust_plugins.intervals.network.calls import Fixed, Parameter
from robust_plugins.intervals.network.graph import Expression, Operand
from robust_plugins.intervals.network.symbolic import PROBES, Whole, describes, path_in_model


class Constants:
    """Looks at what does not depend on the values of the input.

    `values` and `others` are those of all nodes of the traced graph for two batch sizes, `dependent` those that do.
    """

    def __init__(
        self,
        root: Whole,
        values: Mapping[fx.Node, Any],
        others: Mapping[fx.Node, Any],
        dependent: Set[fx.Node],
        dtype: torch.dtype,
    ) -> None:
        self.root, self.values, self.others, self.dependent, self.dtype = root, values, others, dependent, dtype
        self.lasting = True
        """Whether our nodes are the same whatever the values of parameters and buffers."""

    def is_repeated(self, source: fx.Node) -> bool:
        """Whether a constant is a row for each sample, and all rows are the same."""
        one, other = self.values[source], self.others[source]
        if not isinstance(one, Tensor) or not one.dim() or (len(one), len(other)) != PROBES:
            return False
        self._looked_at(source)
        return torch.equal(one, one[:1].expand(one.shape)) and torch.equal(other, one[:1].expand(other.shape))

    def _looked_at(self, source: fx.Node) -> None:
        """Remembers that the nodes depend on values of a constant, if these may be others at the next call."""
        waiting, own = [source], vars(self.root)
        while waiting:
            node = waiting.pop()
            self.lasting &= node.op != "call_module" and (node.op != "get_attr" or str(node.target) in own)
            waiting += node.all_input_nodes

    def constant(self, source: fx.Node) -> Tensor:
        """The value of a constant; of one with a row for each sample, the first row."""
        self._looked_at(source)
        value: Tensor = self.values[source]
        return value[:1] if self.is_repeated(source) else value

    def operand(self, source: Any) -> Operand:
        """Where a node finds a constant later on: a number, a path in the model, or what to compute of it."""
        if isinstance(source, int | float):
            return float(source)
        if isinstance(source, Fixed):
            graph = fx.Graph()
            graph.output(graph.get_attr("fixed"))
            return Expression(graph, {"fixed": source.value})
        if isinstance(source, Parameter):
            return source.path if source.rows is None else _rows(source.path, source.rows)
        if not isinstance(source, fx.Node):
            raise TypeError(f"{source!r} is no tensor or number")
        floating = self.values[source].is_floating_point()
        if source.op == "get_attr" and str(source.target) not in vars(self.root) and floating:
            return path_in_model(str(source.target))
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        constants: dict[str, Tensor] = {}

        def copied(node: fx.Node) -> Any:
            if not isinstance(self.values[node], Tensor) and is_plain(self.values[node]):
                return self.values[node]
            if node in self.dependent or describes(node):  # made of the shape of what depends on the input
                name = f"shaped_{node.name}"
                constants[name] = self.values[node]
                copies[node] = graph.get_attr(name)
            if node not in copies:
                copy = copies[node] = graph.node_copy(node, copied)
                if node.op in ("get_attr", "call_module"):
                    own = vars(self.root).get(str(node.target))
                    if isinstance(own, Tensor):
                        constants[str(node.target)] = own
                    else:
                        copy.target = path_in_model(str(node.target))
            return copies[node]

        result = copied(source)
        if self.is_repeated(source):
            result = graph.call_function(operator.getitem, (result, slice(0, 1)))
        if not floating:
            result = graph.call_method("to", (result, self.dtype))
        graph.output(result)
        return Expression(graph, constants)


def _rows(path: str, rows: slice) -> Expression:
    graph = fx.Graph()
    graph.output(graph.call_function(operator.getitem, (graph.get_attr(path), rows)))
    return Expression(graph, {})


def is_plain(value: object) -> bool:
    """Whether a value is a shape or another constant of the trace, not tensors in a container."""
    if isinstance(value, tuple | list):
        return all(is_plain(v) for v in value)
    return value is None or isinstance(value, int | float | str | torch.dtype | torch.device)
