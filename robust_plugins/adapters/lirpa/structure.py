"""What a conversion bakes in: everything of a model but the values of its parameters and persistent buffers."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_MOST = 10_000
"""Values looked at in one model. What lies beyond them is told apart by comparing the graph with the model alone."""


class Structure(NamedTuple):
    """What a conversion bakes in. A model that changed in any of it must be converted again."""

    dtype: torch.dtype
    plain: tuple[Any, ...]
    """Every submodule's name, type and plain attributes; every parameter's and buffer's name and shape."""
    baked: tuple[Tensor, ...]
    """Tensors that are neither parameters nor persistent buffers: constants of the graph."""
    others: tuple[Callable[[], object], ...]
    """References to hooks, functions and objects: each must still be the same one."""
    complete: bool
    """Every layer is one of torch's own, without hooks: what they compute depends on nothing else than the above."""

    def matches(self, now: Structure) -> bool:
        """Whether a model that has the structure `now` is still what was converted."""
        return (
            self.plain == now.plain
            and len(self.baked) == len(now.baked)
            and len(self.others) == len(now.others)
            and all(a() is b() for a, b in zip(self.others, now.others, strict=True))
            and all(
                a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
                for a, b in zip(self.baked, now.baked, strict=True)
            )
        )

    def kept(self) -> Structure:
        """The same with copies of the tensors, which later changes do not reach."""
        return self._replace(baked=tuple(t.detach().clone() for t in self.baked))


def structure(model: nn.Module, dtype: torch.dtype) -> Structure:
    """The present structure of `model`. It keeps no object of the model alive but its tensors."""
    found = _Collected(model)
    complete = True
    for name, module in model.named_modules():
        found.plain.append((name, type(module)))
        found.same(vars(type(module)).get("forward"))
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            found.same(hook)
            complete = False
        complete &= type(module).__module__.startswith("torch.nn.modules.")
        for key, value in module.__dict__.items():
            if key not in _OWN:
                found.plain.append(key)
                found.add(value)
        for key, buffer in module._buffers.items():
            if buffer is not None and key in module._non_persistent_buffers_set:
                found.baked.append(buffer)
    # Tensors that are registered twice are one node of the graph, as long as they are one tensor.
    first: dict[int, int] = {}
    for name, tensor in state(model).items():
        found.plain.append((name, tensor.shape, first.setdefault(id(tensor), len(first))))
    return Structure(dtype, tuple(found.plain), tuple(found.baked), tuple(found.others), complete)


def state(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, shared ones under each of their names."""
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named.update(model.named_buffers(remove_duplicate=False))
    return named


def weights_of(model: nn.Module) -> tuple[object, ...]:
    """Tells the present weights and statistics from others: which tensors they are, and how often they changed."""
    return tuple((id(t), 0 if t.is_inference() else t._version) for t in state(model).values())


_OWN = frozenset(nn.Module().__dict__)
_CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


class _Collected:
    def __init__(self, model: nn.Module) -> None:
        self.plain: list[Any] = []
        self.baked: list[Tensor] = []
        self.others: list[Callable[[], object]] = []
        # Registered ones are looked at under their names, all others where they are met first, which ends cycles.
        registered = [*model.modules(), *state(model).values()]
        self.seen = {id(value): number for number, value in enumerate(registered)}
        self.left = _MOST

    def same(self, value: object) -> None:
        """`value` must stay the same object."""
        try:
            # Weak, for a hook may hold the model. One that died has been replaced.
            self.others.append(weakref.ref(value))
        except TypeError:
            self.others.append(lambda: value)

    def add(self, value: Any) -> None:
        """Numbers, texts and tensors by value; containers and objects by what they hold; all else by identity."""
        self.left -= 1
        if isinstance(value, (bool, int, float, complex, str, bytes, type(None), np.generic)):
            # Equal numbers of different types are different constants; NaN equals itself here.
            self.plain.append((type(value), repr(value)))
            return
        if isinstance(value, (torch.dtype, torch.device, torch.Size)):
            self.plain.append(value)
            return
        if id(value) in self.seen or self.left < 0:
            self.plain.append(self.seen.get(id(value)))
            return
        self.seen[id(value)] = len(self.seen)
        if isinstance(value, Tensor):
            self.baked.append(value)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            self.plain.append((type(value), value.dtype.str, value.shape, value.tobytes()))
        elif isinstance(value, (tuple, list, set, frozenset)):
            self.plain.append((type(value), len(value)))
            for part in value:
                self.add(part)
        elif isinstance(value, dict):
            self.plain.append((type(value), len(value)))
            for key, part in value.items():
                self.add(key)
                self.add(part)
        else:
            self.same(value)
            if not isinstance(value, _CODE):
                self.add(getattr(value, "__dict__", None))
