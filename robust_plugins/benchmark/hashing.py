"""Hashes of models, inputs and components: what the identity of a record is made from."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugins.benchmark.records import canonical, digest
from robust_plugins.harness.component import Component

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.Size)


def tensor_hash(t: Tensor) -> str:
    """The hash of a tensor: its values, shape and dtype, wherever it is."""
    held = t.detach().cpu().contiguous()
    content = held.flatten().view(torch.uint8).numpy().tobytes() if held.numel() else b""
    return digest(str(held.dtype), repr(tuple(held.shape)), content)


def model_hash(model: nn.Module) -> str:
    """The hash of a model's weights, buffers and architecture: its modules, their settings, and code of their own.

    Code that functions of other files hold, which a forward calls, is not in it.
    """
    parts: list[str] = []
    if isinstance(model, torch.jit.ScriptModule):
        parts.append(str(model.inlined_graph))
    for name, module in model.named_modules():
        kind = type(module)
        parts += [name, f"{kind.__module__}.{kind.__qualname__}"]
        if isinstance(module, torch.jit.ScriptModule):
            continue
        parts.append(module.extra_repr())
        own = {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training"}
        parts += [f"{key}={value!r}" for key, value in sorted(own.items()) if _plain(value)]
        if isinstance(module, torch.fx.GraphModule):
            parts.append(str(module.code))
        elif not kind.__module__.startswith("torch."):
            parts.append(_source(kind))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        parts += [name, tensor_hash(tensor)]
    return digest(*parts)


def component_hash(method: str, component: object, parameters: str) -> str:
    """The hash of a component: its registered name, its class and all parameters, as canonical JSON."""
    kind = type(component)
    return digest(method, f"{kind.__module__}.{kind.__qualname__}", parameters)


def parameters_of(component: Component, call: dict[str, Any] | None = None) -> str:
    """All parameters of a component as canonical JSON; under `call` what is given to the call besides."""
    found: dict[str, Any] = {field.name: getattr(component, field.name) for field in fields(component)}
    return canonical(found | ({"call": call} if call else {}))


def _plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_plain, value))
    return isinstance(value, _PLAIN)


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # made by a program
        return repr(sorted(vars(kind)))
