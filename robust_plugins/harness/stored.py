"""Results in files: plain data and arrays, and nothing that is run when they are read. Networks are their weights."""

from __future__ import annotations

import json
import math
import os
import re
import zipfile
import zlib
from contextlib import suppress
from dataclasses import fields
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from robust_plugins.balls import L1, L2, Box, Linf
from robust_plugins.errors import ArgumentError, of_type
from robust_plugins.harness.bracket import Bracket
from robust_plugins.harness.weights import Weights
from robust_plugins.intervals import Interval

FORMAT = 1
"""Rises where files become unreadable for older versions."""

DEEPEST = 100
"""Brackets within each other, at most: results have a fifth of that."""

ENTRY = "robust_plugins"
"""The entry of the archive that says what is in it; all others are arrays."""

T = TypeVar("T", bound=type)

_known: dict[str, type] = {}

_UNREADABLE = (
    AttributeError, EOFError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
"""What a damaged file, or one that was made to do harm, makes its readers raise."""


def stored(kind: T) -> T:
    """Registers a record, a dataclass, or an enumeration, as one that files may hold."""
    _known.setdefault(kind.__name__, kind)  # nobody takes the place of one that is there
    return kind


for _kind in (Linf, L2, L1, Box, Interval, Weights):
    stored(_kind)


def write(path: str | Path, value: Any) -> Path:
    """Writes a record as an archive of numpy arrays, and returns the path; folders are made.

    A file that is there already is replaced where it holds a result too, and only by a whole one. Raises ArgumentError
    where it holds something else, or cannot be written.
    """
    target = Path(path)
    if target.exists() and not _is_ours(target):
        raise ArgumentError(
            "path", f"{target}, which holds something else", accepted="a new file, or one that holds a result",
            hint="Name another file.",
        )  # fmt: skip
    arrays: dict[str, np.ndarray] = {}
    tree = _Encoder(arrays).of(value)
    text = json.dumps({"format": FORMAT, "version": version("robust_plugins"), "result": tree}, allow_nan=False)
    arrays[ENTRY] = np.frombuffer(text.encode(), dtype=np.uint8)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type] # the names of arrays are no options
        part.replace(target)
    except OSError as error:
        raise ArgumentError(
            "path", f"{target}, which cannot be written: {error}", accepted="a file in a folder that you may write to",
            hint="Name another file.",
        ) from error  # fmt: skip
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return target


def read(path: str | Path, kind: type, model: object = None) -> Any:
    """The record of class `kind` that `write` put into the file. Raises ArgumentError where it holds no such thing.

    `model`: the network that the weights in the file are put into copies of; None for files without any. ArgumentError
    is raised where it is the one and should be the other, and as `Weights.put_into` does.
    """
    said = _contents(Path(path))
    if said["format"] > FORMAT:
        raise ArgumentError(
            "path", f"{path}, of robust_plugins {said.get('version', '?')}", accepted=f"files up to format {FORMAT}",
            hint="Update robust_plugins.",
        )  # fmt: skip
    name = said["result"].get("record")
    if name != kind.__name__:
        raise ArgumentError(
            "path", f"{path}, which holds one {name}", accepted=f"a file with one {kind.__name__}",
            hint=f"Load it with {name}.load.",
        )  # fmt: skip
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            decoder = _Decoder(arrays, kind.__name__, model)
            found = decoder.of(said["result"])
    except _OtherModelError as error:
        raise error.told from error.__cause__
    except _UNREADABLE as error:
        raise ArgumentError(
            "path", f"{path}, which cannot be read: {type(error).__name__}: {error}",
            accepted="a whole file, of this or an older version", hint="Save the result again.",
        ) from error  # fmt: skip
    if model is not None and not decoder.networks:
        raise ArgumentError(
            "model", of_type(model), accepted=f"None: the {name} in {path} holds no network",
            hint="Leave it out.",
        )  # fmt: skip
    return found


