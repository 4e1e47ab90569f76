"""Models as people have them: objects of other libraries, what they are wrapped in, how many numbers they return."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError

_TRANSPARENT = (DistributedDataParallel, nn.DataParallel, AveragedModel)
"""Wrappers that compute what the module inside them computes, whose code cannot be traced."""


@runtime_checkable
class Estimator(Protocol):
    """A model as another library has it, ART for one: an object that predicts, around a network of its own."""

    @property
    def model(self) -> Any:
        """The network."""

    @property
    def predict(self) -> Any:
        """The method that is asked for predictions."""


Model = nn.Module | Estimator
"""The types that public calls take as a model."""

Converter = Callable[[object, Ball | None], nn.Module | None]
"""From an object given as a model, and the ball that the call is about, to the module that computes the same; None
where the object is none of those that it knows. Raises ArgumentError for one that it knows and cannot convert."""

_converters: list[Converter] = []


def converts(converter: Converter) -> Converter:
    """Registers what makes modules of another library's models; every public call asks it then."""
    _converters.append(converter)
    return converter


def as_module(model: object, ball: Ball | None) -> nn.Module:
    """`model` itself where it is a module, else what a converter makes of it, anew each time.

    The clip range of `ball`, if there is one, has to be the one that `model` was made for. Raises ArgumentError for
    anything else.
    """
    if isinstance(model, nn.Module):
        return model
    for converter in _converters:
        if (module := converter(model, ball)) is not None:
            return module
    raise ArgumentError(
        "model",
        f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__,
        accepted="a torch.nn.Module, or a PyTorchClassifier of ART",
        hint="Make an object of the class." if isinstance(model, type) else "Wrap a function in a small nn.Module.",
    )


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that computes what `model` computes, without wrappers whose code cannot be followed.

    DistributedDataParallel, DataParallel, AveragedModel and torch.compile are taken off, also around submodules: the
    parents of these are then shallow copies with the same parameters. `model` itself is never changed, and returned
    where it has no wrapper. Raises ArgumentError for wrappers that cannot be taken off.
    """
    if isinstance(model, torch.jit.ScriptModule) or not any(_wraps(module) for module in model.modules()):
        return model
    return _bare(model, {})


TORCHSCRIPT = (
    "a TorchScript module cannot be bounded, for its layers cannot be read; certify the nn.Module that it was made "
    "from, or a program of torch.export"
)
QUANTISED = (
    "a quantised module has neither gradients nor bounds; take the module in floating point that it was made from"
)


def unreadable(model: nn.Module) -> str | None:
    """Says why no certifier can bound the model, and what can be certified instead; None for others."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return TORCHSCRIPT
    return QUANTISED if is_quantised(model) else None


def is_quantised(model: nn.Module) -> bool:
    """Whether a layer computes with quantised weights, and so without gradients."""
    return any(".quantized" in type(module).__module__ for module in model.modules())


def _wraps(module: nn.Module) -> bool:
    attributes = vars(module)
    if "_fsdp_wrapped_module" in attributes.get("_modules", ()) or _is_sharded(module):
        raise ArgumentError(
            "model", f"sharded, as {type(module).__name__}", accepted="a module that has all of its parameters",
            hint="Load its full state dict into the module as it was before it was sharded.",
        )  # fmt: skip
    return (
        isinstance(module, _TRANSPARENT)
        or "_orig_mod" in attributes.get("_modules", ())
        or attributes.get("_compiled_call_impl") is not None  # by nn.Module.compile, in place
    )


def _is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` or a tensor-parallel plan has changed the module, so that it has parts of its weights."""
    # By name: importing torch.distributed.tensor takes a second.
    kind: Any = type(module)
    return _shards(kind) or any(type(t).__name__ == "DTensor" for t in module._parameters.values())


@cache
def _shards(kind: type) -> bool:
    return any(base.__name__ == "FSDPModule" for base in kind.__mro__)


def _bare(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in done:
        inner: nn.Module = module
        while isinstance(inner, _TRANSPARENT) or "_orig_mod" in inner._modules:
            if inner._forward_hooks or inner._forward_pre_hooks:
                raise ArgumentError(
                    "model", f"with a hook on its wrapper {type(inner).__name__}", accepted="hooks inside the wrapper",
                    hint="Register the hook on the module that is wrapped.",
                )  # fmt: skip
            inner = inner.module if isinstance(inner, _TRANSPARENT) else inner.get_submodule("_orig_mod")
        children = {name: None if child is None else _bare(child, done) for name, child in inner._modules.items()}
        if _wraps(inner) or any(inner._modules[name] is not child for name, child in children.items()):
            inner = copy(inner)
            inner._modules = children
            inner._compiled_call_impl = None
        done[module] = inner
    return done[module]


class TwoLogits(nn.Module):
    """A model of one output z as the two logits (-z/2, z/2), whose margin is z: what attacks and certifiers take.

    `flat` says whether z has the shape (batch,) instead of (batch, 1).
    """

    def __init__(self, model: nn.Module, *, flat: bool = False) -> None:
        super().__init__()
        self.model, self.flat = model, flat

    def forward(self, x: Any) -> Any:  # tracing sends stand-ins for tensors
        """Logits of shape (batch, 2)."""
        z = self.model(x) / 2
        if self.flat:
            z = z.unsqueeze(1)
        return torch.cat((-z, z), 1)


def logits_in(out: Any) -> Any:
    """The field `logits` of a record, which models of transformers return; anything else is returned as it is."""
    found = None if isinstance(out, Tensor) else getattr(out, "logits", None)
    return found if isinstance(found, Tensor) else out


def give_logits(model: nn.Module) -> None:
    """Makes a model that returns a record with the field `logits` return these alone, under the same names of weights.

    It does so by a hook, which copies and tracing follow; `model` must be a copy of our own.
    """
    model.register_forward_hook(_logits_alone)


def _logits_alone(module: nn.Module, given: Any, out: Any) -> Any:  # tracing sends stand-ins for tensors
    return out.logits


def same_wrapping(a: nn.Module, b: nn.Module) -> bool:
    """Whether both are one module, or wrap one module in the same way."""
    if a is b:
        return True
    if type(a) is not type(b) or not isinstance(a, TwoLogits | Logits) or not isinstance(b, TwoLogits | Logits):
        return False
    return getattr(a, "flat", None) == getattr(b, "flat", None) and same_wrapping(a.model, b.model)


class Logits(nn.Module):
    """A model that returns a record with the field `logits`, as the tensor of these."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:  # tracing sends stand-ins for tensors
        """Logits of shape (batch, classes)."""
        return self.model(x).logits


class Landed(nn.Module):
    """A model that sees each input at the nearest point of a set with gaps, and whose gradients are those there."""

    def __init__(self, model: nn.Module, ball: Ball) -> None:
        super().__init__()
        self.model, self.landed = model, ball.landed

    def forward(self, x: Any) -> Any:
        """Returns what the model returns at the point that `Ball.landed` finds."""
        return self.model(self.landed(x.detach()) + (x - x.detach()))  # the latter is zero, and has the gradient


class Untouched(nn.Module):
    """A model whose forward changes its input in place, given a copy each time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:  # tracing sends stand-ins for tensors
        """Returns what the model returns."""
        return self.model(x.clone())
