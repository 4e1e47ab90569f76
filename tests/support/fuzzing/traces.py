"""Whether a call has left the user's model and inputs as they were."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_INTERNAL = {"_parameters", "_buffers", "_modules"}


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything of the model that a caller can see, with copies of its tensors."""
    state: dict[str, Any] = {"random state": torch.get_rng_state(), "dtype": torch.get_default_dtype()}
    for name, module in model.named_modules():
        state[f"{name}: class"] = type(module)
        for key, value in vars(module).items():
            if key in _INTERNAL:
                state[f"{name}: {key}"] = list(value)
            elif not key.startswith("_") or key.endswith("_hooks"):
                state[f"{name}.{key}"] = _copied(value)
    for name, parameter in model.named_parameters():
        state[f"{name}.requires_grad"] = parameter.requires_grad
        state[f"{name}.grad"] = None if parameter.grad is None else parameter.grad.clone()
        state[name] = parameter.detach().clone()
    for name, buffer in model.named_buffers():
        state[name] = buffer.detach().clone()
    return state


def changed(before: dict[str, Any], model: nn.Module, *, writes: bool) -> str:
    """What differs from `before`, or an empty string.

    With `writes`, forward itself writes tensors and numbers into attributes: these alone may have changed.
    """
    after = snapshot(model)
    for what in before.keys() | after.keys():
        if what in before and what in after and _same(before[what], after[what]):
            continue
        if not (writes and "." in what and what not in dict(model.named_buffers()) and _plain(after.get(what))):
            return f"{what}: {str(before.get(what, 'absent'))[:60]} became {str(after.get(what, 'absent'))[:60]}"
    return ""


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor) and type(value) is Tensor:
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(v) for v in value]
    return value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a is b or (type(a) is type(b) and not isinstance(a, nn.Module) and a == b))


def _plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    if isinstance(value, list):
        return all(map(_plain, value))
    return type(value) in (Tensor, int, float)
