"""`translated`: the graph of an ONNX file as a torch module."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from robust_plugins.adapters.onnx import operators  # noqa: F401 (it registers the translators)
from robust_plugins.adapters.onnx.backend import library
from robust_plugins.adapters.onnx.translation import TRANSLATORS, Call, Translation, TranslationError, Value
from robust_plugins.errors import ArgumentError

FLOATS = {1: torch.float32, 11: torch.float64}
"""The types of numbers that inputs may have, by their codes in the file."""


@dataclass(frozen=True)
class Port:
    """An input of the file."""

    name: str
    shape: tuple[int, ...]
    """With one entry on the batch axis."""
    dtype: torch.dtype


def ports(path: Path, model: Any) -> list[Port]:
    """The inputs of a file that are no weights. Raises ArgumentError for types and shapes that cannot be used."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = []
    for port in model.graph.input:
        if port.name in weights:
            continue
        kind = port.type.tensor_type
        if kind.elem_type not in FLOATS:
            name = library("onnx").TensorProto.DataType.Name(kind.elem_type)
            raise _refused(path, f"its input {port.name!r} is of type {name}", "inputs of float or double")
        sides = [side.dim_value if side.HasField("dim_value") else -1 for side in kind.shape.dim]
        if sides and sides[0] < 1:
            sides[0] = 1
        if not kind.HasField("shape") or any(side < 1 for side in sides):
            free = [side.dim_param or side.dim_value or "?" for side in kind.shape.dim]
            raise _refused(
                path, f"its input {port.name!r} has the shape {free}", "inputs whose sides are fixed, but for the batch"
            )
        found.append(Port(port.name, tuple(sides), FLOATS[kind.elem_type]))
    if not found or len({port.dtype for port in found}) > 1:
        raise _refused(path, f"it has {len(found)} inputs of float or double", "inputs of one type, at least one")
    return found


def translated(path: Path, model: Any, inputs: list[Port]) -> nn.Module:
    """A torch module, in evaluation mode, that computes for a batch what the file computes for each of its samples.

    Its one input is the file's, without a first axis of size one, where this can be the batch; several inputs of the
    file, and several outputs, are one vector each, flattened and joined in the file's order. Raises ArgumentError
    that names the node and its operator where something has no translation.
    """
    nodes = list(model.graph.node)
    for node in nodes:
        if (node.op_type not in TRANSLATORS and node.op_type not in _FOLDED) or node.domain not in ("", "ai.onnx"):
            domain = f" of the domain {node.domain!r}" if node.domain not in ("", "ai.onnx") else ""
            raise _refused(
                path,
                f"{_place(node)}: the operator {node.op_type}{domain} is not known",
                ", ".join(sorted(TRANSLATORS)),
            )
    work = _Work(path, model, inputs)
    for node in _in_order(nodes):
        work.add(node)
    return work.finished()


def _in_order(nodes: list[Any]) -> list[Any]:
    """The nodes with each after those that it reads; some tools write them in another order."""
    makers = {name: i for i, node in enumerate(nodes) for name in node.output}
    order = TopologicalSorter({i: {makers[n] for n in nodes[i].input if n in makers} for i in range(len(nodes))})
    try:
        return [nodes[i] for i in order.static_order()]
    except CycleError:
        return nodes  # the first node of the circle then reads what nothing computes


_FOLDED = ("Constant", "ConstantOfShape", "Range", "Equal", "Not", "And", "Or", "Greater", "Less", "Mod", "NonZero")
"""Operators that exporters compute shapes with: they are known where nothing of the input is in them."""


