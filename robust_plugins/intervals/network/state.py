"""Running somebody's forward without leaving a trace: all that it can write to is kept, and put back afterwards.

A forward writes into the attributes of its modules, into lists and dictionaries that it finds there, into variables
that its functions and hooks close over or name as globals, and into tensors. While a model is traced, what it would
write are symbols of torch.fx instead of tensors.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

OBJECTS = 1000
"""How many functions and objects beside the modules are looked into: a model may hold a trainer, and so a world."""

LARGE = 2**20
"""Entries from which a tensor outside the modules, such as a data set, is watched but not copied."""

_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size, range, type)
_OPAQUE = (ModuleType, BuiltinFunctionType)
_LIBRARIES = sys.stdlib_module_names - {"__main__"} | {"torch", "numpy", "robust_plugins", "jaxtyping", "beartype"}
_EMPTY = object()


class Kept:
    """The state of a model as it is now: contents of containers, values of variables, and copies of tensors."""

    def __init__(self, model: nn.Module) -> None:
        self._containers: list[tuple[Any, Any, str]] = []
        self._variables: list[tuple[CellType | _Global, Any, str]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._watched: list[tuple[Tensor, int]] = []
        self._objects = 0
        self.changed: list[Change] = []
        """What `restore` has found to hold other objects than before."""
        self.written: list[Tensor] = []
        """The tensors whose values `restore` has found changed."""
        # What is near comes first. Things are held until then, so that no id is used twice.
        self._waiting: deque[tuple[Any, str, bool]] = deque([(model, "", True)])
        seen: dict[int, Any] = {}
        while self._waiting:
            thing, name, near = self._waiting.popleft()
            if not isinstance(thing, _PLAIN) and id(thing) not in seen:
                seen[id(thing)] = thing
                self._look(thing, name, near)

    def restore(self) -> None:
        """Puts everything back as it was, and notes what was not."""
        for container, before, name in self._containers:
            if not _same(container, before):
                self.changed += _differences(container, before, name)
                _refill(container, before)
        for cell, before, name in self._variables:
            if _contents(cell) is not before:
                self.changed.append(Change(name, partial(_fill, cell, UNKNOWN)))
                _fill(cell, before)
        for tensor, before in self._tensors:
            if _differ(tensor, before):
                self.written.append(tensor)
                with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                    tensor.data.copy_(before)
        self.written += [tensor for tensor, version in self._watched if tensor._version != version]

    def _look(self, thing: Any, name: str, near: bool) -> None:
        """Keeps one object, and queues what can be reached from it."""
        if isinstance(thing, Tensor) and thing.layout is not torch.strided:
            self._waiting.extend((part, name, near) for part in parts_of(thing))
        elif isinstance(thing, Tensor):
            if near or thing.numel() <= LARGE or thing.is_inference():
                self._tensors.append((thing, thing.detach().clone()))
            else:
                self._watched.append((thing, thing._version))
        elif isinstance(thing, dict):
            self._keep(thing, name, near)
        elif isinstance(thing, list | set | deque):
            self._containers.append((thing, list(thing), name))
            self._waiting.extend((value, name, near) for value in thing)
        elif isinstance(thing, tuple | frozenset):
            self._waiting.extend((value, name, near) for value in thing)
        elif isinstance(thing, nn.Module):
            self._module(thing, name, near)
        elif not isinstance(thing, _OPAQUE) and self._objects < OBJECTS:
            self._objects += 1
            self._other(thing, name, near)

    def _keep(self, contents: dict[Any, Any], name: str, near: bool) -> None:
        self._containers.append((contents, dict(contents), name))
        self._waiting.extend((value, _joined(name, key), near) for key, value in contents.items())

    def _module(self, module: nn.Module, name: str, near: bool) -> None:
        attributes = vars(module)
        self._containers.append((attributes, dict(attributes), name))
        for key, value in attributes.items():
            # The parts that torch itself stores in dictionaries are attributes to everybody else.
            where = name if key in ("_parameters", "_buffers", "_modules") else _joined(name, key)
            self._waiting.append((value, where, near))
        for kind in type(module).__mro__:
            if _foreign(kind.__module__):
                state = {k: v for k, v in vars(kind).items() if not k.startswith("__") or callable(v)}
                self._waiting.extend((v, f"{kind.__name__}.{k}", near) for k, v in state.items())

    def _other(self, thing: Any, name: str, near: bool) -> None:
        if isinstance(thing, FunctionType):
            self._function(thing)
        elif isinstance(thing, MethodType):
            self._waiting.extend(((thing.__self__, name, near), (thing.__func__, name, near)))
        elif isinstance(thing, partial):
            self._waiting.extend(((thing.func, name, False), (thing.args, name, False), (thing.keywords, name, False)))
        elif isinstance(thing, property | staticmethod | classmethod):
            functions = (thing.fget, thing.fset) if isinstance(thing, property) else (thing.__func__,)
            self._waiting.extend((function, name, near) for function in functions)
        elif _foreign(type(thing).__module__) and isinstance(attributes := getattr(thing, "__dict__", None), dict):
            self._keep(attributes, name, near and isinstance(thing, nn.Module))

    def _function(self, function: FunctionType) -> None:
        known = function.__globals__
        if not _foreign(known.get("__name__")):
            return
        cells: list[tuple[CellType | _Global, str]] = list(
            zip(function.__closure__ or (), function.__code__.co_freevars, strict=True)
        )
        cells += [(_Global(known, name), name) for name in _names(function.__code__) if name in known]
        for cell, name in cells:
            self._variables.append((cell, _contents(cell), name))
            self._waiting.append((_contents(cell), name, False))
        self._waiting.extend(
            (value, function.__name__, False) for value in (function.__defaults__, function.__kwdefaults__)
        )


@dataclass(frozen=True)
class Change:
    """An attribute, an entry or a variable that forward has written to."""

    name: str
    blank: Callable[[], object] | None
    """Makes its value UNKNOWN; None for a list, whose length says something too."""


class _Unknown:
    """Stands for a value that forward keeps from one call to the next: sums with it are unknown, all else fails."""

    def _unknown(self, *_: object) -> _Unknown:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _unknown
    __neg__ = __pow__ = __iadd__ = __isub__ = __imul__ = __itruediv__ = _unknown

    def __bool__(self) -> bool:
        raise TypeError("a value from an earlier call")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = lambda self, _: bool(self)
    __hash__ = None  # type: ignore[assignment]


UNKNOWN = _Unknown()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[Kept]:
    """Whatever runs inside, all that `model` can write to is afterwards as it was before."""
    kept = Kept(model)
    try:
        yield kept
    finally:
        kept.restore()


class _Global:
    """A global variable, in the form of a cell."""

    def __init__(self, known: dict[str, Any], name: str) -> None:
        self.known, self.name = known, name

    @property
    def cell_contents(self) -> Any:
        return self.known.get(self.name, _EMPTY)

    @cell_contents.setter
    def cell_contents(self, value: Any) -> None:
        self.known[self.name] = value

    @cell_contents.deleter
    def cell_contents(self) -> None:
        self.known.pop(self.name, None)


def _joined(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _names(code: CodeType) -> set[str]:
    """The names that a function's code, and that of functions inside it, looks up."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*(_names(c) for c in inner))


