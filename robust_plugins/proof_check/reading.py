"""Reads files of proofs: networks, and the proofs of samples, with numpy and the standard library alone.

A file is MAGIC and then records, each behind its sizes, packed and plain, and the SHA-256 of the packed one. A record
is one of safetensors, packed by zlib.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

MAGIC, LARGEST = b"RPPROOF1", 2**32
"""What a file begins with, and the bytes of a record, at most."""
LIMIT = 1e60
"""Numbers are no larger."""
DEEPEST = 64
"""Brackets within each other, at most."""
KINDS = {"F64": np.float64, "F32": np.float32, "I32": np.int32, "U8": np.uint8}


class ProofError(Exception):
    """A proof, or a file, that does not show what it says; the message says why."""


def need(condition: Any, why: str) -> None:
    """Raises ProofError where a condition does not hold."""
    if not condition:
        raise ProofError(why)


class Record(NamedTuple):
    """A network, or the proof for one sample; `digest` is the SHA-256 of all of it."""

    about: dict[str, Any]
    arrays: dict[str, np.ndarray]
    digest: str

    def array(self, name: str, kind: str, dims: int = 1) -> np.ndarray:
        """An array of finite numbers of a kind, as numpy names it: f, i or u."""
        need(name in self.arrays, f"array {name!r} is missing")
        found = self.arrays[name]
        need(found.dtype.kind == kind and found.ndim == dims, f"array {name!r} has the wrong type or shape")
        if kind == "f":
            found = found.astype(np.float64)
            need((np.abs(found) <= LIMIT).all(), f"array {name!r} has numbers that are too large")
        return found

    def indices(self, name: str, size: int) -> np.ndarray:
        """Rising indices below `size`."""
        found = self.array(name, "i").astype(int)
        need((np.diff(found, prepend=-1) > 0).all() and found.max(initial=0) < size, f"array {name!r} has bad indices")
        return found


def records(path: Any) -> Iterator[Record]:
    """The records of a file, one by one. Raises ProofError where it is no such file, is damaged, or ends too early."""
    with open(path, "rb") as file:
        need(file.read(len(MAGIC)) == MAGIC, "it is no file of proofs: its first bytes are others")
        while head := file.read(48):
            sizes = struct.unpack("<QQ", head[:16]) if len(head) == 48 else (0, 0)
            need(max(sizes) <= LARGEST, f"a record of more than {LARGEST} bytes is not read")
            packed = file.read(sizes[0])
            need(len(head) == 48 and len(packed) == sizes[0], "it ends within a record; those before it are whole")
            need(hashlib.sha256(packed).digest() == head[16:], "a record is damaged: its checksum is another")
            try:
                plain = zlib.decompressobj().decompress(packed, sizes[1] + 1)
                need(len(plain) == sizes[1], "a record has another size than it states")
                yield _unpacked(plain)
            except (zlib.error, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error) as e:
                raise ProofError(f"a record is malformed: {type(e).__name__}: {str(e)[:100]}") from None


def _unpacked(plain: bytes) -> Record:
    """A record in the format of safetensors, with JSON about it among the metadata."""
    start = 8 + struct.unpack("<Q", plain[:8])[0]
    header, arrays = _parsed(plain[8:start]), {}
    about = _parsed(header.pop("__metadata__")["about"].encode())
    for name, entry in header.items():
        kind, (first, last) = np.dtype(KINDS[entry["dtype"]]), entry["data_offsets"]
        need(0 <= first <= last <= len(plain) - start, f"array {name!r} lies outside its record")
        arrays[name] = np.frombuffer(plain[start + first : start + last], kind).reshape(entry["shape"])
    need(isinstance(about, dict), "a record does not say what it is about")
    return Record(about, arrays, hashlib.sha256(plain).hexdigest())


def _parsed(text: bytes) -> Any:
    """JSON, unless it is so deep that its parser could run out of stack, which ends the process."""
    codes = np.frombuffer(text, np.uint8)
    opened = np.isin(codes, (ord("["), ord("{"))).astype(np.int32) - np.isin(codes, (ord("]"), ord("}")))
    need(np.cumsum(opened).max(initial=0) <= DEEPEST, "a record is malformed: its JSON is nested too deeply")
    return json.loads(text)


class Dense:
    """A matrix, (outputs, inputs)."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight, self.sizes = weight, (weight.shape[1], weight.shape[0])
        self.terms = self.room = max(weight.shape)
        """How many products it adds up; how many numbers it needs at once for a row."""

    def forward(self, x: np.ndarray, absolute: bool = False) -> np.ndarray:
        """Its product, or that of its absolute values, with a vector."""
        return np.asarray((np.abs(self.weight) if absolute else self.weight) @ x)

    def back(self, a: np.ndarray) -> np.ndarray:
        """Rows of coefficients of outputs as those of inputs."""
        return np.asarray(a @ self.weight)