def _contents(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            said = _parsed(arrays[ENTRY].tobytes())
            if isinstance(said["result"], dict) and isinstance(said["format"], int):
                return dict(said)
            cause = "its contents are not those of a result"
    except OSError as error:
        cause = error.strerror or "it is no archive"
    except _UNREADABLE:
        cause = "it is something else"
    raise ArgumentError(
        "path", f"{path}: {cause}", accepted="a file that the `save` of a result has written", hint="Name such a file.",
    )  # fmt: skip


def _parsed(text: bytes) -> Any:
    """JSON, unless it is so deep that its parser could run out of stack, which ends the process."""
    codes = np.frombuffer(re.sub(rb'"(?:[^"\\]|\\.)*"', b"", text), np.uint8)
    opened = np.isin(codes, (ord("["), ord("{"))).astype(np.int32) - np.isin(codes, (ord("]"), ord("}")))
    if np.cumsum(opened).max(initial=0) > DEEPEST:
        raise ValueError("its contents are nested too deeply")
    return json.loads(text)


def _is_ours(path: Path) -> bool:
    try:
        _contents(path)
    except ArgumentError:
        return False
    return True


class _Encoder:
    """From values to what JSON has; tensors become arrays, each once."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.names: dict[int, tuple[str, Tensor]] = {}
        """By the tensors' ids, which are theirs for as long as they are kept here."""

    def of(self, value: Any) -> Any:
        if isinstance(value, Enum):
            return {"enum": type(value).__name__, "value": value.value}
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, Tensor):
            return {"tensor": self._tensor(value)}
        if _known.get(type(value).__name__) is type(value):
            return {"record": type(value).__name__, "fields": {k: self.of(v) for k, v in _state(value).items()}}
        if type(value) is Bracket:
            return {"bracket": [self.of(half) for half in value]}
        if isinstance(value, tuple | list):
            return {"tuple" if isinstance(value, tuple) else "list": [self.of(item) for item in value]}
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {"dict": {key: self.of(item) for key, item in value.items()}}
        raise ArgumentError(
            "result", f"one with {of_type(value)}", accepted="results of plain data, tensors and own balls",
            hint="`to_dict` and `to_frame` give its figures.",
        )  # fmt: skip

    def _tensor(self, tensor: Tensor) -> str:
        if id(tensor) not in self.names:
            name = f"t{len(self.names)}"
            self.names[id(tensor)] = name, tensor
            self.arrays[name] = tensor.detach().cpu().numpy()
        return self.names[id(tensor)][0]


def _state(value: Any) -> dict[str, Any]:
    """The fields of a record, or what a class with `from_state` says that it is made of."""
    if hasattr(value, "from_state"):
        return dict(value.state())
    return {f.name: getattr(value, f.name) for f in fields(value) if f.init and f.metadata.get("stored", True)}


class _OtherModelError(Exception):
    """The network does not fit the file; the file itself is sound."""

    def __init__(self, told: ArgumentError) -> None:
        super().__init__(str(told))
        self.told = told


class _Decoder:
    """The inverse of `_Encoder`; tensors that were one are one again."""

    def __init__(self, arrays: Any, name: str, model: object) -> None:
        self.arrays, self.name, self.model = arrays, name, model
        self.tensors: dict[str, Tensor] = {}
        self.networks = 0
        """How many were read."""

    def of(self, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        (kind, found), *_ = tree.items()
        if kind == "tensor":
            if found not in self.tensors:
                self.tensors[found] = torch.from_numpy(self.arrays[found].copy())
            return self.tensors[found]
        if kind == "float":
            return float(found)
        if kind == "enum":
            return _known[found](tree["value"])
        if kind == "record":
            return self._record(found, {name: self.of(value) for name, value in tree["fields"].items()})
        if kind == "dict":
            return {key: self.of(item) for key, item in found.items()}
        items = [self.of(item) for item in found]
        return items if kind == "list" else Bracket(*items) if kind == "bracket" else tuple(items)

    def _record(self, name: str, values: dict[str, Any]) -> Any:
        if name not in _known:
            raise ValueError(f"nothing that is loaded defines {name}; import the plugin that does")
        made: Any = _known[name]
        if made is Weights:
            return self._network(made(**values))
        return made.from_state(values) if hasattr(made, "from_state") else made(**values)

    def _network(self, weights: Weights) -> nn.Module:
        self.networks += 1
        if self.model is None:
            told = ArgumentError(
                "model", None, accepted="a network like the one that was trained, whose weights do not matter",
                hint=f"{self.name}.load(path, model): the file has the weights of its networks, and no code.",
            )  # fmt: skip
            raise _OtherModelError(told)
        try:
            return weights.put_into(self.model)
        except ArgumentError as error:
            raise _OtherModelError(error) from error.__cause__
