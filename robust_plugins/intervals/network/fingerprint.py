"""Returns what a model's graph depends on, where that can be known without running the model.

It can for the layers of `torch.nn` that have rules: what they compute is written in their attributes. It can for
modules of others, where their code looks up nothing but attributes of numbers and texts, layers, weights, calls that
the engine knows, and functions of which the same is true. All other code can read anything (the clock, a file, what
a variable that it closes over holds), so that only tracing it again tells.
"""

from __future__ import annotations

import builtins
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugins.intervals.network.code import reads
from robust_plugins.intervals.network.known import (
    FUNCTIONS,
    METHODS,
    MODULES,
    SLOTS,
    as_usual,
    unpatched,
    unpatched_class,
)
from robust_plugins.intervals.rules.registry import BUILTIN, Rules, current

Fingerprint = tuple[Hashable, ...]

_INTERNAL = frozenset(vars(nn.Module()))
"""What every module has; of it only the hooks and the children matter here."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_KEPT = ("_modules", "_parameters", "_buffers")
_CALL = {name: vars(nn.Module)[name] for name in ("__call__", "_wrapped_call_impl", "_call_impl", "__getattr__")}
_CONTAINERS: dict[type[nn.Module], Rules] = {
    kind: Rules(kind) for kind in (nn.Sequential, nn.ModuleList, nn.ModuleDict)
}
_CHANGES_NO_CALL = frozenset(
    ("__init__", "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__repr__",
     "__parameters__", "__orig_bases__", "__abstractmethods__", "_abc_impl", "__firstlineno__",
     "__static_attributes__", "__type_params__", SLOTS, "forward", "train", "extra_repr", "dump_patches")
)  # fmt: skip
"""What a class may define of that which every module has, or Python calls by itself."""
_BUILTINS = {
    name: vars(builtins)[name]
    for name in ("bool", "enumerate", "float", "int", "isinstance", "len", "list", "max", "min", "range", "reversed",
                 "sum", "super", "tuple", "zip")
}  # fmt: skip


class _UnknownError(Exception):
    """Only tracing tells."""


def fingerprint(model: nn.Module) -> Fingerprint | None:
    """All that the graph of a model is made from, apart from its tensors' values; None where it cannot be known."""
    if called_otherwise() or hooked_everywhere() or not as_usual():
        return None
    try:
        return _Reading(model).found
    except _UnknownError:
        return None


def settings(layer: nn.Module) -> Hashable:
    """The attributes of one layer that are no tensors or parts of it; for other than plain ones, equal to nothing."""
    try:
        return tuple((name, plain(value)) for name, value in vars(layer).items() if name not in _INTERNAL)
    except _UnknownError:
        return object()


