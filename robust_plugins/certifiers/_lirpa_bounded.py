"""auto_LiRPA's bounded modules: built once per model and shape, and lent the model's present weights at every call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from robust_plugins.certifiers import _lirpa_compat
from robust_plugins.certifiers._lirpa_compat import LiRPA
from robust_plugins.certifiers._lirpa_graph import Folded, evaluate_weights, fold_input, kind
from robust_plugins.certifiers._lirpa_rewrite import convertible
from robust_plugins.certifiers._lirpa_support import unsupported
from robust_plugins.errors import UnsupportedModelError


class Recipe(NamedTuple):
    """How a model is converted: with the model and the input's shape, the key of the cache."""

    options: tuple[tuple[str, Any], ...] = ()
    """auto_LiRPA's `bound_opts`."""
    fold: bool = True
    """Cut a normalisation off the front of the graph, which is exact for boxes and for no other ball."""
    convolve: bool = False
    """Replace average pooling by the convolution that it is: 0.3 gets its linear bounds wrong, or fails."""


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
    failures: dict[str, UnsupportedModelError] = field(default_factory=dict)
    """Per method, why it cannot bound this model."""
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


_KEPT = ("lower", "upper", "interval", "forward_value", "d", "lA", "uA", "lower_d", "linear", "center", "aux")


_cache: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Bounded]] = WeakKeyDictionary()


def bounded(model: nn.Module, x: Tensor, recipe: Recipe) -> Bounded:
    """`model` converted for inputs like `x` (any batch size), from the cache where its structure is unchanged.

    Raises UnsupportedModelError, naming the layer, where auto_LiRPA cannot convert it, and PluginError where
    auto_LiRPA is missing.
    """
    _lirpa_compat.load()
    entries = _cache.setdefault(model, {})
    key = (x.shape[1:], x.dtype, x.device, recipe)
    structure = structure(model, x.dtype)
    for candidate in (key, (*key, len(x))):
        found = entries.get(candidate)
        if found is not None and found.structure.matches(structure):
            return found
    refused: list[str] = []
    try:
        with torch.inference_mode(False):
            x = x.clone() if x.is_inference() else x
            made, fixed = _made(model, x, recipe, structure, refused)
    except Exception as error:

        def attempt(layer: nn.Module, at: Tensor) -> None:
            trial(layer, at, recipe)

        raise unsupported(error, model, x[:1], attempt, refused) from error
    entries[(*key, len(x)) if fixed else key] = made
    return made


def trial(model: nn.Module, x: Tensor, recipe: Recipe) -> Bounded:
    """`model` converted for this one use. Raises whatever auto_LiRPA raises."""
    return _made(model, x, recipe, structure(model, x.dtype), [])[0]


def _made(
    model: nn.Module, x: Tensor, recipe: Recipe, structure: Structure, refused: list[str]
) -> tuple[Bounded, bool]:
    """`model` converted, and whether that serves the batch size of `x` alone."""
    kept = structure._replace(baked=tuple(t.detach().clone() for t in structure.baked))
    make = partial(_converted, model, recipe=recipe, structure=kept, refused=refused)
    try:
        return make(x[:1].expand(2, *x.shape[1:]).clone(), 3), False
    except Exception:
        # Some models trace the batch size into the graph.
        if len(x) == 2 or refused:
            raise
        return make(x.clone(), len(x)), True


def _converted(
    model: nn.Module, x: Tensor, check: int, *, recipe: Recipe, structure: Structure, refused: list[str]
) -> Bounded:
    """`model` converted at `x`, and compared with itself on another batch, of `check` samples.

    A branch or a shape that was traced wrongly, or a layer that is misread, would give unsound bounds.
    """
    backend = _lirpa_compat.load()
    twin = convertible(model, x, convolve=recipe.convolve and backend.legacy)
    with backend.tracing(refused), default_dtype(x.dtype), torch.no_grad():
        # Buffers are weights, not inputs: they have no batch axis. (0.3 knows no such option, see below.)
        settings = {"buffers": {"no_batchdim": True}, **dict(recipe.options)}
        module = backend.module_class(twin, x, bound_opts=settings, device=x.device)
    module.eval()
    for node in module.children():
        if backend.legacy:
            # Inferred again from the inputs by the evaluation below.
            node.from_input = kind(node) == "BoundInput"
        if "param" in node._parameters:
            # The backend's own forward sets requires_grad of the user's parameter to the mode of the node.
            object.__setattr__(node, "forward", _Lent(node))
    # One release keeps these in a dictionary shared by all modules: ours must not change others'.
    module.bound_opts["optimize_bound_args"] = dict(module.bound_opts["optimize_bound_args"])
    evaluate_weights(module)
    folded = fold_input(module) if recipe.fold and backend.legacy else Folded(())
    near = _spread(x, check)
    with torch.no_grad():
        expected = model(near)
        made = Bounded(backend, module, structure, expected.shape[1], folded)
        with made.using(model):
            found = module(folded(near))
    tolerance = 1e3 * torch.finfo(x.dtype).eps
    scale = float(expected.nan_to_num().abs().amax()) + 1
    if found.shape != expected.shape or not torch.allclose(
        found, expected, rtol=0, atol=tolerance * scale, equal_nan=True
    ):
        raise UnsupportedModelError(
            f"{type(model).__name__}: auto_LiRPA's graph of it computes something else than the model "
            "(a branch on the input's values or on the batch size, or a layer that it misreads)"
        )
    return made


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
