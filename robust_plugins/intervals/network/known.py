"""Functions, methods and classes of torch of which is known what they compute, and that nobody has replaced."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from functools import cache
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.intervals.network.calls import known_calls
from robust_plugins.intervals.network.symbolic import SHAPES

MODULES: frozenset[ModuleType] = frozenset((torch, torch.nn, F, math))
"""Those whose attributes may be looked up in code."""


def of_torch(value: Any) -> bool:
    """Whether something is torch's own: wrappers may copy a name and a module, but not where their code stands."""
    if isinstance(value, FunctionType):
        return str(value.__globals__.get("__name__")).startswith("torch") and not vars(value)
    return isinstance(value, BuiltinFunctionType) or inspect.isroutine(value) or inspect.isdatadescriptor(value)


class Called(NamedTuple):
    """A function of torch: where the code that calls it looks it up, and what it was when it was first seen."""

    place: Mapping[str, Any]
    name: str
    function: Any
    code: tuple[Any, ...]

    def same(self) -> bool:
        """Whether it is still there, and does what it did."""
        return self.place.get(self.name) is self.function and (not self.code or _same(_code(self.function), self.code))


def _code(function: Any) -> tuple[Any, ...]:
    if not isinstance(function, FunctionType):
        return ()
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _same(one: tuple[Any, ...], two: tuple[Any, ...]) -> bool:
    return all(a is b for a, b in zip(one, two, strict=True))


def _behind(function: Any, seen: set[Any]) -> Iterator[Called]:
    """Those that the code of a function of torch calls, directly or through others of `torch.nn.functional`."""
    if not isinstance(function, FunctionType) or function in seen:
        return
    seen.add(function)
    for place in (function.__globals__, vars(F), vars(torch), vars(torch._C._nn)):
        for name in function.__code__.co_names:
            if callable(found := place.get(name)):
                yield Called(place, name, found, _code(found))
                if found is vars(F).get(name):
                    yield from _behind(found, seen)


def _described(function: Any) -> tuple[Called, ...]:
    """The function itself, and those behind it."""
    return Called({"": function}, "", function, _code(function)), *_behind(function, set())


FUNCTIONS: dict[Any, tuple[Called, ...]] = {
    f: _described(f)
    for f in (*known_calls()[0], *(f for f in vars(math).values() if isinstance(f, BuiltinFunctionType)))
    if of_torch(f) and f is not getattr and not getattr(f, "__name__", "_").endswith("_")
}
"""Each function, and those behind it."""

_OTHERS = (
    "abs", "amax", "amin", "bmm", "chunk", "cos", "cumsum", "dot", "erf", "exp", "expand", "flip", "gather", "log",
    "log_softmax", "logsumexp", "masked_fill", "matmul", "max", "maximum", "min", "minimum", "mm", "narrow", "norm",
    "pow", "prod", "repeat", "roll", "select", "sin", "split", "sqrt", "square", "std", "t", "unbind", "values", "var",
)  # fmt: skip
"""Methods without rules, whose names modules give to their parts."""

METHODS: dict[str, Any] = {
    name: getattr(Tensor, name)
    for name in (*known_calls()[1], *SHAPES, *_OTHERS)
    if not name.endswith("_") and hasattr(Tensor, name) and of_torch(getattr(Tensor, name))
}
"""Methods and attributes of tensors by name, without those that change the tensor."""


def unpatched(function: Any) -> bool:
    """Whether one of `FUNCTIONS` still is, and calls, what it did when this package was imported."""
    return all(called.same() for called in FUNCTIONS[function]) and not getattr(function, "__dict__", None)


def computes_as_known(function: Any) -> bool:
    """Whether a function or, by its name, a method of tensors computes what it did; True for those that are not known.

    Operators count by what tensors define for them.
    """
    if isinstance(function, str):
        return function not in METHODS or getattr(Tensor, function, None) is METHODS[function]
    if function in _OPERATORS:
        return all(getattr(Tensor, name) is method for name, method in _OPERATORS[function].items())
    return function not in FUNCTIONS or unpatched(function)


