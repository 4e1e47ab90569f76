"""auto_LiRPA's bounded modules: built once per model and shape, and lent the model's present weights at every call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robust_plugins.adapters.lirpa import compat
from robust_plugins.adapters.lirpa.compat import LiRPA
from robust_plugins.adapters.lirpa.failures import first_line, out_of_memory, unsupported
from robust_plugins.adapters.lirpa.graph import (
    Folded,
    evaluate,
    evaluate_weights,
    fold_input,
    kind,
    perturbed_nodes,
    repair_quotients,
)
from robust_plugins.adapters.lirpa.rewrite import convertible
from robust_plugins.adapters.lirpa.rows import refuse_mixed
from robust_plugins.adapters.lirpa.structure import Structure, state, structure, weights_of
from robust_plugins.adapters.lirpa.value_reads import values_read
from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError, ComponentError, UnsupportedModelError
from robust_plugins.harness.arguments import logits_of
from robust_plugins.harness.wrappers import TwoLogits, Untouched


class Recipe(NamedTuple):
    """How a model is converted: with the model and the input's shape, the key of the cache."""

    options: tuple[tuple[str, Any], ...] = ()
    """auto_LiRPA's `bound_opts`."""
    fold: bool = True
    """Cut a normalisation off the front of the graph, which is exact for boxes and for no other ball."""
    convolve: bool = False
    """Replace average pooling by the convolution that it is: 0.3 gets its linear bounds wrong, or fails."""


class Failure(NamedTuple):
    """Why a method cannot bound a model."""

    error: UnsupportedModelError
    weights: tuple[object, ...] | None = None
    """The weights at which the backend failed, for it may do better at others; None where they do not matter."""


@dataclass(eq=False)
class Bounded:
    """A converted model. Its graph holds no weights of its own: `using` lends it those of the model."""

    backend: LiRPA
    module: Any
    """auto_LiRPA's BoundedModule, always in evaluation mode."""
    structure: Structure
    classes: int
    """The number of the model's logits."""
    folded: Folded
    """What was cut off the front of the graph; inputs and their bounds go through it first."""
    samples: int | None = None
    """The only batch size that the graph serves; None where it serves all."""
    failures: dict[str, Failure] = field(default_factory=dict)
    """Per method, why it cannot bound this model."""
    audited: dict[str, Any] = field(default_factory=dict)
    """Per method, what is known from comparing its bounds with points."""
    lengths: set[int] = field(default_factory=set)
    """The batch sizes at which a model with code of its own was compared with the graph."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Bounds are kept in the nodes while they are computed, so one call at a time."""

    @contextmanager
    def using(self, model: nn.Module, *, frozen: bool = False, clear: bool = True) -> Iterator[Any]:
        """The bounded module on `model`'s present parameters and buffers, cleared of all bounds afterwards.

        With `frozen`, gradients do not reach the parameters. Without `clear`, the bounds of all layers stay until the
        next call: giving large tensors back to the system and asking for them again takes a third of IBP's time.
        """
        with self.lock, default_dtype(self.structure.dtype):
            present = state(model)
            before = _versions(present)
            for node in self.module.children():
                if hasattr(node, "ori_name") and node.ori_name in present:
                    store = node._parameters if "param" in node._parameters else node._buffers
                    for key in ("param", "buffer"):
                        if key in store:
                            store[key] = present[node.ori_name].detach() if frozen else present[node.ori_name]
            try:
                yield self.module
            finally:
                # Frees the tensors and their history now; auto_LiRPA would at its next call.
                for node in self.module.children() if clear else ():
                    for key in _KEPT:
                        node.__dict__.pop(key, None)
            if _versions(present) != before:
                raise ComponentError(f"auto_LiRPA changed the weights of {type(model).__name__}; its answer is void")

    def failure(self, method: str, model: nn.Module) -> UnsupportedModelError | None:
        """Why `method` is known to fail on `model` with its present weights."""
        known = self.failures.get(method)
        if known is None or (known.weights is not None and known.weights != weights_of(model)):
            return None
        return known.error

    def agrees(self, model: nn.Module, z: Tensor, compute: Callable[[Any, Tensor], Tensor] = evaluate) -> bool:
        """Whether the graph computes at `z` what `model` does, up to rounding."""
        with torch.no_grad():
            expected = _run(model, z)
            with self.using(model, clear=False) as module:
                found = compute(module, self.folded(z))
            tolerance = 1e3 * torch.finfo(z.dtype).eps * (float(expected.nan_to_num().abs().amax()) + 1)
            return found.shape == expected.shape and torch.allclose(
                found, expected, rtol=0, atol=tolerance, equal_nan=True
            )


