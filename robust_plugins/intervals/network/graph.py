"""`Network`: a traced model as a list of layers, and intervals sent forward and backward through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor, fx, nn

from robust_plugins.errors import ArgumentError, UnknownNameError, UnsupportedModelError
from robust_plugins.intervals import rounding as rounding_mode
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.rules.registry import Rules, rules_for

Rounding = Literal["nearest", "outward"]
Built = TypeVar("Built", bound="Network")
Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class Expression:
    """A tensor that the model computes from its parameters and buffers alone."""

    graph: fx.Graph
    constants: Mapping[str, Tensor]
    """Tensors that the traced code created itself."""

    def value(self, model: nn.Module) -> Tensor:
        """The tensor for the model's present parameters."""
        result: Tensor = _Evaluator(model, self).run()
        return result


Operand = str | float | Expression
"""Where a functional call finds a parameter: a path in the model, a number, or an expression."""


@dataclass(frozen=True, eq=False)
class Node:
    """One layer of the graph. It holds no reference to the model, so that graphs can be kept by model."""

    name: str
    """The module's path in the model, or a name from the traced code: unique, and what messages show."""
    inputs: tuple[int, ...]
    """Indices of the nodes whose outputs it takes."""
    layer: nn.Module | None
    """What it computes, for a functional call; None: the module at the path `name`."""
    operands: Mapping[str, Operand]
    """The parameters of a functional call, by local name."""
    place: str = ""
    """What messages call it where `name` does not say it: for a call, the function and the module that calls it."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """The result of a backward pass: intervals of the derivatives of the scalar whose gradient was sent in."""

    nodes: tuple[Interval | None, ...]
    """With respect to each node's output; None where nothing flows back to it. Node 0 is the input."""
    parameters: dict[str, Interval]
    """With respect to each parameter, by its name in the model: (batch, *shape) for each sample, or summed."""

    @property
    def input(self) -> Interval:
        """With respect to the input, shape (batch, *features)."""
        found = self.nodes[0]
        assert found is not None  # set by Network.backward
        return found