_OPERATORS: dict[Any, dict[str, Any]] = {
    f: {n: getattr(Tensor, n) for n in (f"__{kind}{f.__name__}__" for kind in ("", "r", "i")) if hasattr(Tensor, n)}
    for f in known_calls()[0]
    if getattr(f, "__module__", None) == "_operator"
}


_EVERY: tuple[Called, ...] = tuple(
    {(id(c.place), c.name): c for called in FUNCTIONS.values() for c in called[1:]}.values()
) + tuple(
    Called(place, name, f, _code(f))
    for place in (vars(F), vars(torch))
    for name, f in place.items()
    if isinstance(f, FunctionType | BuiltinFunctionType) and f in FUNCTIONS
)


def all_unpatched() -> bool:
    """Whether all functions that are known, and those that they call, are what they were.

    `Called.same` of each, written out: there are some hundreds, and they are looked at in every call of a certifier.
    """
    for get, name, function in _LOOKED_UP:
        if get(name) is not function:
            return False
    for function, code, defaults, keywords in _WRITTEN:
        if (
            function.__code__ is not code
            or function.__defaults__ is not defaults
            or function.__kwdefaults__ is not keywords
        ):
            return False
    return True


_LOOKED_UP = tuple((called.place.get, called.name, called.function) for called in _EVERY)
_WRITTEN = tuple({called.function: (called.function, *called.code) for called in _EVERY if called.code}.values())


@cache
def _class(kind: Any) -> tuple[list[tuple[type, dict[str, Any]]], list[Called]]:
    """The attributes that a layer of torch and its bases define, and the functions that these call, when first seen."""
    bases = [(base, dict(vars(base))) for base in kind.__mro__[: kind.__mro__.index(nn.Module)]]
    seen: set[Any] = set()
    methods = [(contents, name, f) for _, contents in bases for name, f in contents.items() if name in _COMPUTE]
    called = [Called(contents, name, f, _code(f)) for contents, name, f in methods]
    return bases, called + [c for _, _, f in methods for c in _behind(f, seen)]


_COMPUTE = ("forward", "_conv_forward", "_check_input_dim", "_output_padding", "_apply_instance_norm")
"""The methods of layers that they compute with."""


def unpatched_class(kind: Any) -> bool:
    """Whether a layer of torch is, and calls, what it did when it was first asked about."""
    bases, called = _class(kind)
    return all(vars(base) == contents or not _changed(vars(base), contents) for base, contents in bases) and all(
        c.same() for c in called
    )


_BASES: tuple[tuple[type, dict[str, Any]], ...] = tuple(
    (base, dict(vars(base))) for base in (nn.Module, *Tensor.__mro__)
)
_NAMES = frozenset(name for base, _ in _BASES for name in dir(base))


def as_usual() -> bool:
    """Whether all modules and tensors do what they do in torch, and nothing stands between calls and functions."""
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        return False
    # Others may have given them new attributes, which no code of torch looks up.
    return all(vars(base) == before or not _touched(vars(base), before) for base, before in _BASES)


def _touched(now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    changed = _changed(now, before)
    return any((name in _NAMES or name[:2] == name[-2:] == "__") and name not in _NOT_CALLED for name in changed)


def _changed(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    return [
        name
        for name in now.keys() | before.keys()
        if name != SLOTS and (name not in now or name not in before or now[name] is not before[name])
    ]


SLOTS = "__slotnames__"
"""Written into a class when one of its objects is copied or pickled for the first time; nothing else reads it."""


_NOT_CALLED = (
    "__repr__", "__str__", "__format__", "__dir__", "__doc__", "__annotations__", "__init__", "__setstate__",
)  # fmt: skip
"""Changed by libraries that print more of a tensor or module, or that follow where modules are made as compilers do;
no call of one that exists needs them."""