def _versions(tensors: dict[str, Tensor]) -> list[tuple[int, bool]]:
    """Changes with every change of the tensors in place."""
    return [(0 if t.is_inference() else t._version, t.requires_grad) for t in tensors.values()]


_KEPT = ("lower", "upper", "interval", "forward_value", "d", "lA", "uA", "lower_d", "linear", "center", "aux")


_cache: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Bounded]] = WeakKeyDictionary()


def bounded(model: nn.Module, x: Tensor, recipe: Recipe, ball: Ball | None = None) -> Bounded:
    """`model` converted for inputs like `x` (any batch size), from the cache where its structure is unchanged.

    With `ball`, the graph of a model with code of its own is compared with it at a few samples and at random points
    around them: what no structure tells (a global, a closure) may have changed as well. A graph that differs is made
    once more.

    Raises UnsupportedModelError, naming the layer, where auto_LiRPA cannot convert it or computes something else,
    and PluginError where auto_LiRPA is missing.
    """
    compat.load()
    # The public calls make these wrappers anew each time.
    kept, wrapped = model, []
    while isinstance(kept, (TwoLogits, Untouched)):
        wrapped.append(type(kept))
        kept = kept.model
    entries = _cache.setdefault(kept, {})
    key = (tuple(wrapped), x.shape[1:], x.dtype, x.device, recipe)
    present = structure(model, x.dtype)
    for candidate in (key, (*key, len(x))):
        found = entries.get(candidate)
        if found is None or not found.structure.matches(present):
            continue
        if present.complete or _agrees(found, model, x, ball):
            return found
    refused: list[str] = []
    try:
        with torch.inference_mode(False):
            made = _made(model, x.clone() if x.is_inference() else x, recipe, present, refused)
    except Exception as error:

        def attempt(layer: nn.Module, at: Tensor) -> None:
            trial(layer, at, recipe)

        raise unsupported(error, model, x[:1], attempt, refused) from error
    if not _agrees(made, model, x, ball):
        raise _differs(model)
    entries[key if made.samples is None else (*key, made.samples)] = made
    return made


def trial(model: nn.Module, x: Tensor, recipe: Recipe) -> Bounded:
    """`model` converted for this one use. Raises whatever auto_LiRPA raises."""
    return _made(model, x, recipe, structure(model, x.dtype), [])


def _made(model: nn.Module, x: Tensor, recipe: Recipe, present: Structure, refused: list[str]) -> Bounded:
    make = partial(_converted, model, recipe=recipe, kept=present.kept(), refused=refused)
    try:
        return make(x[:1].expand(2, *x.shape[1:]).clone(), 3)
    except Exception:
        # Some models trace the batch size into the graph, or run with no other than that of `x`.
        if refused:
            raise
        made = make(x.clone(), len(x))
        made.samples = len(x)
        return made