class _Reading:
    """Collects the parts of a model, and then what its own code looks up."""

    def __init__(self, model: nn.Module) -> None:
        self._parts: list[Hashable] = [torch.get_default_dtype()]
        self._places: dict[int, int] = {}
        self._own: dict[type[nn.Module], None] = {}
        """Types with code of their own."""
        self._layers: dict[type[nn.Module], None] = {}
        self._names: set[str] = set()
        """Every attribute of every module."""
        self._on_tensors: set[str] = set()
        """Attributes that somebody has given to a parameter or buffer."""
        waiting: list[tuple[str, nn.Module | None]] = [("", model)]
        while waiting:
            path, module = waiting.pop()
            if module is None or id(module) in self._places:
                # A graph calls a module that stands in several places by one of its names: it is another where they
                # part. The same is true of parameters.
                self._parts.append((path, self._place(module)))
                continue
            children = self._module(path, module)
            waiting.extend((f"{path}.{name}", child) for name, child in children.items())
        if self._own:
            self._code()
        self.found = tuple(self._parts)

    def _module(self, path: str, module: nn.Module) -> dict[str, nn.Module | None]:
        attributes, kind = vars(module), type(module)
        if any(type(attributes.get(name)) not in (dict, OrderedDict) for name in _KEPT):
            raise _UnknownError
        children: dict[str, nn.Module | None] = attributes["_modules"]
        if any(attributes.get(name) for name in _HOOKS):
            raise _UnknownError
        rules = _CONTAINERS.get(kind) or BUILTIN.get(kind)
        if rules is not None and kind.__module__.startswith("torch.nn."):
            if not rules.describe(module) or (children and kind not in _CONTAINERS):
                raise _UnknownError
            if kind not in self._layers and not unpatched_class(kind):
                raise _UnknownError
            self._layers[kind] = None
        elif kind.__mro__[-2] is nn.Module and not any(b.__module__.startswith("torch.") for b in kind.__mro__[:-2]):
            self._own[kind] = None
        else:
            raise _UnknownError
        own = {name: value for name, value in attributes.items() if name not in _INTERNAL}
        tensors = {**attributes["_parameters"], **attributes["_buffers"]}
        self._names.update(own, tensors, children)
        part: Hashable = (
            path, self._place(module), kind,
            tuple((name, plain(value)) for name, value in own.items()),
            tuple((name, self._tensor(t)) for name, t in tensors.items()),
        )  # fmt: skip
        self._parts.append(part)
        return children

    def _place(self, thing: object) -> int:
        return self._places.setdefault(id(thing), len(self._places))

    def _tensor(self, t: Tensor | None) -> Hashable:
        if t is None:
            return None
        if type(t) not in (Tensor, nn.Parameter):
            raise _UnknownError
        self._on_tensors.update(vars(t))
        return self._place(t), t.shape, t.dtype, t.device, t.layout, t.requires_grad

    def _code(self) -> None:
        """Adds whatever the code of the model's own types looks up, directly or through functions of theirs."""
        bases: dict[type, None] = {}
        for kind in self._own:
            bases |= dict.fromkeys(kind.__mro__[:-2])
            self._parts.append(kind.__mro__)
        table = current()
        for base in bases:
            defined = vars(base).keys() - _CHANGES_NO_CALL
            if table.get(base) or any(name in vars(nn.Module) or name.startswith("__") for name in defined):
                raise _UnknownError
        seen, read = {"forward"}, set[FunctionType]()
        names, functions = ["forward"], list[FunctionType]()
        while names or functions:
            if functions:
                if (function := functions.pop()) not in read:
                    read.add(function)
                    more = [name for name in self._function(function, functions) if name not in seen]
                    seen.update(more)
                    names += more
                continue
            name = names.pop()
            found = [(base, vars(base)[name]) for base in bases if name in vars(base)]
            self._attribute(name, bool(found))
            for base, value in found:
                inner = _function_of(value)
                # The same code may stand in other functions, which have other defaults or are bound otherwise.
                found_there: Hashable = plain(value) if inner is None else self._place(inner)
                self._parts.append((base, name, type(value), found_there))
                if inner is not None:
                    functions.append(inner)

    def _attribute(self, name: str, in_class: bool) -> None:
        """Raises unless an attribute of this name is one of the model's, or says the same of the same tensor."""
        if name in self._on_tensors:
            raise _UnknownError
        if name in METHODS and name not in self._names:
            if getattr(Tensor, name, None) is not METHODS[name]:
                raise _UnknownError
        elif name in METHODS:  # of a tensor, or a part of a module with that name, unless its class has one, too
            if any(hasattr(kind, name) for kind in (nn.Module, *self._layers)):
                raise _UnknownError
        elif name not in ("forward", "training"):
            own = in_class or name in self._names
            if not own or any(hasattr(kind, name) for kind in (Tensor, nn.Module, *self._layers)):
                raise _UnknownError

    def _function(self, function: FunctionType, others: list[FunctionType]) -> Iterable[str]:
        """Adds what a function's code looks up by global names, and returns the attributes that it looks up.

        Functions that it finds and that are not known are added to `others`.
        """
        found = reads(function.__code__)
        if found is None or vars(function) or type(function.__globals__) is not dict:
            raise _UnknownError
        cells = [cell.cell_contents for cell in function.__closure__ or ()]  # the class that `super` begins at
        self._parts += (function.__code__, plain(function.__defaults__), plain(function.__kwdefaults__), *cells)
        for chain in found.chains:
            value = _resolved(chain, function)
            if isinstance(value, FunctionType) and value not in FUNCTIONS:
                others.append(value)
                self._parts += (chain, self._place(value))
            else:
                self._parts += (chain, plain(value))
        return found.attributes


def _function_of(value: Any) -> FunctionType | None:
    """The function behind an attribute of a class; None where it is something else."""
    kind = type(value)
    inner = value.fget if kind is property else value.__func__ if kind in (staticmethod, classmethod) else value
    return inner if isinstance(inner, FunctionType) else None


def _resolved(chain: tuple[str, ...], function: FunctionType) -> Any:
    """The value of a global name with the attributes behind it, as `function` would find it."""
    first, *attributes = chain
    known = function.__globals__
    if first not in known:
        anything: Any = function  # types of some releases of mypy know its builtins, of others not
        value = anything.__builtins__.get(first)
        if attributes or first not in _BUILTINS or value is not _BUILTINS[first]:
            raise _UnknownError
        return value
    value = known[first]
    for name in attributes:
        if not (isinstance(value, ModuleType) and value in MODULES and name in vars(value)):
            raise _UnknownError
        value = vars(value)[name]
    if isinstance(value, ModuleType):  # passed on, who knows where
        raise _UnknownError
    return value


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


LONG = 1000
"""Entries of a list from which on it is not looked through at every call."""
DEEP = 8
"""Lists inside each other from which on they are not: a list may hold itself."""
_IMMUTABLE = (str, type(None), torch.dtype, torch.device)


def plain(value: Any, depth: int = 0) -> Hashable:
    """A value that can be compared, and that nobody can change. Raises for others."""
    kind = type(value)
    if kind in _IMMUTABLE:
        return value  # type: ignore[no-any-return]
    if kind in (int, bool):
        return kind, value
    if kind is float:
        return kind, repr(value)  # 0.0 and -0.0 are equal, and not the same
    if kind in (list, tuple, dict, torch.Size) and len(value) < LONG and depth < DEEP:
        values = value if kind is not dict else [part for item in value.items() for part in item]
        return (kind, *(plain(part, depth + 1) for part in values))
    if kind in (FunctionType, BuiltinFunctionType, type) and (
        (value in FUNCTIONS and unpatched(value)) or any(value is f for f in _BUILTINS.values())
    ):
        return value  # type: ignore[no-any-return]
    raise _UnknownError
