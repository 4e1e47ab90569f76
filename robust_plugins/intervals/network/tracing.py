"""`trace`: turns a model into a `Network`, by symbolic tracing with torch.fx and a check against the model itself."""

from __future__ import annotations

import copy
import random
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.errors import RobustPluginsError, UnsupportedModelError
from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.network.builder import Builder
from robust_plugins.intervals.network.fingerprint import fingerprint
from robust_plugins.intervals.network.graph import Network, Node
from robust_plugins.intervals.network.outline import Outline, constants, outline
from robust_plugins.intervals.network.state import Kept, undisturbed
from robust_plugins.intervals.network.symbolic import PROBES, Tracer, Whole
from robust_plugins.intervals.network.untraceable import check_traceable, explained


@dataclass(frozen=True)
class Graph:
    """The result of tracing."""

    nodes: tuple[Node, ...]
    obstacle: str = ""
    """Why automatic differentiation of the model gives something else than its graph; empty where it does not."""
    outline: Outline | None = None
    """What tells that a model which is traced again has the same nodes; None where nothing does: it is not kept."""


_Key = tuple[tuple[int, ...], torch.dtype, torch.device, Any]
_graphs: WeakKeyDictionary[nn.Module, dict[_Key, Graph]] = WeakKeyDictionary()
_lock = threading.RLock()  # torch.fx replaces how modules are called while it traces

ROUNDINGS = 32
"""By how much more than inputs that are rounded otherwise the order of operations may change an output."""

KEPT = 8
"""Graphs of one model that are kept, for inputs of several shapes."""


def trace(
    model: nn.Module, x: Float[Tensor, "batch *features"], *, weights: Mapping[str, Interval] | None = None
) -> Network:
    """The graph of `model` for inputs shaped like the samples of `x`, bound to its present weights.

    `weights` maps names of parameters to intervals of their values, shaped like them; the others are points. The graph
    is traced in evaluation mode, at every call: a model's code may read anything. Only for models of which is known
    what their code looks up (`fingerprint`) it is kept, for as long as none of that changes. Tracing runs `forward` and
    all hooks, and puts back whatever they write. Raises UnsupportedModelError, naming the place, for control flow that
    depends on data, for a layer or a function without rules, for outputs that depend on earlier calls, and where the
    graph does not compute what the model computes (operations in place on a value that is used again).
    """
    made_from = fingerprint(model)
    key = (tuple(x.shape[1:]), x.dtype, x.device, made_from)
    kept = _graphs.get(model, {})
    graph = kept.get(key)
    if graph is None or made_from is None:
        with _lock, torch.inference_mode(False), torch.autocast(x.device.type, enabled=False):
            graph = _traced(model, _probe(x), graph)
        if graph.outline is not None:
            _graphs[model] = {**dict([item for item in kept.items() if item[0] != key][1 - KEPT :]), key: graph}
    return Network(model, graph.nodes, weights or {}, graph.obstacle)


def _traced(model: nn.Module, probe: Tensor, last: Graph | None) -> Graph:
    """The graph of the model as it is now. `last` is that of the call before, whose nodes it may still have."""
    check_traceable(model)
    root = Whole(model)
    with _evaluation(model), torch.no_grad(), _without_randomness(model, probe), undisturbed(model) as kept:
        tracer, builder = _symbolic(root, probe, kept)
        found = outline(root, builder.graph)
        if last is not None and last.outline is not None and last.outline.same(found):
            nodes, settled = last.nodes, True
        else:
            nodes = builder.nodes()
            settled = builder.settled()
        _check_state(kept, builder, probe)
        _check(Network(model, nodes), probe)
        _check_state(kept, builder, probe)  # what the model itself writes, run on tensors instead of symbols
    return Graph(nodes, _obstacle(model, tracer), found if settled else None)


