"""Symbolic tracing with torch.fx: what `forward` and all hooks compute, as a graph of calls."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from robust_plugins.errors import UnsupportedModelError, of_type
from robust_plugins.intervals.network.transformers import LAYERS, simplified
from robust_plugins.intervals.rules.registry import overridden, rules_for

PROBES = (3, 2)
"""Batch sizes that the model is run with while it is traced: what differs between them is the batch axis."""

WHOLE = "whole"
"""Where the traced model stands in the module that is handed to torch.fx."""


class Whole(nn.Module):
    """Calls the model, so that its own hooks are traced too. Tensors that forward creates become attributes here."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.whole = model

    def forward(self, x: Any) -> Any:  # noqa: D102 (x is a symbol, too)
        return self.whole(x)


def path_in_model(target: str) -> str:
    """The path in the model of a path in `Whole`."""
    return target.removeprefix(WHOLE).removeprefix(".")


class BatchSizeError(Exception):
    """A value depends on the batch size."""


class DataError(Exception):
    """A value depends on the values of the input."""


class Symbol(fx.Proxy):
    """A value while it is traced. A shape knows how many entries it has."""

    def __len__(self) -> int:
        count = self.tracer.parts_of(self.node)  # type: ignore[attr-defined]
        return super().__len__() if count is None else int(count)


