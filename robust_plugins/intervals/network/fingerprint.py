"""Returns what a model's graph depends on, where that can be known without running the model.

It can for models made of nothing but the layers of `torch.nn` that have rules: what they compute is written in their
attributes. The code of other models can read anything (globals, variables that it closes over, the clock), so that
only tracing it again tells.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

from robust_plugins.intervals.rules.registry import BUILTIN, Rules

Fingerprint = tuple[Hashable, ...]

_INTERNAL = frozenset(vars(nn.Module()))
"""What every module has; of it only the hooks and the children matter here."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_CALL = {name: vars(nn.Module)[name] for name in ("__call__", "_wrapped_call_impl", "_call_impl", "__getattr__")}
_SEQUENTIAL = Rules(nn.Sequential)


def fingerprint(model: nn.Module) -> Fingerprint | None:
    """All that the graph of a model is made from, apart from its tensors; None where it cannot be known."""
    if any(vars(nn.Module)[name] is not method for name, method in _CALL.items()) or hooked_everywhere():
        return None
    found: list[Hashable] = []
    met: dict[int, int] = {}
    waiting: list[tuple[str, nn.Module | None]] = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if module is None:
            return None
        # A graph calls a module that stands in several places by one of its names: it is another where they part.
        place = met.setdefault(id(module), len(met))
        attributes = vars(module)
        kind = type(module)
        rules = _SEQUENTIAL if kind is nn.Sequential else BUILTIN.get(kind)
        if rules is None or not kind.__module__.startswith("torch.nn.") or not rules.describe(module):
            return None
        if any(attributes[name] for name in _HOOKS):
            return None
        own = tuple((name, _plain(value)) for name, value in attributes.items() if name not in _INTERNAL)
        if any(value is _UNKNOWN for _, value in own):
            return None
        found.append((path, place, kind, own, tuple(attributes["_parameters"]), tuple(attributes["_buffers"])))
        children = attributes["_modules"]
        if children and kind is not nn.Sequential:
            return None
        waiting.extend((f"{path}.{name}", child) for name, child in children.items())
    return tuple(found)


def hooked_everywhere() -> bool:
    """Whether hooks are registered for the modules of the whole process."""
    module = torch.nn.modules.module
    return bool(
        module._global_forward_hooks
        or module._global_forward_pre_hooks
        or module._global_backward_hooks
        or module._global_backward_pre_hooks
    )


def called_otherwise() -> bool:
    """Whether somebody has replaced how modules are called."""
    return any(vars(nn.Module)[name] is not method for name, method in _CALL.items())


_UNKNOWN = object()


def _plain(value: Any) -> Any:
    """A value that can be compared, and that nobody can change; `_UNKNOWN` for others."""
    if type(value) in (int, float, bool, str, type(None)):
        return value
    if isinstance(value, list | tuple):
        parts = tuple(_plain(v) for v in value)
        return _UNKNOWN if any(p is _UNKNOWN for p in parts) else parts
    return _UNKNOWN