class _Work:
    def __init__(self, path: Path, model: Any, inputs: list[Port]) -> None:
        onnx = library("onnx")
        self.path, self.model = path, model
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self.t = Translation(inputs[0].dtype)
        self.values: dict[str, Value | Tensor] = {}
        for tensor in model.graph.initializer:
            self.values[tensor.name] = _tensor(onnx.numpy_helper.to_array(tensor))
        self.uses = Counter(name for node in model.graph.node for name in node.input)
        self.uses.update(port.name for port in model.graph.output)
        placeholder = self.t.graph.placeholder("x")
        if len(inputs) == 1:
            shape = inputs[0].shape
            self.input = Value(placeholder, shape, lifted=len(shape) < 2 or shape[0] != 1)
            self.values[inputs[0].name] = self.input
        else:
            sizes = [int(torch.Size(port.shape).numel()) for port in inputs]
            self.input, start = Value(placeholder, (sum(sizes),), lifted=True), 0
            for port, size in zip(inputs, sizes, strict=True):
                self.values[port.name] = self.t.reshape(self.t.part(self.input, 0, start, start + size), port.shape)
                start += size

    def add(self, node: Any) -> None:
        onnx = library("onnx")
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        missing = [name for name in node.input if name and name not in self.values]
        if missing:
            raise _refused(
                self.path, f"{_place(node)} reads {missing[0]!r}, which nothing computes", "a complete graph"
            )
        inputs = tuple(self.values[name] if name else None for name in node.input)
        outputs = [name for name in node.output if name]
        try:
            if not any(isinstance(value, Value) for value in inputs) and node.op_type != "Dropout":
                results = self._folded(node, inputs)
            elif node.op_type not in TRANSLATORS:
                raise TranslationError("it depends on the model's input, and is known for fixed values only")
            else:
                call = Call(
                    node.op_type, node.name, inputs, attributes, len(outputs), self.opset, self.uses[node.input[0]] == 1
                )
                found = TRANSLATORS[node.op_type](self.t, call)
                results = found if isinstance(found, list) else [found]
        except TranslationError as error:
            raise _refused(
                self.path, f"{_place(node)}: {error}", "operators in the forms that exporters write"
            ) from error
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:  # shapes that do not fit together
            cause = (str(error) or type(error).__name__).splitlines()[0]
            raise _refused(self.path, f"{_place(node)} cannot be translated: {cause}", "a valid graph") from error
        self.values.update(zip(node.output, results, strict=False))

    def _folded(self, node: Any, inputs: tuple[Any, ...]) -> list[Value | Tensor]:
        """Computes what does not depend on the input, by the reference implementation of onnx."""
        onnx = library("onnx")
        names = [name for name in dict.fromkeys(node.input) if name]
        info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in node.output]
        graph = onnx.helper.make_graph([node], "constant", [], info)
        graph.input.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None) for n in names)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self.opset)])
        evaluator = library("onnx.reference").ReferenceEvaluator(model)
        results = evaluator.run(None, {n: v.numpy() for n, v in zip(node.input, inputs, strict=True) if n})
        return [_tensor(np.asarray(result)) for result in results]

    def finished(self) -> nn.Module:
        t, found = self.t, []
        for port in self.model.graph.output:
            if port.name not in self.values:
                raise _refused(self.path, f"nothing computes its output {port.name!r}", "a complete graph")
            value = self.values[port.name]
            found.append(value if isinstance(value, Value) else t.expanded(value, self.input))
        if len(found) > 1:
            flat = [t.reshape(value, (1, int(torch.Size(value.shape).numel()))) for value in found]
            t.graph.output(t.graph.call_function(torch.cat, ([value.node for value in flat], 1)))
        else:
            # A sample's output has at least one axis.
            value = found[0] if found[0].sample else t.lift(t.reshape(found[0], (1,)))
            t.graph.output(value.node)
        for node in reversed(t.graph.nodes):
            if not node.users and node.op not in ("placeholder", "output"):
                t.graph.erase_node(node)
        return _module(t).eval()


def _module(t: Translation) -> nn.Module:
    """A Sequential where the graph is a chain of layers, else what torch.fx generates."""
    used = {str(node.target) for node in t.graph.nodes if node.op in ("call_module", "get_attr")}
    for name in [*dict(t.root.named_buffers(recurse=False)), *dict(t.root.named_children())]:
        if name not in used:
            delattr(t.root, name)
    steps = [node for node in t.graph.nodes if node.op not in ("placeholder", "output")]
    if steps and all(node.op == "call_module" and len(node.args) == 1 for node in steps):
        chain = [next(iter(t.graph.nodes)), *steps]
        if all(after.args[0] is before for before, after in zip(chain, steps, strict=False)):
            layers = OrderedDict((str(node.target), t.root.get_submodule(str(node.target))) for node in steps)
            if len(layers) == len(steps):
                return nn.Sequential(layers)
    return fx.GraphModule(t.root, t.graph, "ImportedNetwork")


def _tensor(array: Any) -> Tensor:
    try:
        return torch.from_numpy(np.array(array))  # a copy: the file's own memory is not writable
    except TypeError as error:
        raise TranslationError(f"a constant of type {array.dtype}") from error


def _place(node: Any) -> str:
    name = node.name or (node.output[0] if node.output else "")
    return f"node {name!r} ({node.op_type})"


def _refused(path: Path, found: str, accepted: str) -> ArgumentError:
    return ArgumentError(
        "file", f"{str(path)!r}: {found}", accepted=accepted, hint="Export the network again without it."
    )
