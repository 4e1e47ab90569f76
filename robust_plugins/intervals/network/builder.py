"""Turns the nodes of a torch.fx graph into ours, knowing each one's value for two batch sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals.layers import Input
from robust_plugins.intervals.network.calls import Emit, Indexed, build_call, check_dtype, reshapes
from robust_plugins.intervals.network.graph import Expression, Node, Operand, unsupported
from robust_plugins.intervals.network.symbolic import PROBES, Values, Whole, describes, path_in_model
from robust_plugins.intervals.rules.registry import rules_for


class Builder:
    """Builds the nodes of one traced model."""

    def __init__(self, root: Whole, graph: fx.Graph, probe: Tensor) -> None:
        self.root, self.graph = root, graph
        self.values, self.others = (Values(root, graph).of(probe[:size]) for size in PROBES)
        self.dtype = probe.dtype
        self.built: list[Node] = []
        self.index: dict[fx.Node, int] = {}
        self.dependent: set[fx.Node] = set()
        """Nodes whose values depend on the values of the input."""

    def nodes(self) -> tuple[Node, ...]:
        """Every node that the output needs."""
        for node in self._live():
            if node.op == "output":
                result = node.args[0]
                if not isinstance(result, fx.Node) or result not in self.index:
                    raise UnsupportedModelError(
                        "the model does not return one tensor that depends on its input; wrap it to return its logits"
                    )
                return tuple(self.built)
            if node.op == "placeholder" or any(s in self.dependent for s in node.all_input_nodes):
                if not describes(node):
                    self.dependent.add(node)
                    self._add_dependent(node)
            elif node.op == "call_method" and node.target in ("item", "tolist"):
                raise UnsupportedModelError(
                    f"{self._place(node)} makes plain numbers of a parameter or buffer, which bounds cannot follow; "
                    "compute with the tensor itself"
                )
        raise AssertionError  # every graph has an output

    def read(self) -> set[str]:
        """The paths of all parameters and buffers that the output depends on."""
        found: set[str] = set()
        for node in self._live():
            if node.op == "get_attr":
                found.add(path_in_model(str(node.target)))
            elif node.op == "call_module":
                layer, path = self.root.get_submodule(str(node.target)), path_in_model(str(node.target))
                found |= {
                    f"{path}.{name}".lstrip(".") for name, _ in (*layer.named_parameters(), *layer.named_buffers())
                }
        return found

    def constants(self) -> list[Tensor]:
        """The tensors that forward has created itself, and on which the output depends, in order."""
        own = vars(self.root)
        found = [own.get(str(node.target)) for node in self._live() if node.op == "get_attr"]
        return [t for t in found if isinstance(t, Tensor)]

    def computes_as(self, other: Builder) -> bool:
        """Whether the output is computed in the same way, with the same constants."""
        mine, theirs = self.constants(), other.constants()
        same = len(mine) == len(theirs) and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        return same and self._calls() == other._calls()

    def _calls(self) -> list[Any]:
        """Returns what the output is computed by, without names."""
        live = self._live()
        place = {node: f"%{index}" for index, node in enumerate(live)}
        own = vars(self.root)
        return [
            (n.op, None if str(n.target) in own else n.target, fx.map_arg((n.args, n.kwargs), place.__getitem__))
            for n in live
        ]

    def _live(self) -> list[fx.Node]:
        """The nodes that the output depends on, in order."""
        needed: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            if node.op == "output" or node in needed:
                needed.update((node, *node.all_input_nodes))
        return [node for node in self.graph.nodes if node in needed]

    def _add_dependent(self, node: fx.Node) -> None:
        value = self.values[node]
        node = next((user for user in node.users if user.target in ("item", "tolist", "numpy")), node)
        if node.op == "call_method" and node.target in ("item", "tolist", "numpy"):
            value = None
        if isinstance(value, Tensor):
            self.index[node] = self._layer(node)
        elif _is_plain(value):
            raise UnsupportedModelError(
                f"{self._place(node)} makes plain numbers of what depends on the input, which have no bounds; "
                "compute with the tensor itself"
            )
        else:
            raise UnsupportedModelError(f"{self._place(node)} returns several tensors and has no interval rule")

    def _layer(self, node: fx.Node) -> int:
        value = self.values[node]
        if not (value.dim() and len(value) == PROBES[0] and len(self.others[node]) == PROBES[1]):
            raise UnsupportedModelError(
                f"{self._place(node)} does not keep the batch as axis 0; compute along the axes of each sample"
            )
        if node.op == "placeholder":
            return self._add(str(node.target), Input(), (), {})
        if node.op == "call_module":
            path = path_in_model(str(node.target))
            layer = self.root.get_submodule(str(node.target))
            if rules_for(layer) is None:
                raise unsupported(path, layer)
            inputs = [source for source in node.all_input_nodes if source in self.index]
            if len(inputs) != len(node.all_input_nodes) or node.kwargs or len(inputs) != len(node.args):
                raise UnsupportedModelError(
                    f"layer {path!r} ({type(layer).__name__}) takes something else than what depends on the input"
                )
            return self._add(path, None, tuple(self.index[source] for source in inputs), {})
        emit = Emit(self._operand, lambda layer, inputs, operands: self._add(node.name, layer, inputs, operands))
        sized = [s for s in node.all_input_nodes if s not in self.dependent and _differ(self.values[s], self.others[s])]
        if sized and not reshapes(node):
            raise UnsupportedModelError(
                f"{self._place(node)} computes with the batch size, so that a sample's output depends on the other "
                "samples of its batch; leave the batch size out of it"
            )
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._argument)
        sources = {self.values[s].dtype for s in node.all_input_nodes if s in self.index}
        check_dtype(sources, value.dtype, self.dtype, self._place(node))
        return build_call(node, emit, args, kwargs, like=value, place=self._place(node))

    def _add(self, name: str, layer: nn.Module | None, inputs: tuple[int, ...], operands: Mapping[str, Operand]) -> int:
        self.built.append(Node(name, inputs, layer, dict(operands)))
        return len(self.built) - 1

    def _argument(self, source: fx.Node) -> Any:
        """An index for what depends on the input, a number or shape by value, the fx node for other tensors."""
        if source in self.index:
            return Indexed(self.index[source])
        value = self.values[source]
        return source if isinstance(value, Tensor) else value

    def _operand(self, source: Any) -> Operand:
        if isinstance(source, int | float):
            return float(source)
        if not isinstance(source, fx.Node):
            raise TypeError(f"{source!r} is no tensor or number")
        if source.op == "get_attr" and str(source.target) not in vars(self.root):
            return path_in_model(str(source.target))
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        constants: dict[str, Tensor] = {}

        def copied(node: fx.Node) -> Any:
            if not isinstance(self.values[node], Tensor) and _is_plain(self.values[node]):
                return self.values[node]
            if node not in copies:
                copy = copies[node] = graph.node_copy(node, copied)
                if node.op in ("get_attr", "call_module"):
                    own = vars(self.root).get(str(node.target))
                    if isinstance(own, Tensor):
                        constants[str(node.target)] = own
                    else:
                        copy.target = path_in_model(str(node.target))
            return copies[node]

        graph.output(copied(source))
        return Expression(graph, constants)

    def _place(self, node: fx.Node) -> str:
        stack = node.meta.get("nn_module_stack")
        path, kind = list(stack.values())[-1] if stack else ("", type(self.root.whole))
        kind = kind if isinstance(kind, str) else kind.__name__
        name = getattr(node.target, "__name__", node.target)
        return f"{name!s} in {path_in_model(path) or 'the model'} ({kind})"


def _is_plain(value: object) -> bool:
    """Whether a value is a shape or another constant of the trace, not tensors in a container."""
    if isinstance(value, tuple | list):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, int | float | str | torch.dtype | torch.device)


def _differ(one: Any, two: Any) -> bool:
    """Whether a value depends on the batch size, as seen for two of them."""
    return bool(one.shape != two.shape if isinstance(one, Tensor) else one != two)
