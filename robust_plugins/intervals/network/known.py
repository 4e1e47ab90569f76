"""Functions and methods of torch of which is known that their result is their arguments', and nobody has replaced."""

from __future__ import annotations

import inspect
import math
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_plugins.intervals.network.calls import known_calls
from robust_plugins.intervals.network.symbolic import SHAPES

MODULES: frozenset[ModuleType] = frozenset((torch, torch.nn, F, math))
"""Those whose attributes may be looked up in code."""


def of_torch(value: Any) -> bool:
    """Whether something is torch's own: wrappers may copy a name and a module, but not where their code stands."""
    if isinstance(value, FunctionType):
        return str(value.__globals__.get("__name__")).startswith("torch") and not vars(value)
    return isinstance(value, BuiltinFunctionType) or inspect.isroutine(value) or inspect.isdatadescriptor(value)


def _behind(function: Any) -> tuple[tuple[dict[str, Any], str, Any], ...]:
    """Where the code of a function of torch finds those that it calls, and which they are."""
    if not isinstance(function, FunctionType):
        return ()
    places = (function.__globals__, vars(torch), vars(torch._C._nn))
    names = function.__code__.co_names
    return tuple((place, name, place[name]) for place in places for name in names if callable(place.get(name)))


FUNCTIONS: dict[Any, tuple[tuple[dict[str, Any], str, Any], ...]] = {
    f: _behind(f)
    for f in (*known_calls()[0], *(f for f in vars(math).values() if isinstance(f, BuiltinFunctionType)))
    if of_torch(f) and not getattr(f, "__name__", "_").endswith("_")
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
    """Whether one of `FUNCTIONS` still calls what it called when this package was imported."""
    return all(place.get(name) is found for place, name, found in FUNCTIONS[function])
