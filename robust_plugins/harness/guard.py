"""A model as it was found: what a component changed of it is named, and put back."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["weights", "buffers", "hooks", "modules", "forward", "attributes", "requires_grad", "default dtype"]

_HOOKS = ("_hooks", "_pre_hooks")
_BOOKKEEPING = ("training", "_is_full_backward_hook", "_is_hf_initialized")


@dataclass(frozen=True)
class Change:
    """One thing that is not as it was found: its kind, and its place in the model."""

    kind: Kind
    place: str

    def __str__(self) -> str:
        return f"{self.kind} of {self.place}" if self.place else self.kind


class Found:
    """Everything of a model that decides what it computes, as it was when this was made.

    Weights, buffers and other tensors are copied: assignments to `.data` move no version counter, and what was
    overwritten can be put back from a copy alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = dict(model.named_modules())
        self._dtype = torch.get_default_dtype()
        self._attributes = [(name, m.__dict__, dict(m.__dict__)) for name, m in self._modules.items()]
        self._containers = [
            (name, attribute, value, copy)
            for name, _, before in self._attributes
            for attribute, value in before.items()
            if (copy := _copied(value)) is not None
        ]
        forwards = {type(module): _forward(type(module)) for module in self._modules.values()}
        self._forwards = list(forwards.items())
        self._tensors: list[_Kept] = []
        seen: set[int] = set()
        for name, parameter in model.named_parameters():
            seen.add(id(parameter))
            self._tensors.append(_Kept(parameter, "weights", name))
        for name, buffer in model.named_buffers():
            seen.add(id(buffer))
            self._tensors.append(_Kept(buffer, "buffers", name))
        for name, _, before in self._attributes:
            for attribute, value in before.items():
                if isinstance(value, Tensor) and id(value) not in seen:
                    self._tensors.append(_Kept(value, "attributes", _joined(name, attribute)))

    def changes(self) -> list[Change]:
        """What is not as it was found."""
        found = [change for kept in self._tensors for change in kept.changes()]
        for name, now, before in self._attributes:
            if len(now) == len(before) and all(map(operator.is_, now.values(), before.values())):
                continue
            found += [
                Change("forward" if attribute == "forward" else _kind(attribute), _joined(name, attribute))
                for attribute in now.keys() | before.keys()
                if now.get(attribute) is not before.get(attribute) and attribute not in _BOOKKEEPING
            ]
        found += [
            Change(_kind(attribute), _joined(name, "" if attribute.startswith("_") else attribute))
            for name, attribute, value, copy in self._containers
            if not _same(value, copy)
        ]
        found += [Change("forward", kind.__name__) for kind, forward in self._forwards if _forward(kind) is not forward]
        if torch.get_default_dtype() != self._dtype:
            found.append(Change("default dtype", ""))
        return found

    def restore(self) -> None:
        """Puts back all that `changes` names."""
        torch.set_default_dtype(self._dtype)
        for kind, forward in self._forwards:
            if _forward(kind) is not forward:
                kind.forward = forward
        for _, now, before in self._attributes:
            if not (len(now) == len(before) and all(map(operator.is_, now.values(), before.values()))):
                mode = now.get("training", before.get("training"))
                now.clear()
                now.update(before)
                if mode is not None:
                    now["training"] = mode  # modes are restored by who changes them
        for _, _, value, copy in self._containers:
            if not _same(value, copy):
                _refill(value, copy)
        with torch.no_grad():
            for kept in self._tensors:
                kept.restore()


class _Kept:
    """One tensor of a model: its storage, its flag, and a copy of its values."""

    __slots__ = ("alias", "kind", "place", "pointer", "requires_grad", "tensor", "values")

    def __init__(self, tensor: Tensor, kind: Kind, place: str) -> None:
        self.tensor, self.kind, self.place = tensor, kind, place
        self.requires_grad = tensor.requires_grad
        self.alias = tensor.detach()  # keeps the storage where `.data` is given another
        self.values = self.alias.clone()
        self.pointer = _pointer(tensor)

    def changes(self) -> Iterable[Change]:
        if _pointer(self.tensor) != self.pointer or not _equal(self.tensor, self.values):
            yield Change(self.kind, self.place)
        if self.tensor.requires_grad != self.requires_grad:
            yield Change("requires_grad", self.place)

    def restore(self) -> None:
        if _pointer(self.tensor) != self.pointer:
            self.tensor.data = self.alias
        if not _equal(self.tensor, self.values):
            self.tensor.copy_(self.values)
        if self.tensor.requires_grad != self.requires_grad and self.tensor.is_leaf:
            self.tensor.requires_grad_(self.requires_grad)


def _forward(kind: type[nn.Module]) -> object:
    return getattr(kind, "forward", None)


def _pointer(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())  # NaN stays NaN


def _kind(attribute: str) -> Kind:
    if attribute.endswith(_HOOKS):
        return "hooks"
    special: dict[str, Kind] = {"_parameters": "weights", "_buffers": "buffers", "_modules": "modules"}
    return special.get(attribute, "attributes")


def _joined(name: str, attribute: str) -> str:
    return ".".join(part for part in (name, attribute) if part) or "the model"


_Container = dict[Any, Any] | list[Any] | set[Any]
_FILL: dict[type, Callable[[Any, Any], Any]] = {
    dict: dict.update, OrderedDict: OrderedDict.update, list: list.extend, set: set.update,
}  # fmt: skip


def _copied(value: object) -> _Container | None:
    return type(value)(value) if type(value) in _FILL else None  # type: ignore[call-arg, return-value]


def _same(value: _Container, copy: _Container) -> bool:
    if len(value) != len(copy):
        return False
    if isinstance(value, dict) and isinstance(copy, dict):
        return all(map(operator.is_, value.keys(), copy.keys())) and all(
            map(operator.is_, value.values(), copy.values())
        )
    if isinstance(value, set):
        return value == copy
    return all(map(operator.is_, value, copy))


def _refill(value: _Container, copy: _Container) -> None:
    value.clear()
    _FILL[type(value)](value, copy)
