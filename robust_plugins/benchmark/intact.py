"""Whether records are what a run wrote: each says what records can say, and has the identity of its own fields."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from robust_plugins.balls import BALLS
from robust_plugins.benchmark.records import CLEAN, IDENTITY, NUMBERS, POISONING_CERTIFIER, identities
from robust_plugins.benchmark.store import Store, artifact_hash, refused
from robust_plugins.decisions.results import Verdict
from robust_plugins.errors import ArgumentError
from robust_plugins.registry.information import Kind

HINT = "Take a copy that nobody edited; what is there can still be written out: bench export."


def _json_of(kind: type, *empty: str) -> Callable[[Any], bool]:
    def allowed(value: Any) -> bool:
        if value in empty:
            return True
        try:
            return isinstance(json.loads(value), kind)
        except (TypeError, ValueError, RecursionError):
            return False

    return allowed


def _number(value: Any) -> bool:
    return value is None or (isinstance(value, float | int) and not math.isnan(value))


def _one_of(*words: str) -> Callable[[Any], bool]:
    return words.__contains__


_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "verdict": (_one_of(*(v.value for v in Verdict)), ", ".join(Verdict)),
    "norm": (_one_of("", "box", *BALLS), f"nothing, box or {', '.join(BALLS)}"),
    "kind": (_one_of(CLEAN, POISONING_CERTIFIER, *(kind.value for kind in Kind)), "a kind of component"),
    "eps": (lambda value: isinstance(value, float | int) and value >= 0, "a number of at least 0"),
    "sample": (lambda value: isinstance(value, int) and value >= 0, "a whole number of at least 0"),
    "label": (lambda value: isinstance(value, int), "a whole number"),
    "parameters": (_json_of(dict), "an object as JSON"),
    "versions": (_json_of(dict), "an object as JSON"),
    "clip": (_json_of(list, ""), "a pair as JSON, or nothing"),
    "box": (_json_of(dict, ""), "an object as JSON, or nothing"),
    "batch": (lambda value: bool(re.fullmatch(r"(\d+(-\d+)?(,\d+(-\d+)?)*)?", str(value))), "samples, such as 0-63"),
    **dict.fromkeys((*NUMBERS, "seconds", "backend_seconds", "queries"), (_number, "a number, or nothing")),
}


def check_intact(store: Store, columns: Mapping[str, Sequence[Any]]) -> None:
    """Raises ArgumentError where a record was edited, or damaged: with a value that none has, or another's identity.

    `columns` are all of some records. An answer that was edited into another possible one is found by `verify` alone.
    """
    for name, (allowed, accepted) in _ALLOWED.items():
        for value in set(columns[name]):
            if not allowed(value):
                place = list(columns[name]).index(value)
                raise _edited(store, columns, place, f"its {name} is {value!r}, where {accepted} can stand")
    common = [name for name in (*IDENTITY, "box") if name not in ("input_hash", "label")]
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, values in enumerate(zip(*(columns[name] for name in common), strict=True)):
        groups[values].append(place)
    for values, places in groups.items():
        hashes, labels = ([columns[name][i] for i in places] for name in ("input_hash", "label"))
        names = identities(dict(zip(common, values, strict=True)), hashes, labels)
        for place, name in zip(places, names, strict=True):
            if columns["identity"][place] != name:
                raise _edited(store, columns, place, f"its identity is not that of its {', '.join(IDENTITY)}")


def example_of(store: Store, name: str) -> bytes:
    """The kept example of this name; raises KeyError where there is none, ArgumentError where it is not that one."""
    content = store.artifact(name)
    if artifact_hash(content) != name:
        raise refused(store.path, f"damaged: the example {name} has other content than its name says", HINT)
    return content


def _edited(store: Store, columns: Mapping[str, Sequence[Any]], place: int, what: str) -> ArgumentError:
    component, sample, data, model = (columns[name][place] for name in ("component", "sample", "data", "model"))
    who = f"the record of {component} on sample {sample} of {data}, {model}"
    return refused(store.path, f"edited or damaged: {who}: {what}", HINT)
