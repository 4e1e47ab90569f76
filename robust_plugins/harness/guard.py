"""A model as it was found: what a component changed of it is named, and put back."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_plugins.intervals.network.state import parts_of

Kind = Literal[
    "weights", "buffers", "hooks", "modules", "forward", "attributes", "mode", "requires_grad", "default dtype"
]  # fmt: skip

TOLERATED: tuple[Kind, ...] = ("hooks", "buffers", "mode", "requires_grad", "default dtype")
"""A search may leave these changed: what it found is judged on the model that was put back."""

_HOOKS = ("_hooks", "_pre_hooks")
_BOOKKEEPING = ("_is_full_backward_hook", "_is_hf_initialized")


@dataclass(frozen=True)
class Change:
    """One thing that is not as it was found: its kind, and its place in the model."""

    kind: Kind
    place: str

    def __str__(self) -> str:
        return f"{self.kind} of {self.place}" if self.place else self.kind


class Found:
    """Everything of a model that decides what it computes, as it was when this was made.

    Weights, buffers and other tensors are copied: what was overwritten can be put back from a copy alone. They are
    compared with it in full, for operations on `.data` move no version counter; unless `thorough`, tensors of the
    same version are compared at every 251st value.
    """

    def __init__(self, model: nn.Module, *, thorough: bool = True) -> None:
        self._dtype = torch.get_default_dtype()
        # Loops over plain dictionaries: this is paid at every call, and torch's own iterators would double it.
        modules = list(model.named_modules())
        self._attributes = [(name, m.__dict__, m.__dict__.copy()) for name, m in modules]
        self._containers = [
            (name, attribute, value, type(value)(value) if value else _EMPTY)
            for name, _, before in self._attributes
            for attribute, value in before.items()
            if type(value) in _FILL
        ]
        self._forwards = [(kind, _forward(kind)) for kind in {type(module) for _, module in modules}]
        self._tensors: list[_Kept] = []
        seen: set[int] = set()
        for kind, attribute in _TENSORS:
            for name, module in modules:
                held = module.__dict__ if attribute is None else getattr(module, attribute)
                for key, tensor in held.items():
                    if isinstance(tensor, Tensor) and id(tensor) not in seen:
                        seen.add(id(tensor))
                        parts = (tensor,) if tensor.layout is torch.strided else parts_of(tensor)
                        self._tensors += [_Kept(part, kind, name, key, thorough) for part in parts]
        self._unsettled = self._tensors

    def settle(self) -> list[Change]:
        """Puts everything back as it was found, and says what was not.

        What comes after it is taken to run the model and not to change its weights.
        """
        changes = self._changes(self._unsettled)
        if changes:
            self._restore()
        self._unsettled = [kept for kept in self._tensors if kept.kind != "weights"]
        return changes

    def _changes(self, tensors: list[_Kept]) -> list[Change]:
        found = [change for kept in tensors for change in kept.changes()]
        for name, now, before in self._attributes:
            if _unchanged(now, before):
                continue
            found += [
                Change(_kind(attribute), _joined(name, attribute))
                for attribute in now.keys() | before.keys()
                if now.get(attribute) is not before.get(attribute) and attribute not in _BOOKKEEPING
            ]
        found += [
            Change(_kind(attribute), _joined(name, "" if attribute.startswith("_") else attribute))
            for name, attribute, value, copy in self._containers
            if (value or copy) and not _same(value, copy)
        ]
        found += [Change("forward", kind.__name__) for kind, forward in self._forwards if _forward(kind) is not forward]
        if torch.get_default_dtype() != self._dtype:
            found.append(Change("default dtype", ""))
        return found

    def _restore(self) -> None:
        torch.set_default_dtype(self._dtype)
        for kind, forward in self._forwards:
            if _forward(kind) is not forward:
                kind.forward = forward
        for _, now, before in self._attributes:
            if not _unchanged(now, before):
                now.clear()
                now.update(before)
        for _, _, value, copy in self._containers:
            if (value or copy) and not _same(value, copy):
                _refill(value, copy)
        with torch.no_grad():
            for kept in self._tensors:
                kept.restore()


_TENSORS: tuple[tuple[Kind, str | None], ...] = (
    ("weights", "_parameters"), ("buffers", "_buffers"), ("attributes", None),
)  # fmt: skip
_EMPTY: tuple[()] = ()
_SMALL, _STEP = 2**12, 251


class _Kept:
    """One tensor of a model: its storage, its flag, and a copy of its values."""

    __slots__ = ("alias", "key", "kind", "module", "pointer", "requires_grad", "tensor", "values", "version")

    def __init__(self, tensor: Tensor, kind: Kind, module: str, key: str, thorough: bool) -> None:
        self.tensor, self.kind, self.module, self.key = tensor, kind, module, key
        known = not thorough and tensor.numel() > _SMALL and tensor.is_contiguous() and not tensor.is_inference()
        self.version = tensor._version if known else None
        self.requires_grad = tensor.requires_grad
        self.alias = tensor.detach()  # keeps the storage where `.data` is given another
        self.values = self.alias.clone()
        self.pointer = tensor.data_ptr()

    def changes(self) -> Iterable[Change]:
        if self.tensor.data_ptr() != self.pointer or not self._same():
            yield Change(self.kind, _joined(self.module, self.key))
        if self.tensor.requires_grad != self.requires_grad:
            yield Change("requires_grad", _joined(self.module, self.key))

    def _same(self) -> bool:
        now, before = self.tensor, self.values
        if self.version is not None and now._version == self.version and now.shape == before.shape:
            now, before = now.detach().view(-1)[::_STEP], before.view(-1)[::_STEP]
        return _equal(now, before)

    def restore(self) -> None:
        if self.tensor.data_ptr() != self.pointer:
            self.tensor.data = self.alias
        if not _equal(self.tensor, self.values):
            self.tensor.copy_(self.values)
        if self.tensor.requires_grad != self.requires_grad and self.tensor.is_leaf:
            self.tensor.requires_grad_(self.requires_grad)


def _forward(kind: type[nn.Module]) -> object:
    return getattr(kind, "forward", None)


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    if a.device.type == "cpu" and a.dtype in (torch.float32, torch.float64):
        if (a.detach().numpy() == b.numpy()).all():  # five times faster than torch.equal
            return True
    elif torch.equal(a, b):
        return True
    return bool(((a == b) | ((a != a) & (b != b))).all())  # NaN stays NaN


def _unchanged(now: dict[str, Any], before: dict[str, Any]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now.values(), before.values()))


def _kind(attribute: str) -> Kind:
    if attribute.endswith(_HOOKS):
        return "hooks"
    special: dict[str, Kind] = {
        "_parameters": "weights", "_buffers": "buffers", "_modules": "modules", "forward": "forward",
        "training": "mode",
    }  # fmt: skip
    return special.get(attribute, "attributes")


def _joined(name: str, attribute: str) -> str:
    return ".".join(part for part in (name, attribute) if part) or "the model"


_Container = dict[Any, Any] | list[Any] | set[Any]
_FILL: dict[type, Callable[[Any, Any], Any]] = {
    dict: dict.update, OrderedDict: OrderedDict.update, list: list.extend, set: set.update,
}  # fmt: skip


def _same(value: _Container, copy: _Container | tuple[()]) -> bool:
    if len(value) != len(copy):
        return False
    if isinstance(value, dict) and isinstance(copy, dict):
        return all(map(operator.is_, value.keys(), copy.keys())) and all(
            map(operator.is_, value.values(), copy.values())
        )
    if isinstance(value, set) and isinstance(copy, set):
        return value == copy
    return all(map(operator.is_, value, copy))


def _refill(value: _Container, copy: _Container | tuple[()]) -> None:
    value.clear()
    _FILL[type(value)](value, copy)
