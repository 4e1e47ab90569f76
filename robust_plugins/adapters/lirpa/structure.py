"""The parts of a model that a conversion bakes in: all but the values of its parameters and persistent buffers."""

from __future__ import annotations

import array
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as _everywhere

from robust_plugins.intervals.network.fingerprint import called_otherwise
from robust_plugins.intervals.network.known import all_unpatched, as_usual, unpatched_class

_MOST = 10_000
"""Values looked at in one model. What lies beyond them is told apart by comparing the graph with the model alone."""


class Structure(NamedTuple):
    """The parts of a model that a conversion bakes in. A model that changed in any of them must be converted again."""

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
    every = list(model.named_modules(remove_duplicate=False))
    named = _state(every)
    found = _Collected([module for _, module in every], named)
    complete = True
    for hooks in (_everywhere._global_forward_hooks, _everywhere._global_forward_pre_hooks):
        for hook in hooks.values():
            found.add(hook)
            complete = False
    if called_otherwise() or not as_usual() or not all_unpatched():
        found.plain.append(object())  # equal to nothing: what a conversion calls may be another function each time
    kinds = {type(module) for _, module in every if type(module).__module__.startswith("torch.nn.modules.")}
    if not all(map(unpatched_class, kinds)):
        found.plain.append(object())
    for name, module in {id(module): (name, module) for name, module in reversed(every)}.values():
        found.plain.append((name, type(module)))
        own = type(module).__module__.startswith(_COMPLETE)
        if own:
            for key in _CODE:
                if (code := vars(type(module)).get(key)) is not None:
                    found.same(code)
        else:
            found.inherited(type(module))
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            found.add(hook)
            complete = False
        complete &= own
        for key, value in module.__dict__.items():
            if key not in _OWN:
                found.plain.append(key)
                found.add(value)
                complete &= not callable(value) or isinstance(value, type)
        for key, buffer in module._buffers.items():
            if buffer is not None and key in module._non_persistent_buffers_set:
                found.baked.append(buffer)
    # Tensors that are registered twice are one node of the graph, as long as they are one tensor.
    first: dict[int, int] = {}
    for name, tensor in named.items():
        found.plain.append((name, tensor.shape, tensor.dtype, first.setdefault(id(tensor), len(first))))
    complete &= found.left >= 0
    return Structure(dtype, tuple(found.plain), tuple(found.baked), tuple(found.others), complete)


def plain(model: nn.Module) -> bool:
    """Whether the model runs no code but that of torch's own layers, which change nothing in evaluation mode."""
    if _everywhere._global_forward_hooks or _everywhere._global_forward_pre_hooks:
        return False
    return not any(
        not type(module).__module__.startswith("torch.nn.modules.")
        or module._forward_hooks
        or module._forward_pre_hooks
        or "forward" in vars(module)
        for module in model.modules()
    )


def state(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, shared ones under each of their names."""
    return _state(list(model.named_modules(remove_duplicate=False)))


def _state(modules: list[tuple[str, nn.Module]]) -> dict[str, Tensor]:
    """`state` of the model whose modules these are; parameters come first, as torch orders them."""
    return {
        f"{prefix}.{name}" if prefix else name: tensor
        for kind in ("_parameters", "_buffers")
        for prefix, module in modules
        for name, tensor in vars(module)[kind].items()
        if tensor is not None
    }


def weights_of(model: nn.Module) -> tuple[object, ...]:
    """Tells the present weights and statistics from others: which tensors they are, and how often they changed."""
    return tuple((id(t), 0 if t.is_inference() else t._version) for t in state(model).values())


_OWN = frozenset(nn.Module().__dict__)
_COMPLETE = ("torch.nn.modules.", "robust_plugins.harness.")
_CODE = ("forward", "_conv_forward")
"""What layers of torch compute with; either may be replaced."""
_LIBRARIES = ("torch", "numpy", "robust_plugins", "jaxtyping", "beartype")
"""Packages whose code is not looked into: what it refers to does not change."""


@cache
def _names(code: types.CodeType) -> tuple[str, ...]:
    """The globals and attributes that code refers to, that of functions inside it included."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return tuple(dict.fromkeys((*code.co_names, *inner)))


def _of_library(value: Any) -> bool:
    name = getattr(value, "__module__", None) or getattr(value, "__name__", None) or ""
    package = str(name).partition(".")[0]
    return package in _LIBRARIES or package in sys.stdlib_module_names


class _Collected:
    def __init__(self, modules: list[nn.Module], named: dict[str, Tensor]) -> None:
        self.plain: list[Any] = []
        self.baked: list[Tensor] = []
        self.others: list[Callable[[], object]] = []
        # Registered ones are looked at under their names, all others where they are met first, which ends cycles.
        registered = [*modules, *named.values()]
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
        # A bound method is made anew at each look.
        if self.left < 0 or (id(value) in self.seen and not isinstance(value, types.MethodType)):
            self.plain.append(self.seen.get(id(value)))
            return
        if not isinstance(value, types.MethodType):
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
        elif isinstance(value, (deque, array.array, bytearray)):
            self.plain.append((type(value), len(value)))
            for part in value:
                self.add(part)
        elif isinstance(value, types.MethodType):
            self.same(value.__func__)
            self.add(value.__func__)
            self.add(value.__self__)
        elif isinstance(value, partial):
            for part in (value.func, value.args, value.keywords):
                self.add(part)
        else:
            self.same(value)
            self._look_into(value)

    def inherited(self, kind: type) -> None:
        """The functions and values of a class and those that it inherits, as far as they are no library's."""
        for base in kind.__mro__:
            if _of_library(base) or base is object:
                continue
            for key, value in vars(base).items():
                if not key.startswith("__") or isinstance(value, types.FunctionType):
                    self.plain.append(key)
                    self.add(value)

    def _look_into(self, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            if not _of_library(value):
                self._function(value)
        elif isinstance(value, (staticmethod, classmethod)):
            self.add(value.__func__)
        elif isinstance(value, property):
            self.add(value.fget)
        elif isinstance(value, type):
            if not _of_library(value):
                self.inherited(value)
        elif not isinstance(value, (types.ModuleType, types.BuiltinFunctionType)):
            self.add(getattr(value, "__dict__", None))
            for base in type(value).__mro__:
                for name in _slots(base):
                    self.add(getattr(value, name, None))
            if isinstance(value, nn.Module) and not type(value).__module__.startswith(_COMPLETE):
                self.inherited(type(value))

    def _function(self, function: types.FunctionType) -> None:
        """Collects what a function refers to: closure, defaults, globals, and values of modules that it names."""
        self.add(function.__defaults__)
        self.add(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not filled yet
                self.plain.append(None)
        names = _names(function.__code__)
        self.same(function.__code__)
        for name in names:
            if name not in function.__globals__:
                continue
            value = function.__globals__[name]
            if not isinstance(value, types.ModuleType):
                self.add(value)
            elif not _of_library(value):
                for inner in names:
                    if inner in vars(value):
                        self.add(vars(value)[inner])


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))