class Same(Dense):
    """The identity."""

    def __init__(self, size: int) -> None:
        self.sizes, self.terms, self.room = (size, size), 1, size

    def forward(self, x: np.ndarray, absolute: bool = False) -> np.ndarray:  # noqa: D102 (inherited)
        return x

    def back(self, a: np.ndarray) -> np.ndarray:  # noqa: D102 (inherited)
        return a


class Sparse(Dense):
    """The same by its entries, in the order of columns."""

    def __init__(self, values: np.ndarray, rows: np.ndarray, columns: np.ndarray, sizes: tuple[int, int]) -> None:
        for at, size in ((columns, sizes[0]), (rows, sizes[1])):
            need(
                len(at) == len(values) and 0 <= at.min(initial=0) <= at.max(initial=0) < size,
                "a matrix has bad entries",
            )
        need((np.diff(columns) >= 0).all(), "the entries of a matrix are in disorder")
        self.weight, self.rows, self.columns, self.sizes, self.room = (
            values,
            rows,
            columns,
            sizes,
            max(*sizes, len(rows)),
        )
        self.terms = int(max(np.bincount(at).max(initial=0) for at in (rows, columns)))
        self.starts = np.flatnonzero(np.diff(columns, prepend=-1))

    def forward(self, x: np.ndarray, absolute: bool = False) -> np.ndarray:  # noqa: D102 (inherited)
        weight = np.abs(self.weight) if absolute else self.weight
        return np.bincount(self.rows, weight * x[self.columns], self.sizes[1])

    def back(self, a: np.ndarray) -> np.ndarray:  # noqa: D102 (inherited)
        found = np.zeros((len(a), self.sizes[0]))
        if len(self.starts):
            products = a[:, self.rows] * self.weight
            found[:, self.columns[self.starts]] = np.add.reduceat(products, self.starts, axis=1)
        return found


