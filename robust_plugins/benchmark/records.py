"""`Record`: what one component answered on one sample, and everything that the answer depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple

from robust_plugins.balls import BALLS, Ball, Box

CLEAN = "clean"
"""The kind, and the component, of rows that say what the model decides on the input itself."""

POISONING_CERTIFIER = "poisoning certifier"
"""The kind of rows about what abstract gradient training proved; other kinds are those of the registry."""

IDENTITY = ("model_hash", "input_hash", "label", "norm", "eps", "clip", "kind", "component_hash", "versions", "seed",
             "device", "batch_size")  # fmt: skip
"""What can change an answer. Threads and the machine can change its rounding alone, so that a study goes on elsewhere:
they are recorded beside it. Names are the study's own, and change nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One row of a store: the answer of one component on one sample, in one ball, of one model.

    None stands for a number that does not exist: an attack has no proved margin where it failed, NaN is no number, and
    rows without an answer (`timeout`, `error`, `unsupported`) have none at all.
    """

    model: str
    """The name that the study gives it, as `data` and `component` are."""
    data: str
    sample: int
    """The index of the sample in the part of the data set that the study takes."""
    norm: str = ""
    """`linf`, `l2`, `l1` or `box`; empty where there is no ball, on clean rows."""
    eps: float = 0.0
    clip: str = ""
    """The valid range as JSON, `[0.0, 1.0]`; empty where there is none."""
    box: str = ""
    """What a `box` says of each feature, as JSON: its arguments, and the shape of an input; empty for other balls."""
    component: str
    method: str
    """The registered name, such as `art:pgd`; `clean` on clean rows."""
    kind: str
    """`attack`, `certifier`, `explanation attack`, `explanation certifier`, `poisoning attack`, `poisoning certifier`
    or `clean`."""
    parameters: str = "{}"
    """All of them, defaults included, as canonical JSON."""
    seed: int
    """Of attacks; 0 of all that draws nothing, or has a seed among its parameters."""

    verdict: str
    """A value of `rp.Verdict`. An attack's is `falsified` where it succeeds and else `unknown`: no failed attack is a
    proof. A clean row counts as the attack that leaves the input as it is."""
    success: bool | None = None
    """Of attacks: whether the decision is wrong, the target reached where there is one, or the explanation changed by
    more than allowed; None of others."""
    margin: float | None = None
    """Of a certifier the proved lower bound of `min_j (z_y - z_j)` over the ball; of an attack, and of a clean row, the
    margin where it arrived. Of explanations the width of the widest feature: proved by a certifier, achieved by an
    attack."""
    distance: float | None = None
    """From the input, in the ball's norm, where an attack arrived or the witness of a certifier lies."""
    loss: float | None = None
    """Cross-entropy where an attack arrived."""
    label: int
    prediction: int | None = None
    """The decision: of a clean row and a certifier on the input itself, of an attack where it arrived."""
    queries: int | None = None
    """How many inputs the model was run on for this sample, backward passes not counted; None where unknown."""
    seconds: float | None = None
    """This sample's share of the wall-clock time of its batch."""
    backend_seconds: float | None = None
    """The part of `seconds` that the backend took; None where unknown."""
    error: str = ""
    """The cause of a row without an answer; what a certifier says beside an answer."""
    artifact: str = ""
    """The hash of the adversarial example or witness, where it is kept."""

    model_hash: str
    """Of the weights and the architecture."""
    input_hash: str
    """Of the input: its values, shape and dtype."""
    component_hash: str
    """Of the registered name, the class and all parameters."""
    versions: str = "{}"
    """Of the package, the plugin, its backends and torch, as canonical JSON."""
    device: str = "cpu"
    threads: int = 1
    batch_size: int
    """How many samples at most the study hands to a component at a time; random draws depend on it."""
    batch: str = ""
    """The samples of the very call: `0-63`, or `3,5-7`."""
    machine: str = ""
    created: str = ""
    """UTC, ISO 8601."""

    def __post_init__(self) -> None:
        for name in NUMBERS:
            object.__setattr__(self, name, number(getattr(self, name)))

    @property
    def identity(self) -> str:
        """The hash of everything that can change the answer: equal identities, equal answers up to rounding."""
        return digest(*(repr(getattr(self, name)) for name in IDENTITY), *([self.box] if self.box else []))

    def ball(self) -> Ball | None:
        """The ball that was searched or certified; None of a clean row."""
        if not self.norm:
            return None
        clip = tuple(json.loads(self.clip)) if self.clip else None
        if self.norm != "box":
            return BALLS[self.norm](eps=self.eps, clip=clip)
        said = json.loads(self.box)
        return Box(eps=self.eps, clip=clip, **{name: said[name] for name in _BOX if name in said})