def _converted(
    model: nn.Module, x: Tensor, check: int, *, recipe: Recipe, kept: Structure, refused: list[str]
) -> Bounded:
    """`model` converted at `x`, and compared with itself on another batch, of `check` samples.

    A shape that was traced wrongly, or a layer that is misread, would give unsound bounds.
    """
    backend = compat.load()
    twin = convertible(model, x, convolve=recipe.convolve and backend.legacy)
    if line := _run(partial(values_read, twin), x):
        raise UnsupportedModelError(
            f"{type(model).__name__} reads values of its input in Python, at {line}; the graph that auto_LiRPA bounds "
            "holds only what followed from the values at one input"
        )
    refuse_mixed(twin, x)
    with backend.tracing(refused), default_dtype(x.dtype), torch.no_grad():
        # Buffers are weights, not inputs: they have no batch axis. (0.3 knows no such option, see below.)
        settings = {"buffers": {"no_batchdim": True}, **dict(recipe.options)}
        module = backend.module_class(twin, x, bound_opts=settings, device=x.device)
    module.eval()
    if module.final_name not in perturbed_nodes(module):
        raise UnsupportedModelError(f"the logits of {type(model).__name__} do not depend on its input")
    for node in module.children():
        if backend.legacy:
            # Inferred again from the inputs by the evaluation below.
            node.from_input = kind(node) == "BoundInput"
            if kind(node) == "BoundAveragePool":
                object.__setattr__(node, "bound_backward", _Contiguous(node.bound_backward))
        if "param" in node._parameters:
            # The backend's own forward sets requires_grad of the user's parameter to the mode of the node.
            object.__setattr__(node, "forward", _Lent(node))
    # One release keeps these in a dictionary shared by all modules: ours must not change others'.
    module.bound_opts["optimize_bound_args"] = dict(module.bound_opts["optimize_bound_args"])
    evaluate_weights(module)
    if backend.legacy:
        repair_quotients(module)
    folded = fold_input(module) if recipe.fold else Folded(())
    near = _spread(x, check)
    with torch.no_grad():
        classes = _run(partial(logits_of, model), near).shape[1]
        made = Bounded(backend, module, kept, classes, folded)
    # The module's own call, which also infers what depends on the input.
    if not made.agrees(model, near, lambda graph, z: graph(z)):
        raise _differs(model)
    return made


def _run(function: Callable[[Tensor], Any], x: Tensor) -> Any:
    """`function(x)`, where a failure is the model's: it may run with one batch size alone."""
    try:
        return function(x.clone())
    except Exception as error:
        if isinstance(error, ArgumentError) or out_of_memory(error):
            raise
        raise UnsupportedModelError(
            f"the model fails on {len(x)} samples, as auto_LiRPA needs to run it ({first_line(error)}); give as many "
            "samples as it was exported for, or export it with a dynamic batch size"
        ) from error


def _agrees(made: Bounded, model: nn.Module, x: Tensor, ball: Ball | None) -> bool:
    """Whether graph and model compute the same at up to four samples of `x`, and at a point of the ball around each.

    At all samples where there are as many as never before: the model may treat that number in its own way.
    """
    if ball is None or not len(x):
        return True
    few = slice(None if made.samples or len(x) not in made.lengths else 4)
    made.lengths.add(len(x))
    with torch.inference_mode(False), torch.no_grad():
        x = (x.clone() if x.is_inference() else x)[few]
        near = ball[few].sample(x, 1, torch.Generator().manual_seed(len(x)))[0]
        if made.samples or few.stop is None:
            return made.agrees(model, x) and made.agrees(model, near)
        return made.agrees(model, torch.cat((x, near)))


def _differs(model: nn.Module) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(model).__name__}: auto_LiRPA's graph of it computes something else than the model "
        "(it depends on chance or on the batch size, or has a layer that is misread)"
    )


@dataclass(frozen=True)
class _Contiguous:
    """A node's backward pass on coefficients in one block of memory, which 0.3 takes them for."""

    backward: Callable[..., Any]

    def __call__(self, *coefficients: Any, **others: Any) -> Any:
        return self.backward(*(a.contiguous() if isinstance(a, Tensor) else a for a in coefficients), **others)


class _Lent:
    """The forward of a parameter's node: whatever tensor was lent to it."""

    def __init__(self, node: nn.Module) -> None:
        self.store = node._parameters

    def __call__(self) -> Tensor | None:
        return self.store["param"]


def _spread(x: Tensor, n: int) -> Tensor:
    """`n` different inputs near the first ones of `x`; drawn without touching the global generators."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((n, *x.shape[1:]), generator=generator, dtype=x.dtype).to(x.device)
    return x[:1].detach() + noise - 0.5


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """auto_LiRPA makes its identity matrices, slopes and results in torch's default dtype."""
    before = torch.get_default_dtype()
    if before == dtype:
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