class Convolution(Dense):
    """A convolution of images of shape (channels, height, width), with zeros around them."""

    def __init__(self, weight: np.ndarray, about: dict[str, Any]) -> None:
        (c, h, w), (up, left), self.stride = about["image"], about["padding"], about["stride"]
        need(weight.shape[1] == c and min(c, h, w, *self.stride, up + 1, left + 1) > 0, "a convolution does not fit")
        self.weight, self.image, self.padded = weight, (c, h, w), (c, h + 2 * up, w + 2 * left)
        self.inside = (..., slice(up, up + h), slice(left, left + w))
        rooms = zip(self.padded[1:], weight.shape[2:], self.stride, strict=True)
        self.high, self.wide = ((room - kernel) // stride + 1 for room, kernel, stride in rooms)
        need(min(self.high, self.wide) > 0, "a convolution does not fit")
        self.sizes, self.terms = (c * h * w, len(weight) * self.high * self.wide), max(weight.size // c, weight[0].size)
        self.room = max(*self.sizes, weight[0].size * self.high * self.wide)

    def _windows(self, padded: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        s, t = self.stride
        for i, j in np.ndindex(*self.weight.shape[2:]):
            yield i, j, padded[..., i : i + s * (self.high - 1) + 1 : s, j : j + t * (self.wide - 1) + 1 : t]

    def forward(self, x: np.ndarray, absolute: bool = False) -> np.ndarray:  # noqa: D102 (inherited)
        padded, weight = np.zeros(self.padded), np.abs(self.weight) if absolute else self.weight
        padded[self.inside] = x.reshape(self.image)
        parts = [np.tensordot(weight[:, :, i, j], part, 1) for i, j, part in self._windows(padded)]
        return np.asarray(sum(parts)).ravel()

    def back(self, a: np.ndarray) -> np.ndarray:  # noqa: D102 (inherited)
        padded, weight = np.zeros((len(a), *self.padded)), self.weight.reshape(len(self.weight), -1).T
        pieces = weight @ a.reshape(len(a), len(self.weight), -1)
        pieces = pieces.reshape(len(a), *self.weight.shape[1:], self.high, self.wide)
        for i, j, part in self._windows(padded):
            part += pieces[:, :, i, j]
        return padded[self.inside].reshape(len(a), -1)


class Node(NamedTuple):
    """The input; or an offset and maps of other nodes; or `slope z + value + change relu(z - kink)` of each entry."""

    size: int
    inputs: list[int]
    maps: list[Dense]
    offset: np.ndarray
    slack: np.ndarray
    """How far the offset may be from that; and the other numbers, as a part of themselves, by `spread`."""
    spread: float
    bend: tuple[float, float, float, float] | None


def network(record: Record) -> list[Node]:
    """The nodes of a network; the last one is its output. Raises ProofError where the record holds none."""
    try:
        return _network(record)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ProofError(f"the network is malformed: {type(error).__name__}: {str(error)[:100]}") from None


def _network(record: Record) -> list[Node]:
    nodes: list[Node] = []
    for k, about in enumerate(record.about["nodes"]):
        size, inputs, spread, bend, maps = (about[name] for name in ("size", "inputs", "spread", "bend", "maps"))
        need(size > 0 and 0 <= spread < 1 and (k == 0) == (not inputs), f"node {k} is malformed")
        need(all(0 <= j < k for j in inputs) and len(maps) == (not bend) * len(inputs), f"node {k} has bad inputs")
        if bend:
            need(len(inputs) == 1 and nodes[inputs[0]].size == size, f"node {k} does not fit its input")
            need(len(bend) == 4 and all(abs(number) <= LIMIT for number in bend), f"node {k} has no such function")
        made = [
            _map(record, f"{k}.{i}", one, nodes[j].size, size)
            for i, (j, one) in enumerate(zip(inputs, maps, strict=not bend))
        ]
        offset, slack = (
            record.array(f"{k}.{name}", "f") if f"{k}.{name}" in record.arrays else np.zeros(size)
            for name in ("offset", "slack")
        )
        need(len(offset) == len(slack) == size and slack.min() >= 0, f"node {k} has a bad offset")
        nodes.append(Node(size, inputs, made, offset, slack, spread, bend))
    need(nodes, "the network has no nodes")
    return nodes


def _map(record: Record, name: str, about: dict[str, Any], inputs: int, outputs: int) -> Dense:
    found: Dense
    if about["kind"] == "same":
        found = Same(inputs)
    elif about["kind"] == "sparse":
        rows, columns = (record.array(f"{name}.{side}", "i").astype(int) for side in ("rows", "columns"))
        found = Sparse(record.array(name, "f"), rows, columns, (inputs, outputs))
    elif about["kind"] == "convolution":
        found = Convolution(record.array(name, "f", 4), about)
    else:
        found = Dense(record.array(name, "f", 2))
    need(found.sizes == (inputs, outputs), f"matrix {name} does not fit its node")
    return found