@dataclass(eq=False)
class Network:
    """A model's graph, bound to its present layers and weights (and to intervals for some of these).

    `nodes[0]` is the input, `nodes[-1]` the output, and every node comes after its inputs. Build it with `trace`.
    Bounds hold for the model in evaluation mode.
    """

    model: nn.Module
    nodes: Sequence[Node]
    weights: Mapping[str, Interval] = field(default_factory=dict)
    obstacle: str = ""
    """Why the gradients of its graph are not those of automatic differentiation; empty where they are."""

    def __post_init__(self) -> None:
        parameters = dict(self.model.named_parameters())
        names, shapes = {id(p): name for name, p in parameters.items()}, {n: p.shape for n, p in parameters.items()}
        for name, interval in self.weights.items():
            if name not in shapes:
                raise UnknownNameError("parameter of the model:", name, shapes)
            if interval.shape != shapes[name]:
                raise ArgumentError(
                    "weights",
                    f"of shape {tuple(interval.shape)} for {name!r}",
                    accepted=f"the parameter's shape {tuple(shapes[name])}",
                    hint="Give one interval per parameter, of its shape.",
                )
        self.layers: list[nn.Module] = []
        self.rules: list[Rules] = []
        self.parameters: list[dict[str, Interval | None]] = []
        """For each node, the intervals of its parameters by local name."""
        self.names: list[dict[str, str]] = []
        """For each node, the names in the model of those parameters that have one."""
        for node in self.nodes:
            layer = self.model.get_submodule(node.name) if node.layer is None else node.layer
            rules = rules_for(layer)
            if rules is None or rules.forward is None:
                raise unsupported(node.name, layer)
            self.layers.append(layer)
            self.rules.append(rules)
            values: dict[str, Interval | None] = {}
            named: dict[str, str] = {}
            for local in rules.parameters:
                tensor = getattr(layer, local, None) if node.layer is None else self._operand(node, local)
                values[local] = None if tensor is None else Interval.point(tensor)
                if tensor is not None and id(tensor) in names:
                    named[local] = names[id(tensor)]
                    values[local] = self.weights.get(named[local], values[local])
            self.parameters.append(values)
            self.names.append(named)
        wide = {name for name, interval in self.weights.items() if not interval.is_point}
        for name in wide & self.derived if wide else ():  # binding happens at every step of a training
            raise UnsupportedModelError(
                f"parameter {name!r} cannot be an interval: the model computes a layer's weight from it; "
                "use it as the layer's weight itself"
            )

    @classmethod
    def from_parts(
        cls: type[Built],
        model: nn.Module,
        nodes: Sequence[Node],
        layers: Sequence[nn.Module],
        rules: Sequence[Rules],
        parameters: Sequence[dict[str, Interval | None]],
    ) -> Built:
        """A network of the given layers, rules and parameters, one of each per node: nothing is looked up in `model`.

        For graphs that are built and not traced. No parameter has a name in the model, so that there are no gradients
        with respect to weights.
        """
        found = cls.__new__(cls)
        found.model, found.nodes, found.weights = model, nodes, {}
        found.layers, found.rules, found.parameters = list(layers), list(rules), list(parameters)
        found.names = [{} for _ in nodes]
        return found

    @property
    def derived(self) -> set[str]:
        """The names of parameters from which the model computes other values than its layers do, as weight norm does.

        Neither intervals of them nor bounds on their gradients are available.
        """
        found: set[str] = set()
        for node, named in zip(self.nodes, self.names, strict=True):
            if node.layer is None:
                inside = self.model.get_submodule(node.name).named_parameters(node.name)
                own = {id(self.model.get_parameter(name)) for name in named.values()}
                found |= {name for name, p in inside if id(p) not in own}
            for operand in node.operands.values():
                if isinstance(operand, Expression):
                    found |= {str(n.target) for n in operand.graph.nodes if n.op == "get_attr"}
        return found & {name for name, _ in self.model.named_parameters()}

    def forward(
        self,
        x: Interval,
        *,
        known: Mapping[int, Interval] | None = None,
        rounding: Rounding = "nearest",
        until: int | None = None,
    ) -> list[Interval]:
        """Interval bound propagation: the interval of every node's output for inputs in `x`, (batch, *features).

        `known` are bounds on outputs of nodes that come from elsewhere, by index; they are intersected and used from
        there on. With `rounding="outward"` the bounds also hold for the network's floating-point evaluation. A
        nonlinear layer's input interval is `values[node.inputs[0]]`. `until` is the last node to compute.
        """
        with _arithmetic(rounding, x):
            values: list[Interval] = []
            for index in range(len(self.nodes) if until is None else until + 1):
                value = x if index == 0 else self.step(index, values)
                if known is not None and index in known:
                    value = value.agreeing(known[index])
                values.append(value)
        return values

    def step(self, index: int, values: Sequence[Interval]) -> Interval:
        """The interval of one node's output from those of the nodes before it."""
        rule = self.rules[index].forward
        assert rule is not None  # checked when the network was bound
        return self.applied(index, rule, *(values[j] for j in self.nodes[index].inputs))

    def applied(self, index: int, rule: Callable[..., Found], *inputs: Interval, **options: object) -> Found:
        """Applies the rule of a node's layer to intervals; what it refuses is raised with the node's place before."""
        try:
            return rule(self.layers[index], *inputs, **options, **self.parameters[index])
        except UnsupportedModelError as error:
            place, text = place_of(self.nodes[index], self.layers[index]), str(error)
            if place in text:
                raise
            raise UnsupportedModelError(f"{place}: {text}") from error

    def backward(
        self,
        values: Sequence[Interval],
        grad: Interval,
        *,
        weights: Literal["sample", "sum"] | None = None,
        known: Mapping[int, Interval] | None = None,
        until: int = 0,
        rounding: Rounding = "nearest",
    ) -> Gradients:
        """Reverse-mode differentiation over intervals: the chain rule as a product of intervals.

        `values` are those of `forward`. `grad` is the interval of dL/d output, shape of the output. `weights` asks
        for the gradients with respect to the parameters too, for each sample or summed over the batch. `known` are
        bounds on gradients with respect to nodes' outputs that come from elsewhere, by index; they are intersected and
        used from there on. `until` is the first node whose gradient is needed. At kinks the slopes hold what
        automatic differentiation returns. Raises UnsupportedModelError where a layer that the gradient passes has no
        backward rule.
        """
        self.check_gradients()
        found: list[Interval | None] = [None] * len(self.nodes)
        found[-1] = grad
        parameters: dict[str, Interval] = {}
        with _arithmetic(rounding, grad):
            for index in range(len(self.nodes) - 1, until - 1, -1):
                above = found[index]
                if above is None:
                    continue
                if known is not None and index in known:
                    above = found[index] = above.agreeing(known[index])
                inputs = [values[j] for j in self.nodes[index].inputs]
                if weights is not None and self.names[index]:
                    for name, value in self._weight_gradients(index, inputs, above, weights == "sum").items():
                        parameters[name] = parameters[name] + value if name in parameters else value
                if index > until:
                    self._backward_step(index, inputs, above, found)
        if found[0] is None:
            found[0] = Interval.point(torch.zeros_like(values[0].lower))
        return Gradients(tuple(found), parameters)

    def check_gradients(self) -> None:
        """Raises UnsupportedModelError where the model's gradients are not those of its graph."""
        if self.obstacle:
            raise UnsupportedModelError(f"{self.obstacle}, so that bounds on gradients would be of another function")

    def _backward_step(
        self, index: int, inputs: Sequence[Interval], grad: Interval, found: list[Interval | None]
    ) -> None:
        """Adds one node's part to the gradients of the nodes before it."""
        rule = self.rules[index].backward
        if rule is None:
            raise unsupported(self.nodes[index].name, self.layers[index], "has no rule for its gradient")
        below = self.applied(index, rule, *inputs, grad)
        for j, value in zip(self.nodes[index].inputs, below if isinstance(below, tuple) else (below,), strict=True):
            present = found[j]
            found[j] = value if present is None else present + value

    def _weight_gradients(
        self, index: int, inputs: Sequence[Interval], grad: Interval, summed: bool
    ) -> dict[str, Interval]:
        rule, names = self.rules[index].weights, self.names[index]
        if rule is None:
            raise unsupported(self.nodes[index].name, self.layers[index], "has no rule for its weights' gradients")
        found = self.applied(index, rule, *inputs, grad, summed=summed)
        return {names[local]: value for local, value in found.items() if local in names}

    def _operand(self, node: Node, local: str) -> Tensor | None:
        source = node.operands.get(local)
        if source is None:
            return None
        if isinstance(source, float):
            return torch.tensor(source, dtype=torch.float64)  # without axes: takes the dtype of what it meets
        if isinstance(source, Expression):
            return source.value(self.model)
        owner, _, attribute = source.rpartition(".")
        tensor: Tensor = getattr(self.model.get_submodule(owner), attribute)
        return tensor


class _Evaluator(fx.Interpreter):
    def __init__(self, model: nn.Module, expression: Expression) -> None:
        super().__init__(model, graph=expression.graph)
        self.constants = expression.constants

    def fetch_attr(self, target: str) -> object:
        return self.constants[target] if target in self.constants else super().fetch_attr(target)


def place_of(node: Node, layer: nn.Module) -> str:
    """Says what messages call a node."""
    return node.place or f"layer {node.name!r} ({type(layer).__name__})"


def unsupported(name: str, layer: nn.Module, what: str = "has no interval rule") -> UnsupportedModelError:
    """The error for a layer that the engine cannot bound, naming its path and type."""
    return UnsupportedModelError(
        f"layer {name!r} ({type(layer).__name__}) {what}; add one with the hook register_interval_rules"
    )


def _arithmetic(mode: Rounding, like: Interval) -> AbstractContextManager[None]:
    if mode not in ("nearest", "outward"):
        raise ArgumentError(
            "rounding", repr(mode), accepted="'nearest' or 'outward'", hint="'outward' covers floating point."
        )
    if mode == "outward":
        rounding_mode.check(like.lower)
    return rounding_mode.outward(mode == "outward" or rounding_mode.active())
