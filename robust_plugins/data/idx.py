"""The idx format of MNIST and its relatives: a header of big-endian numbers, and bytes."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np

from robust_plugins.data.splits import Array
from robust_plugins.errors import ArgumentError


def read_idx(folder: Path, stem: str) -> bytes:
    """The bytes of `stem` or `stem.gz` in `folder`, unpacked. Raises ArgumentError where neither can be read."""
    plain, packed = folder / stem, folder / f"{stem}.gz"
    try:
        return plain.read_bytes() if plain.is_file() else gzip.decompress(packed.read_bytes())
    except FileNotFoundError:
        raise ArgumentError(
            "folder", repr(str(folder)), accepted=f"a folder that holds {stem} or {stem}.gz", hint="Check the path."
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise ArgumentError(
            "folder", repr(str(folder)), accepted="readable files", hint=f"{packed} is damaged: {error}."
        ) from error


def parse_idx(content: bytes, *, name: str) -> Array:
    """The array of unsigned bytes in an idx file, with the shape that its header states.

    Header: two zero bytes, the type (8 is unsigned bytes), the number of axes, and each axis as a big-endian 32-bit
    number. Raises ArgumentError for anything else; `name` names the file in the message.
    """
    axes = content[3] if len(content) > 3 else 0
    start = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", content[4:start]) if len(content) >= start and axes else ()
    if content[:3] != b"\0\0\x08" or not shape or len(content) - start != int(np.prod(shape, dtype=np.int64)):
        raise ArgumentError(
            "folder",
            f"holding {name}, which is no complete idx file of bytes",
            accepted="idx files, plain or packed with gzip",
            hint="Fetch the file again.",
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def format_idx(array: Array) -> bytes:
    """The idx file of an array of unsigned bytes: the inverse of `parse_idx`."""
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def md5(content: bytes) -> str:
    """The checksum that MNIST's files are published with; it finds damage, and is no protection against forgery."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
