"""`trace`: turns a model into a `Network`, by symbolic tracing with torch.fx and a check against the model itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from robust_plugins.errors import RobustPluginsError, UnsupportedModelError
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Input
from robust_plugins.intervals.network.calls import Emit, Indexed, build_call
from robust_plugins.intervals.network.graph import Expression, Network, Node, Operand, unsupported
from robust_plugins.intervals.rules.registry import rules_for

_Key = tuple[tuple[int, ...], torch.dtype]
_graphs: WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], dict[_Key, tuple[Node, ...]]]] = WeakKeyDictionary()

PROBES = (3, 2)
"""Batch sizes that the model is run with while it is traced: what differs between them is the batch axis."""


def trace(
    model: nn.Module, x: Float[Tensor, "batch *features"], *, weights: Mapping[str, Interval] | None = None
) -> Network:
    """The graph of `model` for inputs shaped like the samples of `x`, bound to its present weights.

    `weights` maps names of parameters to intervals of their values, shaped like them; the others are points. The graph
    is traced in evaluation mode, once per model and shape of its inputs, and again when its modules change; a model
    whose `forward` changes by other means must be copied. Raises UnsupportedModelError, naming the place, for control
    flow that depends on data, for a layer or a function without rules, and where the graph does not compute what the
    model computes (operations in place on a value that is used again).
    """
    modules = tuple(id(module) for module in model.modules())
    known_modules, graphs = _graphs.get(model, (modules, {}))
    if known_modules != modules:
        graphs = {}
    key = (tuple(x.shape[1:]), x.dtype)
    if key not in graphs:
        # A model may draw random numbers even in evaluation mode; tracing it draws none of the caller's.
        with torch.no_grad(), _evaluation(model), torch.random.fork_rng(devices=[]):
            probe = _probe(x)
            graphs[key] = _traced(model, probe)
            _check(Network(model, graphs[key]), probe)
        _graphs[model] = (modules, graphs)
    return Network(model, graphs[key], weights or {})


class _Tracer(fx.Tracer):
    """Keeps every module with rules whole, and remembers in which module tracing failed."""

    proxy_buffer_attributes = True  # a buffer is looked up when the network is bound, not frozen into the graph

    def __init__(self) -> None:
        super().__init__()
        self.failed = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return rules_for(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or f"{self.path_of_module(m)} ({type(m).__name__})"
            raise


class _Values(fx.Interpreter):
    """Runs a traced graph and keeps every node's value."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, garbage_collect_values=False, graph=graph)
        self.extra_traceback = False  # which would be added to our message
        self.versions: dict[fx.Node, int] = {}

    def of(self, x: Tensor) -> dict[fx.Node, Any]:
        self.run(x)
        return self.env

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node, unless an operation in place has changed what it takes: our graph has the value before."""
        for source in n.all_input_nodes:
            value = self.env[source]
            if isinstance(value, Tensor) and value._version != self.versions[source]:
                raise UnsupportedModelError(
                    f"{source.name!r} is changed by an operation in place and used again, by {n.name!r}; "
                    "write it without changing a value in place"
                )
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.versions[n] = result._version
        return result


def _traced(model: nn.Module, probe: Tensor) -> tuple[Node, ...]:
    tracer = _Tracer()
    root = copy(model)  # tensors that forward creates become attributes of what is traced: not of the user's model
    try:
        with torch.enable_grad():  # so that constants made of parameters can be told
            graph = tracer.trace(root)
    except RobustPluginsError:
        raise
    except Exception as error:  # whatever forward does with a symbolic value that only a tensor can do
        where = tracer.failed or f"the model ({type(model).__name__})"
        raise UnsupportedModelError(
            f"{where} cannot be traced: control flow or values that depend on data ({error})"
        ) from error
    if sum(node.op == "placeholder" for node in graph.nodes) != 1:
        raise UnsupportedModelError(f"the model ({type(model).__name__}) takes several inputs; wrap it to take one")
    if any(isinstance(t, Tensor) and t.requires_grad for name, t in vars(root).items() if name not in vars(model)):
        raise UnsupportedModelError(
            f"the model ({type(model).__name__}) computes with parameters that it does not take from its attributes, "
            "and the result would not follow their changes; write self.weight where forward needs it"
        )
    values, others = (_Values(root, graph).of(probe[:size]) for size in PROBES)
    return _Builder(root, graph, values, others).nodes()


class _Builder:
    """Turns the nodes of a torch.fx graph into ours, knowing each one's value for two batch sizes."""

    def __init__(
        self, model: nn.Module, graph: fx.Graph, values: dict[fx.Node, Any], others: dict[fx.Node, Any]
    ) -> None:
        self.model, self.graph, self.values, self.others = model, graph, values, others
        self.built: list[Node] = []
        self.index: dict[fx.Node, int] = {}
        self.dependent: set[fx.Node] = set()

    def nodes(self) -> tuple[Node, ...]:
        for node in self.graph.nodes:
            if any(source in self.dependent for source in node.all_input_nodes) or node.op == "placeholder":
                self.dependent.add(node)
            elif node.op == "call_method" and node.target in ("item", "tolist"):
                raise UnsupportedModelError(
                    f"{self._place(node)} makes plain numbers of a parameter or buffer, which would not follow its "
                    "changes; compute with the tensor itself"
                )
            if node.op == "output":
                result = node.args[0]
                if not isinstance(result, fx.Node) or result not in self.index:
                    raise UnsupportedModelError("the model does not return one tensor that depends on its input")
                if self.index[result] != len(self.built) - 1:
                    # The last node is the output by convention; what comes after it is dead code.
                    self.built = self.built[: self.index[result] + 1]
            elif node in self.dependent and isinstance(self.values[node], Tensor):
                self.index[node] = self._layer(node)
            elif node in self.dependent and not _is_plain(self.values[node]):
                raise UnsupportedModelError(f"{self._place(node)} returns several tensors and has no interval rule")
        return tuple(self.built)

    def _layer(self, node: fx.Node) -> int:
        value = self.values[node]
        if not (value.dim() and len(value) == PROBES[0] and len(self.others[node]) == PROBES[1]):
            raise UnsupportedModelError(f"{self._place(node)} does not keep the batch as axis 0")
        if node.op == "placeholder":
            return self._add(str(node.target), Input(), (), {})
        if node.op == "call_module":
            layer = self.model.get_submodule(str(node.target))
            if rules_for(layer) is None:
                raise unsupported(str(node.target), layer)
            return self._add(str(node.target), None, tuple(self.index[source] for source in node.all_input_nodes), {})
        emit = Emit(self._operand, lambda layer, inputs, operands: self._add(node.name, layer, inputs, operands))
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._argument)
        return build_call(node, emit, args, kwargs, value, self._place(node))

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
        if source.op == "get_attr" and str(source.target) not in vars(self.model):
            return str(source.target)
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}

        def copied(node: fx.Node) -> fx.Node:
            if node not in copies:
                copies[node] = graph.node_copy(node, copied)
            return copies[node]

        graph.output(copied(source))
        attributes = {
            str(node.target): vars(self.model).get(str(node.target)) for node in copies if node.op == "get_attr"
        }
        return Expression(graph, {name: value for name, value in attributes.items() if isinstance(value, Tensor)})

    def _place(self, node: fx.Node) -> str:
        stack = node.meta.get("nn_module_stack")
        path, kind = list(stack.values())[-1] if stack else ("", type(self.model))
        kind = kind if isinstance(kind, str) else kind.__name__
        return f"{getattr(node.target, '__name__', node.target)!s} in {path or 'the model'} ({kind})"


