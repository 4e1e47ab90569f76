"""`calling`: what every final public call does around the component that it runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.errors import ComponentError, PluginError
from robust_plugins.harness.arguments import check_inputs
from robust_plugins.harness.evaluation import evaluating, evaluation_mode, synchronize, torch_random_states
from robust_plugins.harness.guard import Found, Kind
from robust_plugins.harness.wrappers import Model, as_module, unwrapped

_lock = threading.RLock()
# One lock for all models: modes and flags belong to a model, but the random generators that calls seed and put back,
# and torch's default dtype, belong to the process.

_DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "xla")
"""The types of devices that autocasting can be switched on for."""


@dataclass(eq=False)
class Call:
    """A public call while it runs. `model` is the module to run, and `x` an ordinary tensor."""

    model: nn.Module
    x: Tensor
    found: Found | None = None
    start: float = field(default=0.0, init=False)
    seconds: float = field(default=0.0, init=False)
    """Wall-clock time, the device's work included; known when the call has ended."""

    def check(self, component: object, *, tolerated: Collection[Kind] = ()) -> None:
        """Puts back what the component has changed of the model, before anything is said about its answer.

        Raises ComponentError, naming the places, for changes other than the kinds `tolerated` and those that the
        model's own forward makes.
        """
        changes = [] if self.found is None else self.found.settle()
        own = set()
        if self.found is not None and any(change.kind not in tolerated for change in changes):
            # At two inputs: what the first one writes may be what was there before.
            for scale in (1.0, 0.5):
                with suppress(Exception), torch.no_grad():
                    self.model(scale * self.x[:1])
                own |= set(self.found.settle())
        bad = [str(change) for change in changes if change.kind not in tolerated and change not in own]
        if bad:
            named = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
            raise ComponentError(f"{component} changed the model ({named}), which was put back; its answer is void")


@contextmanager
def calling(
    model: Model,
    x: Float[Tensor, "batch *features"],
    ball: Ball | None = None,
    *,
    seed: int | None = None,
    freeze: bool = False,
    guarded: bool = True,
    thorough: bool = True,
) -> Iterator[Call]:
    """Runs a component on `model` at `x` as every public call does, and leaves everything as found.

    Inside, whatever was around it: no inference mode, no autocasting, float32 as the default dtype unless it is that of
    `x`, tensors made on the CPU by default, the gradient mode of the caller; the model without the wrappers that
    compute the same, in evaluation mode, its gradients out of the way. Calls in several threads wait for each other,
    because they share the model's mode and the random states.

    - `ball`: checks the model, `x` and the ball as `check_inputs` does, before anything else.
    - `seed`: seeds torch, numpy and python inside; their states are restored in any case.
    - `freeze`: weights need no gradients inside.
    - `guarded`: everything of the model is compared and restored, and the random states are. Without it, for
      components that are known to leave them alone, its mode is, the buffers that its own forward may write, and
      torch's own random states, from which its forward may draw.
    - `thorough`: all weights are compared. Without it, for calls that training makes at every step, large weights
      whose version counters stand still are compared in places.

    Raises PluginError, with what is missing, where the component imports a module that is not there.
    """
    gradients = torch.is_grad_enabled()
    with _lock, ExitStack() as stack:
        # A call in another thread may have the model in another state until now.
        given = as_module(model, None) if ball is None else check_inputs(model, x, ball)
        stack.enter_context(neutral(x.dtype))
        stack.enter_context(torch.set_grad_enabled(gradients))  # leaving inference mode switches gradients on
        model = unwrapped(given)
        stack.enter_context(_ordinary_weights(model))
        call = Call(model, ordinary(x))
        synchronize(x)
        call.start = time.perf_counter()
        if guarded:
            call.found = stack.enter_context(evaluating(model, seed=seed, freeze=freeze, thorough=thorough))
        else:
            stack.enter_context(evaluation_mode(model))
            stack.enter_context(_kept_buffers(model))
            stack.enter_context(torch_random_states())
        try:
            yield call
        except ImportError as error:  # a backend is found by its name alone; what it needs itself may be missing
            raise PluginError(
                f"a module that the component needs cannot be imported ({error}); install it, or its backend again "
                "with all that it needs"
            ) from error
        synchronize(x)
        call.seconds = time.perf_counter() - call.start


@overload
def ordinary(t: Tensor) -> Tensor: ...
@overload
def ordinary(t: Tensor | None) -> Tensor | None: ...


def ordinary(t: Tensor | None) -> Tensor | None:
    """`t`, copied where it is an inference tensor, which could not be differentiated; to be used inside `calling`."""
    return t.clone() if isinstance(t, Tensor) and t.is_inference() else t


@contextmanager
def neutral(dtype: torch.dtype) -> Iterator[None]:
    """No inference mode, no autocasting, float32 as the default dtype unless it is `dtype`, the CPU as the default
    device: whatever is around the block. The gradient mode is on where inference mode was left.
    """
    before, casting = torch.get_default_dtype(), [d for d in _DEVICES if torch.is_autocast_enabled(d)]
    device = torch.get_default_device()
    aside: AbstractContextManager[object] = nullcontext() if device.type == "cpu" else torch.device("cpu")
    with torch.inference_mode(False), aside:
        try:
            for d in casting:
                torch.set_autocast_enabled(d, False)
            if before != dtype:
                torch.set_default_dtype(torch.float32)
            yield
        finally:
            torch.set_default_dtype(before)
            for d in casting:
                torch.set_autocast_enabled(d, True)


@contextmanager
def _ordinary_weights(model: nn.Module) -> Iterator[None]:
    """Copies in the place of weights and buffers that were made in inference mode."""
    kept = [held for m in model.modules() for held in (m._parameters, m._buffers) if held]
    if not any(t.is_inference() for held in kept for t in held.values() if t is not None):
        yield
        return
    before: list[tuple[Any, Any]] = []
    for module in model.modules():
        before += [(kept, dict(kept)) for kept in (module._parameters, module._buffers)]
        for name, p in module._parameters.items():
            if p is not None and p.is_inference():
                module._parameters[name] = nn.Parameter(p.clone(), requires_grad=p.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = ordinary(buffer)
    try:
        yield
    finally:
        for kept, was in before:
            kept.update(was)


@contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[None]:
    """Puts back the buffers that a model writes when it is run."""
    before = [(held, dict(held)) for held in (m._buffers for m in model.modules()) if held]
    values = [(t, t._version, t.detach().clone()) for _, was in before for t in was.values() if t is not None]
    try:
        yield
    finally:
        for held, was in before:
            if any(held.get(name) is not t for name, t in was.items()):
                held.update(was)
        with torch.no_grad():
            for tensor, version, value in values:
                if tensor._version != version:
                    tensor.copy_(value)


def _unlocked_in_children() -> None:
    global _lock
    _lock = threading.RLock()  # a thread of the parent may hold it, and is not there to release it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlocked_in_children)
