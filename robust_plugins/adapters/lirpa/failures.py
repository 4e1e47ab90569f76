"""Turns a failure inside auto_LiRPA into the name of the layer that it cannot bound."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType

import torch
from torch import Tensor, nn

from robust_plugins.errors import RobustPluginsError, UnsupportedModelError

Attempt = Callable[[nn.Module, Tensor], object]
"""Converts or bounds a model at an input; raises where the backend cannot."""


def unsupported(error: Exception, model: nn.Module, x: Tensor, attempt: Attempt, operators: list[str]) -> Exception:
    """The error to raise `from error`, which `attempt(model, x)` raised: an UnsupportedModelError naming the layer.

    Every layer is attempted on its own, in the order of the forward pass, and the first that fails is the culprit.
    Where each passes alone, the message names the operators that the conversion refused, or the graph's node in which
    it failed. What is no failure of the backend (an error of this package, a defect in it, exhausted memory) comes
    back unchanged.
    """
    if isinstance(error, RobustPluginsError) or out_of_memory(error) or not inside_backend(error):
        return error
    where = _culprit(model, x, attempt)
    if where is None and operators:
        where = f"the operation{'s' if len(operators) > 1 else ''} {', '.join(dict.fromkeys(operators))}"
    if where is None:
        where = _node(error) or "this combination of layers"
    return UnsupportedModelError(f"auto_LiRPA cannot bound {where} of {type(model).__name__}: {first_line(error)}")


def leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules without children, with their names: the layers."""
    return [(name, m) for name, m in model.named_modules() if name and not any(m.children())]


def layer(name: str, module: nn.Module) -> str:
    """`ELU (module 'features.3')`."""
    return f"{type(module).__name__} (module {name!r})"


def _culprit(model: nn.Module, x: Tensor, attempt: Attempt) -> str | None:
    inputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: _record(inputs, name, args))
        for name, module in leaves(model)
    ]
    try:
        with torch.no_grad(), contextlib.suppress(Exception):  # it may run with one batch size alone
            model(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    modules = dict(leaves(model))
    for name, value in inputs.items():
        try:
            attempt(nn.Sequential(modules[name], nn.Flatten()), value)
        except Exception as error:
            if not out_of_memory(error):
                return layer(name, modules[name])
    return None


def _record(inputs: dict[str, Tensor], name: str, arguments: tuple[object, ...]) -> None:
    if len(arguments) == 1 and isinstance(arguments[0], Tensor) and arguments[0].is_floating_point():
        inputs.setdefault(name, arguments[0].detach().clone())


def _frames(traceback: TracebackType | None) -> list[TracebackType]:
    frames = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    return frames


def inside_backend(error: Exception) -> bool:
    """Whether the innermost frame that is ours or the backend's is the backend's."""
    for entry in reversed(_frames(error.__traceback__)):
        package = str(entry.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in ("auto_LiRPA", "robust_plugins"):
            return package == "auto_LiRPA"
    return False


def _node(error: Exception) -> str | None:
    """The operator of the innermost graph node on the stack."""
    for entry in reversed(_frames(error.__traceback__)):
        node = entry.tb_frame.f_locals.get("self")
        name = type(node).__name__
        if isinstance(node, nn.Module) and name.startswith("Bound") and name != "BoundedModule":
            return f"the operation {name.removeprefix('Bound')}"
    return None


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, which says nothing about the model."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "not enough memory" in str(error)


def first_line(error: Exception) -> str:
    """The type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0] if lines else ''}"