def _is_plain(value: object) -> bool:
    """Whether a value is a shape or another constant of the trace, not tensors in a container."""
    if isinstance(value, tuple | list):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, int | float | str | torch.dtype | torch.device)


def _probe(x: Tensor) -> Tensor:
    """A few inputs near the first sample, all different, so that mistakes show."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((max(PROBES), *x.shape[1:]), generator=generator, dtype=torch.float64)
    base = x[:1] if len(x) else torch.zeros_like(x.new_empty((1, *x.shape[1:])))
    return base.detach() + 0.2 * (noise - 0.5).to(base)


def _check(network: Network, probe: Tensor) -> None:
    """The graph must compute what the model computes, and for each sample on its own."""
    ours, theirs = network.forward(Interval.point(probe))[-1].lower, network.model(probe)
    alone = torch.cat([network.model(sample) for sample in probe.split(1)])
    scale = theirs.abs().amax() if theirs.numel() else 0.0
    tolerance = 1e-3 if probe.dtype not in (torch.float32, torch.float64) else 1e-4
    for found, cause in (
        (ours, "its graph computes something else, as with operations in place on a value that is used again"),
        (alone, "a sample's output depends on the other samples of its batch"),
    ):
        if found.shape != theirs.shape or bool(((found - theirs).abs() > tolerance * (1 + scale)).any()):
            raise UnsupportedModelError(f"the model ({type(network.model).__name__}) cannot be bounded: {cause}")


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
