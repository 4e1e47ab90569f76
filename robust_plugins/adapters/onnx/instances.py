"""Instances of verification: networks and properties with a timeout each, and what was answered to them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from robust_plugins.errors import ArgumentError

COLUMNS = ("onnx", "vnnlib", "timeout", "answer", "seconds", "message")
"""Those of a file of results, its first line."""
ANSWERS = ("unsat", "sat", "unknown", "timeout", "error")


@dataclass(frozen=True)
class Instance:
    """A network and a property, as their file names them, and the seconds that there are for it."""

    onnx: str
    vnnlib: str
    timeout: float

    @property
    def name(self) -> str:
        """The name of its counterexample: network and property, without folders and suffixes."""
        return f"{stem(self.onnx)}_{stem(self.vnnlib)}"


@dataclass(frozen=True)
class Outcome:
    """The answer to an instance, and the seconds that it took."""

    instance: Instance
    answer: str
    seconds: float
    message: str = ""


def stem(path: str) -> str:
    """The file's name without folders, `.gz`, `.onnx` and `.vnnlib`."""
    return Path(path).name.removesuffix(".gz").removesuffix(".onnx").removesuffix(".vnnlib")


def read_instances(path: str | Path) -> list[Instance]:
    """The lines `network,property,timeout` of a file; lines that begin so twice are one.

    Raises ArgumentError, naming the line, for anything else.
    """
    path = Path(path)
    found: dict[Instance, None] = {}
    for number, row in _rows(path, "instances"):
        try:
            onnx, vnnlib, timeout = (cell.strip() for cell in row[:3])
            seconds = float(timeout)
        except ValueError:
            raise _refused("instances", path, number, ",".join(row)) from None
        if len(row) > 3 or not onnx or not vnnlib or not 0 < seconds < 1e7:
            raise _refused("instances", path, number, ",".join(row))
        found[Instance(onnx, vnnlib, seconds)] = None
    if not found:
        raise ArgumentError(
            "instances", f"{str(path)!r}: empty", accepted="lines network,property,timeout", hint="Check the path."
        )
    return list(found)


def _rows(path: Path, argument: str) -> list[tuple[int, list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [(number, row) for number, row in enumerate(csv.reader(file), start=1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ArgumentError(
            argument, f"{str(path)!r}, which cannot be read: {error}", accepted="a CSV file", hint="Check the path."
        ) from error


def _refused(argument: str, path: Path, number: int, line: str) -> ArgumentError:
    return ArgumentError(
        argument, f"{str(path)!r}, line {number}: {line[:80]!r}", accepted="lines network,property,timeout in seconds",
        hint="Write the timeout as a number of seconds above zero.",
    )  # fmt: skip


class Results:
    """A file of results that grows line by line, and that a run which was interrupted goes on with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: dict[Instance, Outcome] = {}
        if path.exists() and path.stat().st_size:
            self._read()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(COLUMNS, "w")

    def add(self, outcome: Outcome) -> None:
        """Writes an answer down, at once."""
        self.outcomes[outcome.instance] = outcome
        at, seconds = outcome.instance, f"{outcome.seconds:.3f}"
        self._write((at.onnx, at.vnnlib, f"{at.timeout:g}", outcome.answer, seconds, outcome.message), "a")

    def _read(self) -> None:
        text = self.path.read_bytes()
        if not text.endswith(b"\n"):  # a run was killed while it wrote this line
            self.path.write_bytes(text[: text.rfind(b"\n") + 1])
        (_, header), *rows = _rows(self.path, "results") or [(1, [])]
        if tuple(header) != COLUMNS:
            raise ArgumentError(
                "results", f"{str(self.path)!r}, which holds something else",
                accepted="a file of this command, or a new one", hint="Name another file.",
            )  # fmt: skip
        for _, (onnx, vnnlib, timeout, answer, seconds, message) in rows:
            instance = Instance(onnx, vnnlib, float(timeout))
            self.outcomes[instance] = Outcome(instance, answer, float(seconds), message)

    def _write(self, row: tuple[str, ...], mode: str) -> None:
        with self.path.open(mode, newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(row)
