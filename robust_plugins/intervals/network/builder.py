"""Turns the nodes of a torch.fx graph into ours, knowing each one's value for two batch sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals.layers import Index, Input, Permute
from robust_plugins.intervals.network.calls import (
    Emit,
    Indexed,
    Part,
    build_call,
    check_dtype,
    has_rule,
    reshapes,
)
from robust_plugins.intervals.network.constants import Constants, is_plain
from robust_plugins.intervals.network.expansions import build_module, expansion
from robust_plugins.intervals.network.graph import Node, Operand, unsupported
from robust_plugins.intervals.network.known import computes_as_known
from robust_plugins.intervals.network.outline import live
from robust_plugins.intervals.network.symbolic import PROBES, Values, Whole, describes, path_in_model
from robust_plugins.intervals.network.turned import (
    Turned,
    gone_before,
    knows_no_batch,
    permutation,
    picked,
    with_batch_in_front,
)
from robust_plugins.intervals.rules.registry import rules_for
from robust_plugins.intervals.rules.structure import IDENTITIES

_SHAPING = ("to", "type_as", "expand_as", "view_as", "reshape_as")
"""Methods that take no values from their second tensor."""

_OF_PLAIN = frozenset(f for f in vars(operator).values() if callable(f))
"""What plain values may be made of plain values by."""


class Builder:
    """Builds the nodes of one traced model."""

    def __init__(self, root: Whole, graph: fx.Graph, probe: Tensor) -> None:
        self.root, self.graph, self.probe = root, graph, probe
        self.values: dict[fx.Node, Any] = {}
        self.others: dict[fx.Node, Any] = {}
        self.built: list[Node] = []
        self.index: dict[fx.Node, int] = {}
        self.dependent: set[fx.Node] = set()
        """Nodes whose values depend on the values of the input."""
        self.constants = Constants(root, self.values, self.others, self.dependent, probe.dtype)
        self.parts: dict[fx.Node, tuple[Part | None, ...]] = {}
        """For calls that return several tensors, ours for each, or why there is none; None for what is no tensor."""
        self.axes: dict[fx.Node, int] = {}
        """For calls that return several tensors, where the first has its batch; 0 where nothing is said."""
        self.present: fx.Node
        """The node that is being built."""
        self.turned: dict[fx.Node, Turned] = {}
        """For values whose batch is not axis 0, ours with the batch in front."""

    def nodes(self) -> tuple[Node, ...]:
        """Every node that the output needs."""
        self.values |= Values(self.root, self.graph).of(self.probe[: PROBES[0]])
        self.others |= Values(self.root, self.graph).of(self.probe[: PROBES[1]])
        for node in live(self.graph):
            self.present = node
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
                if not (describes(node) or self._is_shaped(node)):
                    self.dependent.add(node)
                    self._add_dependent(node)
            elif node.op == "call_method" and node.target in ("item", "tolist"):
                raise UnsupportedModelError(
                    f"{self._place(node)} makes plain numbers of a parameter or buffer, which bounds cannot follow; "
                    "compute with the tensor itself"
                )
        raise AssertionError  # every graph has an output

    def _is_shaped(self, node: fx.Node) -> bool:
        """Whether a node is a constant of the shape or dtype of what depends on the input."""
        return node.op == "call_method" and node.target in _SHAPING and node.args[0] not in self.dependent

    def read(self) -> set[str]:
        """The paths of all parameters and buffers that the output depends on."""
        found: set[str] = set()
        for node in live(self.graph):
            if node.op == "get_attr":
                found.add(path_in_model(str(node.target)))
            elif node.op == "call_module":
                layer, path = self.root.get_submodule(str(node.target)), path_in_model(str(node.target))
                found |= {
                    f"{path}.{name}".lstrip(".") for name, _ in (*layer.named_parameters(), *layer.named_buffers())
                }
        return found

    def settled(self) -> bool:
        """Whether the nodes follow from the outline: no values of tensors matter, and plain ones are made of shapes.

        To be asked once they are built.
        """
        return self.constants.lasting and all(
            isinstance(self.values[node], Tensor)
            or node.op == "output"
            or describes(node)
            or (node.op == "call_function" and node.target in _OF_PLAIN)
            for node in live(self.graph)
        )

    def _add_dependent(self, node: fx.Node) -> None:
        self._check_known(node)
        value = self.values[node]
        node = next((user for user in node.users if user.target in ("item", "tolist", "numpy")), node)
        if node.op == "call_method" and node.target in ("item", "tolist", "numpy"):
            value = None
        if node.target in (operator.getitem, getattr) and node.args[0] in self.parts:
            self._part(node)
        elif self._turns(node) or self._beside(node):
            pass
        elif isinstance(value, Tensor):
            self.index[node] = self._layer(node)
        elif _is_several(value):
            self.parts[node] = self._layers(node)
        elif is_plain(value):
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

    def _beside(self, node: fx.Node) -> bool:
        """Whether a node computes with values whose batch is at one other axis, in a way that knows no batch.

        As in a transformer of sequences first. Ours computes the same of the values with their batch in front.
        """
        sources = [s for s in node.all_input_nodes if s in self.dependent]
        places = {(self.turned[s].axis, self.values[s].dim()) if s in self.turned else None for s in sources}
        place = places.pop() if len(places) == 1 else None
        layer = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if place is None or not knows_no_batch(node, layer, *place):
            return False
        (axis, rank), scratch = place, fx.Graph()

        def copied(source: fx.Node) -> fx.Node:
            copy = scratch.placeholder(source.name)
            if source in self.turned:
                self._set(copy, source, lambda t: t.movedim(axis, 0))
                self.index[copy] = self.turned[source].node
                return copy
            value = self.values[source]
            if not isinstance(value, Tensor) or value.dim() < rank - axis or isinstance(layer, nn.MultiheadAttention):
                return source  # masks of attention have axes of their own
            wide = (None,) * (rank - value.dim())
            copy = scratch.call_method("movedim", (scratch.call_function(operator.getitem, (source, wide)), axis, 0))
            self._set(copy.args[0], source, lambda t: t[wide])
            self._set(copy, source, lambda t: t[wide].movedim(axis, 0))
            return copy

        args, kwargs = fx.map_arg(with_batch_in_front(node, axis, rank), copied)
        copy = scratch.create_node(node.op, node.target, args, kwargs, node.name)
        copy.meta = node.meta
        value = self.values[node]
        if isinstance(value, Tensor):
            after = axis if value.dim() == rank else axis - gone_before(node, axis, rank)
            self._set(copy, node, lambda t: t.movedim(after, 0))
            self._keep(node, self._layer(copy), after)
        else:  # attention, whose weights have the batch in front
            self._set(copy, node, lambda several: (several[0].movedim(axis, 0), *several[1:]))
            self.parts[node] = self._layers(copy)
            self.axes[node] = axis
        return True

    def _set(self, copy: Any, source: fx.Node, moved: Callable[[Any], Any]) -> None:
        """Gives a copy of a node the values of the other with their axes moved."""
        self.values[copy], self.others[copy] = moved(self.values[source]), moved(self.others[source])
        if source in self.dependent:
            self.dependent.add(copy)

    def _keep(self, node: fx.Node, index: int, axis: int) -> None:
        if axis:
            self.turned[node] = Turned(index, axis)
        else:
            self.index[node] = index

    def _part(self, node: fx.Node) -> None:
        """One of several results, or some of them."""
        source, index = node.args[0], node.args[1]
        assert isinstance(source, fx.Node)
        if isinstance(index, str):  # as in h.max(1).values
            value = getattr(self.values[source], index)
            index = next(n for n, part in enumerate(self.values[source]) if part is value)
        found: Any = self.parts[source][index]  # type: ignore[index]
        if isinstance(found, str):
            raise self._without_part(source, found)
        if isinstance(found, tuple):
            self.parts[node] = found
        elif found is not None:
            self._keep(node, found, self.axes.get(source, 0) if index == 0 else 0)
        else:
            self.dependent.discard(node)

    def _without_part(self, source: fx.Node, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self._place(source)} is not supported as it is used: {why}")

    def _check_known(self, node: fx.Node) -> None:
        """Raises UnsupportedModelError for layers without rules."""
        if node.op != "call_module":
            return
        layer, path = self.root.get_submodule(str(node.target)), path_in_model(str(node.target))
        if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
            raise UnsupportedModelError(
                f"layer {path!r} ({type(layer).__name__}) is recurrent and has no interval rule; write its steps in "
                "forward, with linear layers, torch.sigmoid and torch.tanh, for a number of steps kept as an attribute"
            )
        if rules_for(layer) is None and expansion(layer) is None:
            raise unsupported(path, layer)

    def _check_layouts(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            value = self.values[source]
            if isinstance(value, Tensor) and value.layout is not torch.strided:
                name = path_in_model(str(source.target))
                raise UnsupportedModelError(
                    f"{self._place(node)} computes with {name!r}, which is sparse and has no interval rule; keep it "
                    "dense, as tensor.to_dense() is"
                )

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
        assert isinstance(found, int)
        return found

    def _layers(self, node: fx.Node) -> tuple[Part | None, ...]:
        """Our nodes for each tensor that a node computes."""
        value = self.values[node]
        layer = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        expand = None if layer is None else expansion(layer)
        self._check_layouts(node)
        if expand is None:
            self._check_batch(node)
        if node.op == "placeholder":
            return (self._add(str(node.target), Input(), (), {}),)
        emit = Emit(
            self.constants.operand,
            lambda layer, inputs, operands: self._add(node.name, layer, inputs, operands),
            self.constants.constant,
            self._source,
        )
        if layer is not None:
            path = path_in_model(str(node.target))
            if expand is not None:
                args, kwargs = fx.map_arg((node.args, node.kwargs), self._argument)
                results = build_module(expand, emit, path, layer, args, kwargs, turned=node.graph is not self.graph)
                self._check_batch(node)
                return results
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
            if s not in self.dependent and _differ(self.values[s], self.others[s]) and not self.constants.is_repeated(s)
        ]
        if sized and has_rule(node) and not reshapes(node):
            raise UnsupportedModelError(
                f"{self._place(node)} computes with the batch size, so that a sample's output depends on the other "
                "samples of its batch; leave the batch size out of it"
            )
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._argument)
        found = build_call(node, emit, args, kwargs, like=value, place=self._place(node))
        sources = {self.values[s].dtype for s in node.all_input_nodes if s in self.index}
        parts = found if isinstance(found, tuple) else (found,)
        for part, one in zip(parts, (value,) if isinstance(value, Tensor) else value, strict=True):
            if isinstance(part, int):
                check_dtype(sources, one.dtype, self.probe.dtype, self._place(node))
        return parts

    def _add(self, name: str, layer: nn.Module | None, inputs: tuple[int, ...], operands: Mapping[str, Operand]) -> int:
        self.built.append(Node(name, inputs, layer, dict(operands), self._place(self.present)))
        return len(self.built) - 1

    def _argument(self, source: fx.Node) -> Any:
        """An index for what depends on the input, a number or shape by value, the fx node for other tensors."""
        value = self.values[source]
        if source in self.index:
            return Indexed(self.index[source], value)
        if source in self.parts:
            pairs = list(zip(self.parts[source], value, strict=True))
            for part, _ in pairs:
                if isinstance(part, str):
                    raise self._without_part(source, part)
            return tuple(Indexed(part, like) if isinstance(part, int) else None for part, like in pairs)
        return source if isinstance(value, Tensor) else value

    def _source(self, index: int) -> nn.Module:
        """The layer that computes a node, where layers that change nothing do not count."""
        while True:
            node = self.built[index]
            layer = self.root.whole.get_submodule(node.name) if node.layer is None else node.layer
            if not isinstance(layer, IDENTITIES):
                return layer
            index = node.inputs[0]

    def _place(self, node: fx.Node) -> str:
        """Says what messages call a node: a layer by its path, a call by the module that calls it."""
        if node.op == "call_module":
            layer = self.root.get_submodule(str(node.target))
            return f"layer {path_in_model(str(node.target))!r} ({type(layer).__name__})"
        if node.op in ("placeholder", "output"):
            return f"the {'input' if node.op == 'placeholder' else 'output'} of the model"
        stack = node.meta.get("nn_module_stack")
        path, kind = list(stack.values())[-1] if stack else ("", type(self.root.whole))
        kind = kind if isinstance(kind, str) else kind.__name__
        name = getattr(node.target, "__name__", node.target)
        return f"{name!s} in {path_in_model(path) or 'the model'} ({kind})"


def _is_several(value: object) -> bool:
    """Whether a value consists of tensors, and perhaps of None."""
    several = isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value)
    return several and all(v is None or isinstance(v, Tensor) for v in value)  # type: ignore[attr-defined]


def _differ(one: Any, two: Any) -> bool:
    """Whether a value depends on the batch size, as seen for two of them."""
    return bool(one.shape != two.shape if isinstance(one, Tensor) else one != two)