def _symbolic(root: Whole, probe: Tensor, kept: Kept) -> tuple[Tracer, Builder]:
    tracer = Tracer(probe)
    try:
        with torch.enable_grad():  # so that constants made of parameters can be told
            graph = tracer.trace(root)
    except RobustPluginsError:
        raise
    except Exception as error:  # whatever forward does with a symbolic value that only a tensor can do
        raise explained(error, root.whole, tracer) from error
    if any(isinstance(t, Tensor) and t.requires_grad for t in vars(root).values()):
        raise UnsupportedModelError(
            f"the model ({type(root.whole).__name__}) computes with parameters that it does not take from its "
            "attributes, and bounds would not follow their changes; write self.weight where forward needs it"
        )
    kept.restore()  # the graph's own run begins where that of the symbols began
    return tracer, Builder(root, graph, probe)


def _check_state(kept: Kept, builder: Builder, probe: Tensor) -> None:
    """Puts back what forward has written. Raises UnsupportedModelError where the output may depend on that."""
    kept.restore()
    changes, rewritten = kept.changed, kept.written
    model = builder.root.whole
    registered = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
    names = {change.name for change in changes}
    read = builder.read()
    for tensor in rewritten:
        name = registered.get(id(tensor))
        if name is None or name in read or constants(builder.root, builder.graph):
            raise _stateful(model, name or "a tensor")
    for change in changes:
        if change.blank is None or change.name in read:
            raise _stateful(model, change.name)
        if change.name not in registered.values():
            change.blank()
    if not changes:
        kept.written = []
        return
    if names - set(registered.values()):
        try:
            _, again = _symbolic(Whole(model), probe, kept)
        except RobustPluginsError:
            raise _stateful(model, sorted(names)[0]) from None
        if not outline(again.root, again.graph).computes_as(outline(builder.root, builder.graph)):
            raise _stateful(model, sorted(names)[0])
    kept.restore()
    kept.changed, kept.written = [], []


def _stateful(model: nn.Module, name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the model ({type(model).__name__}) changes {name!r} in evaluation mode, and its output may depend on that, "
        "and so on the calls before; change it only `if self.training`, or remove the hook that does"
    )


def _obstacle(model: nn.Module, tracer: Tracer) -> str:
    for name, module in model.named_modules():
        if module._backward_hooks or getattr(module, "_backward_pre_hooks", None):
            return f"{name or 'the model'} ({type(module).__name__}) has backward hooks, which change its gradient"
    if tracer.without_gradients:
        return f"the model switches gradients off, at {tracer.without_gradients!r}"
    return ""