_BOX = ("radius", "lower", "upper", "immutable", "one_hot", "integers")
"""The arguments of a `Box` beside those of every ball."""

ANSWERS = ("verdict", "success", "margin", "distance", "loss", "prediction", "error")
"""The fields that two runs of the same identity agree on, up to rounding."""

COLUMNS = ("identity", *(field.name for field in fields(Record)))
"""The columns of a store, in its order."""

DEFAULTS = {field.name: field.default for field in fields(Record) if field.default is not MISSING}
"""What the fields say that a record need not be given."""


NUMBERS = ("margin", "distance", "loss")
"""The fields that hold None in place of NaN."""


def number(value: Any) -> Any:
    """`value`, and None in place of NaN, which is no number."""
    return None if value != value else value


class Asked(NamedTuple):
    """A row that a study asks for, under the names that it gives to model, data, sample and component.

    Two rows of one identity are computed once: equal weights under two names, or a component that is listed twice.
    """

    identity: str
    model: str
    data: str
    sample: int
    component: str


def identities(common: Mapping[str, Any], input_hashes: Sequence[str], labels: Sequence[int]) -> list[str]:
    """`Record.identity` of many records that differ in their inputs alone; `common` has the fields of all of them."""
    before, *after = (name for name in IDENTITY if name not in ("input_hash", "label"))
    first = _counted(repr(common[before]))
    last = b"".join(_counted(repr(common[name])) for name in after)
    last += _counted(common["box"]) if common.get("box") else b""
    return [
        hashlib.blake2b(first + _counted(repr(input_hash)) + _counted(repr(label)) + last, digest_size=16).hexdigest()
        for input_hash, label in zip(input_hashes, labels, strict=True)
    ]


def canonical(value: Any) -> str:
    """`value` as JSON of one form: keys sorted, no spaces, NaN refused, tuples as lists, other things by their repr."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=repr)


def digest(*parts: str | bytes) -> str:
    """A hash of texts and bytes, in order: 32 hexadecimal digits (BLAKE2b, 128 bits)."""
    found = hashlib.blake2b(digest_size=16)
    for content in parts:
        found.update(_counted(content))
    return found.hexdigest()


def _counted(content: str | bytes) -> bytes:
    """`content` behind its length, so that no two lists run together."""
    content = content.encode() if isinstance(content, str) else content
    return len(content).to_bytes(8, "little") + content


def ball_fields(ball: Ball | None, shape: Sequence[int] = ()) -> Mapping[str, Any]:
    """The fields `norm`, `eps`, `clip` and `box` of a record about this ball, which has one radius.

    `shape` is that of an input: without it boxes are only held against those that are the same.
    """
    if ball is None:
        return {"norm": "", "eps": 0.0, "clip": "", "box": ""}
    clip = "" if ball.clip is None else canonical([float(end) for end in ball.clip])
    box = ""
    if isinstance(ball, Box):
        said = {name: value for name in _BOX if (value := getattr(ball, name)) not in (None, ())}
        box = canonical(said | ({"shape": list(shape)} if shape else {}))
    return {"norm": type(ball).__name__.lower(), "eps": float(ball.largest), "clip": clip, "box": box}


def box_words(box: str) -> str:
    """The field `box` of a record in a few words: its radii, and how many features are of a kind of their own."""
    said = json.loads(box)
    radii = sorted(set(_flat(said["radius"])))
    words = [f"radius {radii[0]:.4g}" if len(radii) == 1 else f"radii {radii[0]:.4g} to {radii[-1]:.4g}"]
    words += [f"{len(said[n])} {n.replace('_', '-')}" for n in ("one_hot", "integers", "immutable") if n in said]
    return ", ".join(words)


def _flat(value: Any) -> list[float]:
    return [n for v in value for n in _flat(v)] if isinstance(value, list) else [float(value)]


def ranges(samples: list[int]) -> str:
    """Sorted indices as text, runs of them shortened: `[0, 1, 2, 5]` is `0-2,5`."""
    runs: list[list[int]] = []
    for sample in samples:
        if runs and sample == runs[-1][1] + 1:
            runs[-1][1] = sample
        else:
            runs.append([sample, sample])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def samples_of(text: str) -> list[int]:
    """The indices that `ranges` wrote."""
    runs = (part.split("-") for part in text.split(",") if part)
    return [i for run in runs for i in range(int(run[0]), int(run[-1]) + 1)]
