"""auto_LiRPA's graph of a model: what precedes its first real layer, and which parts of it need another mode."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ELEMENTWISE: dict[str, Callable[[Any, Any], Any]] = {
    "BoundAdd": operator.add,
    "BoundSub": operator.sub,
    "BoundMul": operator.mul,
    "BoundDiv": operator.truediv,
}


def kind(node: Any) -> str:
    """The operator of a node, as auto_LiRPA calls its class."""
    return type(node).__name__


@dataclass(frozen=True)
class Folded:
    """A chain of sums and products with constants at the front of a graph: per step the operator, the constant's node,
    and whether the constant comes first.
    """

    steps: tuple[tuple[Callable[[Any, Any], Any], Any, bool], ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Sends `x` through the chain, with the constants' present values. Monotone in each value of `x`."""
        for function, node, constant_first in self.steps:
            constant = _value(node)
            x = function(constant, x) if constant_first else function(x, constant)
        return x


def _value(node: Any) -> Any:
    """The present value of a node that does not depend on the input."""
    return node.forward(*map(_value, node.inputs))


def fold_input(module: Any) -> Folded:
    """Cuts a normalisation such as (x - mean) / std off the front of the graph, and returns it.

    The bounds of an affine function of each input value are exact, so nothing is lost; auto_LiRPA bounds convolutions
    behind such a chain ten times slower.
    """
    start = end = next(node for node in module.children() if kind(node) == "BoundInput")
    steps: list[tuple[Callable[[Any, Any], Any], Any, bool]] = []
    perturbed = perturbed_nodes(module)
    cut: list[Any] = []
    while len(end.output_name) == 1:
        node = module[end.output_name[0]]
        if kind(node) not in _ELEMENTWISE or not node.output_name or node.output_shape != end.output_shape:
            break
        constant_first = node.inputs[1] is end
        constant = node.inputs[0 if constant_first else 1]
        # A constant divided by x is not affine, and x * x has no constant.
        if constant.name in perturbed or (constant_first and kind(node) == "BoundDiv"):
            break
        steps.append((_ELEMENTWISE[kind(node)], constant, constant_first))
        cut.append(node)
        end = node
    if cut:
        for (_, constant, _), node in zip(steps, cut, strict=True):
            constant.output_name.remove(node.name)
            del module._modules[node.name]
        start.output_name = end.output_name
        for name in end.output_name:
            reader = module[name]
            reader.inputs = [start if node is end else node for node in reader.inputs]
            if "input_name" in vars(reader):  # 0.7 derives it
                reader.input_name = [start.name if name == end.name else name for name in reader.input_name]
    return Folded(tuple(steps))


def perturbed_nodes(module: Any) -> set[str]:
    """The names of the nodes whose value depends on the input.

    Operators that the backend splits stand behind their readers, so one pass in the order of the nodes is not enough.
    """
    found = {node.name for node in module.children() if kind(node) == "BoundInput"}
    before = 0
    while before != len(found):
        before = len(found)
        found |= {n.name for n in module.children() if any(source.name in found for source in n.inputs)}
    return found


def evaluate(module: Any, x: Tensor) -> Any:
    """Evaluates the graph at `x`, without dropping the bounds that the nodes keep, as the module's call does."""
    values: dict[str, Any] = {}
    todo = [module[module.final_name]]
    while todo:
        node = todo[-1]
        missing = [source for source in node.inputs if source.name not in values]
        if missing:
            todo += missing
            continue
        value = x if kind(node) == "BoundInput" else node.forward(*(values[source.name] for source in node.inputs))
        # Shapes are tensors in the graph.
        values[node.name] = torch.tensor(value) if isinstance(value, (torch.Size, tuple)) else value
        todo.pop()
    return values[module.final_name]


def evaluate_weights(module: Any) -> None:
    """Makes the nodes that depend on weights alone return their value as an interval.

    0.3 takes the product of two weights for the square of the first.
    """
    perturbed = perturbed_nodes(module)
    for node in module.children():
        if node.inputs and node.name not in perturbed:
            object.__setattr__(node, "interval_propagate", _Evaluated(node))


@dataclass(frozen=True)
class _Evaluated:
    node: Any

    def __call__(self, *intervals: Any, **_: Any) -> tuple[Any, Any]:
        value = self.node.forward(*(low for low, _ in intervals))
        return value, value  # one object: that is how a constant is recognised


def repair_quotients(module: Any) -> None:
    """Makes the intervals of quotients right where the numerator is negative: 0.3 takes the ends for those of positive
    ones.
    """
    perturbed = perturbed_nodes(module)
    for node in module.children():
        # Behind a square root the backend takes a quotient for layer normalisation, and has code of its own.
        if kind(node) == "BoundDiv" and node.name in perturbed and kind(node.inputs[1]) != "BoundSqrt":
            object.__setattr__(node, "interval_propagate", _Quotient(node.interval_propagate))


@dataclass(frozen=True)
class _Quotient:
    backend: Callable[..., tuple[Any, Any]]

    def __call__(self, x: tuple[Any, Any], y: tuple[Any, Any]) -> tuple[Any, Any]:
        if not bool(((y[0] > 0) | (y[1] < 0)).all()):
            return self.backend(x, y)  # which fails with its own words
        ends = torch.stack(torch.broadcast_tensors(*(a / b for a in x for b in y)))
        return ends.amin(0), ends.amax(0)


def constants_meet_images(module: Any) -> bool:
    """Whether a sum or product joins an image of the perturbed part with a constant.

    0.3 cannot bound that as patches: it refuses some of them, and forgets the padding of others.
    """
    return any(
        kind(node) in _ELEMENTWISE and len(node.output_shape) == 4 and not all(i.from_input for i in node.inputs)
        for node in module.children()
        if node.from_input
    )


_OF_CHAINS = (
    "BoundInput", "BoundLinear", "BoundConv", "BoundBatchNormalization", "BoundRelu", "BoundFlatten", "BoundReshape",
)  # fmt: skip


def is_chain(module: Any) -> bool:
    """Whether each value is read once, and each node is an affine map, a ReLU or a change of shape.

    These are the networks that every release is tried on: faults were seen where a value is read twice, where
    convolutions have groups, and in other operators.
    """
    perturbed = perturbed_nodes(module)
    return all(
        kind(node) in _OF_CHAINS
        and len(node.output_name) <= 1
        and sum(source.name in perturbed for source in node.inputs) <= 1
        and getattr(node, "groups", 1) == 1
        for node in module.children()
        if node.name in perturbed
    )


def linear_first(module: Any) -> bool:
    """Whether everything that reads the input is a linear layer or a convolution, perhaps behind a flattening."""
    readers = [name for node in module.children() if kind(node) == "BoundInput" for name in node.output_name]
    while readers:
        node = module[readers.pop()]
        if kind(node) in ("BoundFlatten", "BoundReshape"):
            readers += node.output_name
        elif kind(node) not in ("BoundLinear", "BoundConv"):
            return False
    return True