def _foreign(module: object) -> bool:
    """Whether code of this module is the user's, not of a library whose state is no concern of ours."""
    return isinstance(module, str) and module.partition(".")[0] not in _LIBRARIES


def _contents(cell: CellType | _Global) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that has no value yet
        return _EMPTY


def _fill(cell: CellType | _Global, value: Any) -> None:
    if value is _EMPTY:
        del cell.cell_contents
    else:
        cell.cell_contents = value


def _same(container: Any, before: Any) -> bool:
    """Whether a container holds the very objects that it held before."""
    if len(container) != len(before):
        return False
    if isinstance(before, dict):
        return all(key in container and container[key] is value for key, value in before.items())
    if isinstance(container, set):
        return {id(value) for value in container} == {id(value) for value in before}
    return all(one is two for one, two in zip(container, before, strict=True))


def _differences(container: Any, before: Any, name: str) -> list[Change]:
    if not isinstance(container, dict):
        return [Change(name, None)]
    keys = [*before, *(key for key in container if key not in before)]
    written = [k for k in keys if k not in before or k not in container or container[k] is not before[k]]
    return [Change(_joined(name, key), partial(dict.__setitem__, container, key, UNKNOWN)) for key in written]


def _refill(container: Any, before: Any) -> None:
    if isinstance(container, dict):
        dict.clear(container)
        dict.update(container, before)
    else:
        container.clear()
        container.update(before) if isinstance(container, set) else container.extend(before)


def _as_numpy(tensor: Tensor) -> bool:
    dtypes = (torch.float32, torch.float64)
    return tensor.is_cpu and tensor.dtype in dtypes and tensor.layout is torch.strided and not tensor.is_neg()


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The tensors that hold the entries of one: itself, or places and values of a sparse one; none of other layouts."""
    inner = tensor.detach()
    if tensor.layout is torch.strided:
        return [tensor]
    if tensor.layout is torch.sparse_coo:
        return [inner._indices(), inner._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [inner.crow_indices(), inner.col_indices(), inner.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [inner.ccol_indices(), inner.row_indices(), inner.values()]
    return []


def _differ(tensor: Tensor, before: Tensor) -> bool:
    """Whether a tensor has other values than its copy, NaN being equal to itself."""
    if tensor.shape != before.shape or tensor.is_meta:
        return tensor.shape != before.shape
    if _as_numpy(tensor) and (tensor.detach().numpy() == before.numpy()).all():  # five times faster than torch.equal
        return False
    return not torch.equal(tensor, before) and bool(
        ((tensor != before) & ((tensor == tensor) | (before == before))).any()
    )
