"""Answers of verification tools to instances, as their files state them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from robust_plugins.adapters.onnx.instances import Instance, stem
from robust_plugins.errors import ArgumentError

_WORDS = {"unsat": "unsat", "holds": "unsat", "sat": "sat", "violated": "sat", "unknown": "unknown"}


@dataclass(frozen=True)
class Claim:
    """The answer of a tool to an instance, and the file of the counterexample that it gives, if there is one."""

    tool: str
    answer: str
    counterexample: Path | None


def read_claims(paths: Iterable[Path], instances: Iterable[Instance]) -> dict[Instance, list[Claim]]:
    """The answers in `paths` to each instance, one file a tool, which is named as its file.

    A file has lines `category,network,property,seconds,answer,seconds`, as the competition publishes them, or a first
    line that names the columns `onnx`, `vnnlib` and `answer`. Networks and properties are matched by their names,
    without folders and suffixes. Counterexamples lie in a folder beside the file, named as it without its suffix, as
    `NETWORK_PROPERTY.counterexample`, plain or gzipped. Raises ArgumentError for other files, and for two lines on one
    instance that differ.
    """
    known = {(stem(i.onnx), stem(i.vnnlib)): i for i in instances}
    found: dict[Instance, list[Claim]] = {instance: [] for instance in known.values()}
    tools: set[str] = set()
    for path in paths:
        tool = path.name.partition(".")[0]
        if tool in tools:
            raise _refused(path, f"a second file of the name {tool!r}")
        tools.add(tool)
        answers: dict[Instance, str] = {}
        for number, onnx, vnnlib, answer in _rows(path):
            instance = known.get((stem(onnx), stem(vnnlib)))
            if instance is not None and answers.setdefault(instance, answer) != answer:
                raise _refused(path, f"line {number} answers {answer!r} where an earlier one does otherwise")
        if not answers:
            raise _refused(path, "without an answer to any of the instances")
        for instance, answer in answers.items():
            found[instance].append(Claim(tool, answer, _counterexample(path, instance)))
    return found


def _rows(path: Path) -> list[tuple[int, str, str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _refused(path, f"cannot be read: {error}") from error
    if not rows:
        raise _refused(path, "empty")
    columns, first = (1, 2, 4), 1
    if {"onnx", "vnnlib"} <= set(rows[0]):
        if "answer" not in rows[0]:
            raise _refused(path, f"its columns are {', '.join(rows[0])}")
        columns, first = tuple(rows[0].index(name) for name in ("onnx", "vnnlib", "answer")), 2  # type: ignore[assignment]
    found = []
    for number, row in enumerate(rows[first - 1 :], start=first):
        if len(row) <= max(columns):
            raise _refused(path, f"line {number}: {','.join(row)[:80]!r}")
        onnx, vnnlib, answer = (row[i].strip() for i in columns)
        word = answer.lower()
        found.append((number, onnx, vnnlib, _WORDS.get(word, "timeout" if "timeout" in word else "error")))
    return found


def _counterexample(path: Path, instance: Instance) -> Path | None:
    folder = path.with_name(path.name.partition(".")[0])
    for suffix in (".counterexample", ".counterexample.gz"):
        file = folder / (instance.name + suffix)
        if file.is_file():
            return file
    return None


def _refused(path: Path, found: str) -> ArgumentError:
    return ArgumentError(
        "answers", f"{str(path)!r}: {found}",
        accepted="lines category,network,property,seconds,answer,seconds, or columns onnx, vnnlib and answer",
        hint="Give one file for each tool.",
    )  # fmt: skip
