"""Turns the nodes of a torch.fx graph into ours, knowing each one's value for two batch sizes."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals.layers import Index, Input, Permute
from robust_plugins.intervals.network.calls import Emit, Fixed, Indexed, Parameter, build_call, check_dtype, reshapes
from robust_plugins.intervals.network.expansions import expansion
from robust_plugins.intervals.network.fingerprint import settings
from robust_plugins.intervals.network.graph import Expression, Node, Operand, unsupported
from robust_plugins.intervals.network.known import computes_as_known
from robust_plugins.intervals.network.symbolic import PROBES, Values, Whole, describes, path_in_model
from robust_plugins.intervals.network.turned import Turned, permutation, picked
from robust_plugins.intervals.rules.registry import rules_for
from robust_plugins.intervals.rules.structure import IDENTITIES


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


_OF_PLAIN = frozenset(f for f in vars(operator).values() if callable(f))
"""What plain values may be made of plain values by."""


class Builder:
    """Builds the nodes of one traced model."""

    def __init__(self, root: Whole, graph: fx.Graph, probe: Tensor) -> None:
        self.root, self.graph, self.probe = root, graph, probe
        self.values: dict[fx.Node, Any] = {}
        self.others: dict[fx.Node, Any] = {}
        self.lasting = True
        """Whether the nodes are the same whatever the values of parameters and buffers."""
        self.built: list[Node] = []
        self.index: dict[fx.Node, int] = {}
        self.dependent: set[fx.Node] = set()
        """Nodes whose values depend on the values of the input."""
        self.parts: dict[fx.Node, tuple[int | None, ...]] = {}
        """For calls that return several tensors, ours for each; None for what is no tensor."""
        self.turned: dict[fx.Node, Turned] = {}
        """For values whose batch is not axis 0, ours with the batch in front."""

    def nodes(self) -> tuple[Node, ...]:
        """Every node that the output needs."""
        self.values, self.others = (Values(self.root, self.graph).of(self.probe[:size]) for size in PROBES)
        for node in self._live():
            if node.op == "output":
                result = node.args[0]
                if not isinstance(result, fx.Node) or result not in self.index:
                    raise UnsupportedModelError(
                        "the model does not return one tensor that depends on its input; wrap it to return its logits"
                    )
                if self.index[result] != len(self.built) - 1:
                    self._add("output", nn.Identity(), (self.index[result],), {})
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

    def outline(self) -> Outline:
        """The way the output is computed."""
        live = self._live()
        place = {node: f"%{index}" for index, node in enumerate(live)}
        own = vars(self.root)
        # As text, because 0.0 and -0.0, 1 and True are equal and not the same.
        calls = [
            (n.op, None if str(n.target) in own else n.target, repr(fx.map_arg((n.args, n.kwargs), place.__getitem__)))
            for n in live
        ]
        return Outline(calls, [t.detach() for t in self.constants()], [self._parts(n) for n in live])

    def _parts(self, node: fx.Node) -> Any:
        """The parts of the model that a node finds, as far as its value's shape may depend on them."""
        if node.op not in ("get_attr", "call_module") or str(node.target) in vars(self.root):
            return None
        path = path_in_model(str(node.target))
        if node.op == "call_module":
            layer = self.root.get_submodule(str(node.target))
            tensors = [(name, described(t)) for name, t in (*layer.named_parameters(), *layer.named_buffers())]
            return path, type(layer), rules_for(layer) is not None, settings(layer), tensors
        owner, _, name = str(node.target).rpartition(".")
        return path, described(getattr(self.root.get_submodule(owner), name))

    def settled(self) -> bool:
        """Whether the nodes follow from the outline: no values of tensors matter, and plain ones are made of shapes.

        To be asked once they are built.
        """
        return self.lasting and all(
            isinstance(self.values[node], Tensor)
            or node.op == "output"
            or describes(node)
            or (node.op == "call_function" and node.target in _OF_PLAIN)
            for node in self._live()
        )

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
        if node.target is operator.getitem and node.args[0] in self.parts:
            self._part(node)
        elif self._turns(node):
            pass
        elif isinstance(value, Tensor):
            self.index[node] = self._layer(node)
        elif _is_several(value):
            self.parts[node] = self._layers(node)
        elif _is_plain(value):
            raise UnsupportedModelError(
                f"{self._place(node)} makes plain numbers of what depends on the input, which have no bounds; "
                "compute with the tensor itself"
            )
        else:
            raise UnsupportedModelError(f"{self._place(node)} returns several tensors and has no interval rule")

    def _turns(self, node: fx.Node) -> bool:
        """Whether a node only moves the batch to another axis, or back, or picks from a value where it has been moved.

        As attention has it: `qkv.reshape(b, n, 3, h, d).permute(2, 0, 3, 1, 4)[0]`.
        """
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or (source not in self.turned and source not in self.index):
            return False
        before = self.turned.get(source) or Turned(self.index[source], 0)
        shape = self.values[source].shape
        if (order := permutation(node, len(shape))) is not None:
            axis, rest = before.permuted(order)
            if source in self.index and axis == 0:
                return False  # a layer as any other
            index = before.node
            if rest != tuple(sorted(rest)):
                index = self._add(node.name, Permute((0, *rest)), (index,), {})
            self._keep(node, index, axis)
        elif source in self.turned and (picks := picked(node, shape, before.axis)) is not None:
            found = [(self._add(node.name, Index(i), (before.node,), {}), axis) for i, axis in picks]
            if isinstance(self.values[node], Tensor):
                self._keep(node, *found[0])
            elif any(axis for _, axis in found):
                return False
            else:
                self.parts[node] = tuple(index for index, _ in found)
        else:
            return False
        return True

    def _keep(self, node: fx.Node, index: int, axis: int) -> None:
        if axis:
            self.turned[node] = Turned(index, axis)
        else:
            self.index[node] = index

    def _part(self, node: fx.Node) -> None:
        """One of several results, or some of them."""
        source, index = node.args[0], node.args[1]
        assert isinstance(source, fx.Node)
        found: Any = self.parts[source][index]  # type: ignore[index]
        if isinstance(found, tuple):
            self.parts[node] = found
        elif found is not None:
            self.index[node] = found
        else:
            self.dependent.discard(node)

    def _check_batch(self, node: fx.Node) -> None:
        """Raises UnsupportedModelError where the first axis of what a node computes is not the batch."""
        value = self.values[node]
        if any(source in self.turned for source in node.all_input_nodes):
            raise UnsupportedModelError(
                f"{self._place(node)} computes with a value whose batch is not axis 0; move it back before"
            )
        both = (
            ((value, self.others[node]),) if isinstance(value, Tensor) else zip(value, self.others[node], strict=True)
        )
        for one, other in both:
            if one is not None and not (one.dim() and len(one) == PROBES[0] and len(other) == PROBES[1]):
                raise UnsupportedModelError(
                    f"{self._place(node)} does not keep the batch as axis 0; compute along the axes of each sample"
                )

    def _layer(self, node: fx.Node) -> int:
        found = self._layers(node)[0]
        assert found is not None
        return found

    def _layers(self, node: fx.Node) -> tuple[int | None, ...]:
        """Our nodes for each tensor that a node computes."""
        value = self.values[node]
        layer = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        expand = None if layer is None else expansion(layer)
        if expand is None:
            self._check_batch(node)
        if node.op == "placeholder":
            return (self._add(str(node.target), Input(), (), {}),)
        emit = Emit(
            self._operand,
            lambda layer, inputs, operands: self._add(node.name, layer, inputs, operands),
            self._constant,
            self._source,
        )
        if layer is not None:
            path = path_in_model(str(node.target))
            if expand is not None:
                args, kwargs = fx.map_arg((node.args, node.kwargs), self._argument)
                return expand(emit, path, layer, *args, **kwargs)
            if rules_for(layer) is None:
                raise unsupported(path, layer)
            inputs = [source for source in node.all_input_nodes if source in self.index]
            if len(inputs) != len(node.all_input_nodes) or node.kwargs or len(inputs) != len(node.args):
                raise UnsupportedModelError(
                    f"layer {path!r} ({type(layer).__name__}) takes something else than what depends on the input"
                )
            return (self._add(path, None, tuple(self.index[source] for source in inputs), {}),)
        if not computes_as_known(node.target):
            raise UnsupportedModelError(
                f"{self._place(node)}, or a function that it calls, has been replaced in this process, and its bounds "
                "are those of torch's own; undo that while bounds are computed"
            )
        sized = [
            s
            for s in node.all_input_nodes
            if s not in self.dependent and _differ(self.values[s], self.others[s]) and not self._is_repeated(s)
        ]
        if sized and not reshapes(node):
            raise UnsupportedModelError(
                f"{self._place(node)} computes with the batch size, so that a sample's output depends on the other "
                "samples of its batch; leave the batch size out of it"
            )
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._argument)
        sources = {self.values[s].dtype for s in node.all_input_nodes if s in self.index}
        for one in (value,) if isinstance(value, Tensor) else value:
            check_dtype(sources, one.dtype, self.probe.dtype, self._place(node))
        found = build_call(node, emit, args, kwargs, like=value, place=self._place(node))
        return found if isinstance(found, tuple) else (found,)

    def _add(self, name: str, layer: nn.Module | None, inputs: tuple[int, ...], operands: Mapping[str, Operand]) -> int:
        self.built.append(Node(name, inputs, layer, dict(operands)))
        return len(self.built) - 1

    def _argument(self, source: fx.Node) -> Any:
        """An index for what depends on the input, a number or shape by value, the fx node for other tensors."""
        value = self.values[source]
        if source in self.index:
            return Indexed(self.index[source], value)
        if source in self.parts:
            pairs = zip(self.parts[source], value, strict=True)
            return tuple(None if index is None else Indexed(index, like) for index, like in pairs)
        return source if isinstance(value, Tensor) else value

    def _is_repeated(self, source: fx.Node) -> bool:
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

    def _source(self, index: int) -> nn.Module:
        """The layer that computes a node, where layers that change nothing do not count."""
        while True:
            node = self.built[index]
            layer = self.root.whole.get_submodule(node.name) if node.layer is None else node.layer
            if not isinstance(layer, IDENTITIES):
                return layer
            index = node.inputs[0]

    def _constant(self, source: fx.Node) -> Tensor:
        """The value of a constant; of one with a row for each sample, the first row."""
        self._looked_at(source)
        value: Tensor = self.values[source]
        return value[:1] if self._is_repeated(source) else value

    def _operand(self, source: Any) -> Operand:
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
            if not isinstance(self.values[node], Tensor) and _is_plain(self.values[node]):
                return self.values[node]
            if node in self.index or describes(node):  # made of the shape of what depends on the input
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
        if self._is_repeated(source):
            result = graph.call_function(operator.getitem, (result, slice(0, 1)))
        if not floating:
            result = graph.call_method("to", (result, self.probe.dtype))
        graph.output(result)
        return Expression(graph, constants)

    def _place(self, node: fx.Node) -> str:
        stack = node.meta.get("nn_module_stack")
        path, kind = list(stack.values())[-1] if stack else ("", type(self.root.whole))
        kind = kind if isinstance(kind, str) else kind.__name__
        name = getattr(node.target, "__name__", node.target)
        return f"{name!s} in {path_in_model(path) or 'the model'} ({kind})"


def _rows(path: str, rows: slice) -> Expression:
    graph = fx.Graph()
    graph.output(graph.call_function(operator.getitem, (graph.get_attr(path), rows)))
    return Expression(graph, {})


def _is_several(value: object) -> bool:
    """Whether a value consists of tensors, and perhaps of None."""
    several = isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value)
    return several and all(v is None or isinstance(v, Tensor) for v in value)  # type: ignore[attr-defined]


def described(t: Any) -> Any:
    """The facts that are known of a tensor without its values."""
    return (t.shape, t.dtype, t.device, t.requires_grad) if isinstance(t, Tensor) else repr(t)


def _is_plain(value: object) -> bool:
    """Whether a value is a shape or another constant of the trace, not tensors in a container."""
    if isinstance(value, tuple | list):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, int | float | str | torch.dtype | torch.device)


def _differ(one: Any, two: Any) -> bool:
    """Whether a value depends on the batch size, as seen for two of them."""
    return bool(one.shape != two.shape if isinstance(one, Tensor) else one != two)
