"""`ProofFile`: proofs of one network and many samples in a file that grows; `robust_plugins.proof_check` reads it."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from robust_plugins.decisions.verifier.proofs.normal_form import normal_form
from robust_plugins.decisions.verifier.proofs.recording import Notes
from robust_plugins.decisions.verifier.properties import Unsafe
from robust_plugins.errors import ArgumentError, UnsupportedModelError
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.network.graph import Network
from robust_plugins.proof_check.reading import KINDS, MAGIC

HEAD = 48
NO_PROOF = "certified by steps that the proof that was asked for cannot hold; leave `proof` out to trust them"
NAMES = {np.dtype(kind): name for name, kind in KINDS.items()}


def plain_record(about: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """A record as safetensors hold it, with what it is about as metadata."""
    header: dict[str, Any] = {"__metadata__": {"about": json.dumps(about)}}
    start, data = 0, []
    for name, array in arrays.items():
        data.append(np.ascontiguousarray(array).tobytes())
        place = {"data_offsets": [start, start + len(data[-1])]}
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape)} | place
        start += len(data[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *data])


def framed(plain: bytes) -> bytes:
    """A record as it stands in a file."""
    packed = zlib.compress(plain, 1)
    return struct.pack("<QQ", len(packed), len(plain)) + hashlib.sha256(packed).digest() + packed


@dataclass(eq=False)
class ProofFile:
    """A file of proofs, to which those for inputs of `shape` of one network are added.

    Each is written whole and at once: what an interruption cuts off is its last record, which goes where the next one
    comes. A record that the file holds already is not written again. Raises ArgumentError where the file is another
    one or cannot be written, or where the network has no proofs.
    """

    path: Path
    form: Network
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        plain = plain_record(*normal_form(self.form, self.shape))
        self.network = hashlib.sha256(plain).hexdigest()
        self._add(plain)

    def add(self, box: Interval, asked: dict[str, Any], rows: dict[str, np.ndarray], notes: Notes, parts: int) -> bool:
        """Writes the proof for one box; False where the notes do not hold a whole one."""
        found = notes.proof(parts)
        if found is None:
            return False
        steps, arrays = found
        ends = {"lower": _flat(box.lower), "upper": _flat(box.upper)}
        about = {"network": self.network, "property": asked, **steps}
        self._add(plain_record(about, ends | rows | arrays))
        return True

    def _add(self, plain: bytes) -> None:
        record = framed(plain)
        try:
            with open(self.path, "r+b" if self.path.exists() else "w+b") as file:
                size = os.fstat(file.fileno()).st_size
                if file.read(len(MAGIC)) != MAGIC[: min(size, len(MAGIC))]:
                    raise ArgumentError(
                        "proof", repr(str(self.path)), accepted="a new file, or one of proofs, which is added to",
                        hint="What is there is something else: choose another name.",
                    )  # fmt: skip
                end = len(MAGIC)
                while len(head := file.read(HEAD)) == HEAD:
                    after = end + HEAD + struct.unpack("<Q", head[:8])[0]
                    if after > size:
                        break
                    if head == record[:HEAD]:
                        return
                    end = file.seek(after)
                file.truncate(min(size, end))
                file.seek(0)
                file.write(MAGIC)
                file.seek(end)
                file.write(record)
        except OSError as error:
            raise ArgumentError(
                "proof", repr(str(self.path)), accepted="a file that can be written", hint=f"{error.strerror}."
            ) from error


def proof_file(path: str | Path, form: Callable[[], Network], shape: Sequence[int]) -> ProofFile:
    """The file at a path, for the network that `form` gives. Raises ArgumentError where that has none."""
    try:
        network = form()
    except UnsupportedModelError as error:
        raise ArgumentError(
            "proof", f"asked for a network that has no proofs: {error}",
            accepted="piecewise linear networks", hint="Leave `proof` out.",
        ) from error  # fmt: skip
    return ProofFile(Path(path), network, tuple(shape))


def property_of(unsafe: Unsafe) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A question about a network, as a proof holds it."""
    sizes = unsafe.member.sum(1).int().tolist()
    return {"conjunctions": sizes}, {"rows": unsafe.weights.numpy(), "offsets": unsafe.offsets.numpy()}


def label_property(label: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The question whether the logit of a label is above all others, as a proof holds it."""
    return {"label": label}, {}


def _flat(t: Tensor) -> np.ndarray:
    found: np.ndarray = t.detach().flatten().double().cpu().numpy()
    return found