class Tracer(fx.Tracer):
    """Keeps every layer with rules whole, runs all hooks, and remembers in which module tracing failed.

    Conditions on shapes and dtypes of samples are decided, by `probe`; for others of its shape the graph is another.
    """

    proxy_buffer_attributes = True  # a buffer is looked up when the network is bound, not frozen into the graph

    def __init__(self, probe: Tensor) -> None:
        super().__init__()
        self.probe = probe
        self.failed = ""
        self.without_gradients = ""
        self.thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: D102 (torch.fx calls it)
        if overridden(m) or _hooked(m):
            return False
        if isinstance(m, LAYERS):
            return False
        return rules_for(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:  # noqa: D102 (torch.fx calls it)
        if threading.get_ident() != self.thread:  # torch.fx replaces how modules are called in all threads
            return forward(*args, **kwargs)
        if (inner := wrapped(m)) is not None:
            return inner(*args, **kwargs)
        assert self.submodule_paths is not None  # while tracing
        if m not in self.submodule_paths:
            return self._made_in_forward(m, forward, args, kwargs)
        try:
            if _hooked(m) and rules_for(m) is not None:
                return self._between_hooks(m, forward, args, kwargs)
            simple = None if _hooked(m) else simplified(m)
            return super().call_module(m, simple or forward, args, kwargs)
        except Exception:
            path = path_in_model(self.path_of_module(m))
            self.failed = self.failed or f"{path or 'the model'} ({type(m).__name__})"
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:  # noqa: D102 (torch.fx calls it)
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:  # noqa: D102 (torch.fx calls it)
        node = super().create_node(kind, *args, **kwargs)
        if kind.startswith("call"):
            if torch.is_autocast_enabled(self.probe.device.type):
                raise UnsupportedModelError(
                    f"the model switches autocast on (at {node.name!r}), whose lower precision has no bounds; "
                    "call it without, in one dtype"
                )
            if not torch.is_grad_enabled() and not self.without_gradients:
                self.without_gradients = node.name
        return node

    def create_arg(self, a: Any) -> Any:  # noqa: D102 (torch.fx calls it)
        python = {int: torch.int64, float: torch.float64, bool: torch.bool}  # as in h.to(int)
        return super().create_arg(python[a] if isinstance(a, type) and a in python else a)

    def to_bool(self, obj: fx.Proxy) -> bool:  # noqa: D102 (torch.fx calls it)
        with self._evaluating():
            return bool(value_of(obj.node, self.root, self.probe))

    def parts_of(self, node: fx.Node) -> int | None:
        """The number of tensors that a call returns, or of a shape's entries; None where it returns one tensor."""
        graph, end = _graph_of(node)
        with self._evaluating():
            result = Values(self.root, graph).of(self.probe[: PROBES[0]])[end]
        return len(result) if isinstance(result, tuple | list) else None

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Inside, modules compute with their tensors and not with symbols."""
        before, self.thread = self.thread, -1
        try:
            yield
        finally:
            self.thread = before

    def proxy(self, node: fx.Node) -> fx.Proxy:  # noqa: D102 (torch.fx calls it)
        return Symbol(node, self)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:  # noqa: D102 (torch.fx calls it)
        parts = self.parts_of(obj.node)
        return super().iter(obj) if parts is None else iter([obj[index] for index in range(parts)])  # type: ignore[index]

    def _between_hooks(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Runs the hooks of a layer with rules, and keeps the layer whole, unless they have changed it."""
        attributes = vars(m)
        before = dict(attributes)

        def layer(*args: Any, **kwargs: Any) -> Any:
            now = {name: value for name, value in attributes.items() if name != "forward"}
            if now.keys() != before.keys() or any(now[name] is not before[name] for name in now):
                return type(m).forward(m, *args, **kwargs)  # with the weight that a hook has computed, say
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

        attributes["forward"] = layer
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            attributes.pop("forward", None)

    def _made_in_forward(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if next(m.parameters(), None) is not None:
            raise UnsupportedModelError(
                f"{of_type(m)} is made in forward, or kept in a list that torch does not see; make it in "
                "__init__ and keep it as an attribute, or in a torch.nn.ModuleList"
            )
        return forward(*args, **kwargs)


class Values(fx.Interpreter):
    """Runs a traced graph and keeps every node's value."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, garbage_collect_values=False, graph=graph)
        self.extra_traceback = False  # which would be added to our message
        self.versions: dict[fx.Node, int] = {}

    def of(self, x: Tensor) -> dict[fx.Node, Any]:
        """Each node's value for the input x."""
        try:
            self.run(x)
        except UnsupportedModelError:
            raise
        except Exception as error:
            raise UnsupportedModelError(
                f"the model cannot be run on {len(x)} inputs of shape {tuple(x.shape[1:])} "
                f"({type(error).__name__}: {error}); it must take batches of any size"
            ) from error
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

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A layer without its hooks, which have nodes of their own."""
        layer = self.fetch_attr(target)
        return type(layer).forward(layer, *args, **kwargs)


_ATTRIBUTES = {
    "shape",
    "dtype",
    "device",
    "ndim",
    "layout",
    "is_cuda",
    "is_sparse",
    "is_quantized",
    "itemsize",
    "is_nested",
}
_METHODS = {
    "size", "dim", "ndimension", "is_floating_point", "is_complex", "numel", "nelement", "get_device", "element_size",
}  # fmt: skip
_SHAPED = {torch.zeros_like, torch.ones_like, torch.full_like}
_SHAPED_METHODS = {"new_zeros", "new_ones", "new_full"}
SHAPES = frozenset(_ATTRIBUTES | _METHODS | _SHAPED_METHODS)
"""Attributes and methods of tensors that do not depend on values."""
_FUNCTIONS = {torch.numel, torch.is_floating_point, torch.is_complex, torch.is_tensor, len, isinstance}


def describes(node: fx.Node) -> bool:
    """Whether a node asks for something that does not depend on a tensor's values, such as its shape."""
    if node.op == "call_method":
        return node.target in _METHODS or node.target in _SHAPED_METHODS
    if node.op != "call_function":
        return False
    return (
        (node.target is getattr and node.args[1] in _ATTRIBUTES) or node.target in _FUNCTIONS or node.target in _SHAPED
    )


def value_of(node: fx.Node, root: nn.Module, probe: Tensor) -> Any:
    """The value of a node that depends on shapes alone, and not on the batch size.

    Raises DataError or BatchSizeError for other nodes.
    """
    graph, end = _graph_of(node)
    values, others = (Values(root, graph).of(probe[:size]) for size in PROBES)
    data, sized = set(), set()
    for copy in graph.nodes:
        sources = copy.all_input_nodes
        if copy.op == "placeholder" or (any(s in data for s in sources) and not describes(copy)):
            data.add(copy)
        elif any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves((values[copy], others[copy]))):
            data.add(copy)  # state that forward has written while it is traced
        elif not isinstance(values[copy], Tensor):
            # A shape holds the batch size, and its other entries do not depend on it.
            if any(s in sized for s in sources) and copy.target is not operator.getitem:
                raise BatchSizeError
            if values[copy] != others[copy]:
                sized.add(copy)
    if end in data or isinstance(values[end], Tensor):
        raise DataError
    if end in sized:
        raise BatchSizeError
    return values[end]


def _graph_of(node: fx.Node) -> tuple[fx.Graph, fx.Node]:
    """A graph that computes the node alone, and the node there."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}

    def copied(source: fx.Node) -> fx.Node:
        if source not in copies:
            copies[source] = graph.node_copy(source, copied)
        return copies[source]

    end = copied(node)
    graph.output(end)
    return graph, end


def wrapped(m: nn.Module) -> nn.Module | None:
    """Returns the module that a wrapper passes everything on to: that of torch.compile and the parallel ones."""
    if isinstance(m, nn.DataParallel | DistributedDataParallel):
        parallel: nn.Module = m.module
        return parallel
    inner = m._modules.get("_orig_mod")
    return inner if type(m).__name__ == "OptimizedModule" else None


def _hooked(m: nn.Module) -> bool:
    module = torch.nn.modules.module
    return bool(
        m._forward_hooks or m._forward_pre_hooks or module._global_forward_hooks or module._global_forward_pre_hooks
    )