def _probe(x: Tensor) -> Tensor:
    """A few inputs near the first sample, all different, so that mistakes show."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((max(PROBES), *x.shape[1:]), generator=generator, dtype=torch.float64)
    base = x[:1] if len(x) else torch.zeros_like(x.new_empty((1, *x.shape[1:])))
    return base.detach() + 0.2 * (noise - 0.5).to(base)


def _check(network: Network, probe: Tensor) -> None:
    """The graph must compute what the model computes, and for each sample on its own.

    Large terms that cancel make a difference between two orders of summation: then double precision decides.
    """
    cause = _difference(network, network.model, probe)
    if cause and probe.dtype is torch.float32:
        cause = _difference_in_double(network, probe, cause)
    if cause:
        raise UnsupportedModelError(f"the model ({type(network.model).__name__}) cannot be bounded: {cause}")


def _difference(network: Network, model: nn.Module, probe: Tensor) -> str:
    """In which way the graph does not compute what the model does; empty where it does."""
    # Copies: a model may change its input.
    with rounding.outward(False):
        ours = network.forward(Interval.point(probe))[-1].lower
    theirs = _output(model, probe.clone())
    alone = torch.cat([_output(model, sample) for sample in probe.clone().split(1)])
    scale = theirs.abs().nan_to_num(posinf=0.0).amax() if theirs.numel() else 0.0
    tolerance = (1e-3 if probe.dtype not in (torch.float32, torch.float64) else 1e-4) * (1 + scale)
    for found, cause in (
        (ours, "its graph computes something else, as with operations in place on a value that is used again"),
        (alone, "a sample's output depends on the other samples of its batch"),
    ):
        same = found.shape == theirs.shape and (
            _agrees(found, theirs, tolerance) or _rounded(network, probe, found, theirs)
        )
        if not same and bool(theirs.isnan().any()):
            return "it returns NaN near the first sample; look for 0/0, or for softmax of minus infinity alone"
        if not same:
            return cause
    return ""


def _difference_in_double(network: Network, probe: Tensor, otherwise: str) -> str:
    """`_difference` of a copy in double precision; `otherwise` where that cannot be made."""
    try:
        model = copy.deepcopy(network.model).double()
        parameters = [
            {k: None if p is None else p.map(Tensor.double) for k, p in own.items()} for own in network.parameters
        ]
        cast = Network.from_parts(model, network.nodes, network.layers, network.rules, parameters)
        return _difference(cast, model, probe.double())
    except Exception:  # whatever the model is made of
        return otherwise


def _rounded(network: Network, probe: Tensor, found: Tensor, theirs: Tensor) -> bool:
    """Whether outputs differ by what rounding makes of inputs such as these alone.

    As of a layer norm of large and nearly equal ones: rounding the inputs otherwise changes the output as much, and
    for small inputs graph and model agree.
    """
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand((3, *probe.shape), generator=generator, dtype=torch.float64).to(probe) * 2 - 1
    moved = [_output(network.model, probe * (1 + 4 * torch.finfo(probe.dtype).eps * n)) for n in noise]
    error = torch.stack([(m - theirs).abs().amax() for m in moved]).amax()
    if not _agrees(found, theirs, ROUNDINGS * error):
        return False
    small = noise[0]
    ours, theirs = network.forward(Interval.point(small))[-1].lower, _output(network.model, small.clone())
    alone = torch.cat([_output(network.model, sample) for sample in small.clone().split(1)])
    tolerance = 1e-4 * (1 + theirs.abs().amax())
    return all(bool(((t - theirs).abs() <= tolerance).all()) for t in (ours, alone))


def _agrees(one: Tensor, two: Tensor, tolerance: Tensor | float) -> bool:
    """Whether two outputs are the same but for rounding; NaN, as of weights that are NaN, is NaN in both."""
    return bool(((one == two) | ((one - two).abs() <= tolerance) | (one.isnan() & two.isnan())).all())


def _output(model: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = model(x)
    return out


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    compiled = [(m, vars(m)["_compiled_call_impl"]) for m, _ in modes if vars(m).get("_compiled_call_impl") is not None]
    for module, _ in modes:
        module.training = False
    for module, _ in compiled:
        vars(module)["_compiled_call_impl"] = None  # forward computes the same
    try:
        with ExitStack() as stack:
            if any(type(module).__name__ == "OptimizedModule" for module, _ in modes):
                stack.enter_context(torch.compiler.set_stance("force_eager"))  # which computes the same
            yield
    finally:
        for module, training in modes:
            module.training = training
        for module, call in compiled:
            vars(module)["_compiled_call_impl"] = call


@contextmanager
def _without_randomness(model: nn.Module, probe: Tensor) -> Iterator[None]:
    """Puts the random states back. Raises UnsupportedModelError for models that draw from them."""
    before = _random_states(probe)
    try:
        try:
            yield
        except UnsupportedModelError as error:  # a call that draws has no rule either
            if not any(part in str(error) for part in ("self.training", "is made in forward")):
                _refuse_drawn(model, before, probe, error)
            raise
        _refuse_drawn(model, before, probe, None)
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        if (numpy := sys.modules.get("numpy")) is not None and before[2] is not None:
            numpy.random.set_state(before[2])
        if before[3] is not None:
            torch.cuda.set_rng_state(before[3], probe.device)


def _refuse_drawn(model: nn.Module, before: tuple[Any, ...], probe: Tensor, cause: Exception | None) -> None:
    after = _random_states(probe)
    # Checkers of types draw from Python's own; a model that does is found by its results.
    if not all(_equal(before[k], after[k]) for k in (0, 2, 3)):
        raise UnsupportedModelError(
            f"the model ({type(model).__name__}) draws random numbers in evaluation mode, so that there is nothing to "
            "bound; draw them only `if self.training`"
        ) from cause


def _random_states(probe: Tensor) -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    cuda = torch.cuda.get_rng_state(probe.device) if probe.is_cuda else None
    return torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy else None, cuda


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, two)
    if isinstance(one, tuple):
        return all(_equal(a, b) for a, b in zip(one, two, strict=True))
    return bool((one == two) if not hasattr(one, "shape") else (one == two).all())
