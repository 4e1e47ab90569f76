"""`audit`: holds the answers of verification tools against each other and against the network itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Literal

from robust_plugins.adapters.onnx.attack import Witness, search
from robust_plugins.adapters.onnx.claims import Claim
from robust_plugins.adapters.onnx.counterexamples import Replay, into, read_counterexample, replay
from robust_plugins.adapters.onnx.instances import Instance
from robust_plugins.adapters.onnx.network import OnnxNetwork, read_network
from robust_plugins.adapters.onnx.properties import Property, read_property
from robust_plugins.adapters.onnx.verification import check_fits, verify
from robust_plugins.errors import ArgumentError

TOLERANCE = 1e-4
"""By which the competition lets a counterexample miss its box and the unsafe outputs."""

Standing = Literal["exact", "moved", "border", "none", "unreadable", "missing"]
"""A counterexample's: `exact` is unsafe as it is written, `moved` is when it is moved into its box, by no more than the
tolerance; `border` is not, but misses by no more than the tolerance; `none` misses by more."""


@dataclass(frozen=True)
class Examined:
    """A claim, and what was found out about it."""

    claim: Claim
    standing: Standing | None
    """That of its counterexample; None where it claims none."""
    replay: Replay | None
    wrong: str = ""
    """Why the claim is wrong; empty where nothing says so."""


@dataclass(frozen=True)
class Audited:
    """An instance with the claims on it."""

    instance: Instance
    claims: tuple[Examined, ...]
    truth: Literal["sat", "unsat", ""]
    """`sat` where a witness is confirmed exactly, `unsat` where our own verifier proved it; else empty."""
    witness: tuple[Fraction, ...] | None
    source: str
    """Who found the witness: a tool's name, or `attack`."""

    @property
    def contradictory(self) -> bool:
        """Whether tools contradict each other, or a claim is wrong."""
        answers = {examined.claim.answer for examined in self.claims}
        return {"sat", "unsat"} <= answers or any(examined.wrong for examined in self.claims)


def audit(
    claims: dict[Instance, list[Claim]],
    folder: Path,
    *,
    attack: float,
    decide: float = 0.0,
    seed: int = 0,
    told: Callable[[Audited], None] = lambda audited: None,
) -> Iterator[Audited]:
    """Examines the claims on each instance, whose files are in `folder`.

    Every counterexample is replayed in onnxruntime, exactly. Where tools say `unsat` and no counterexample holds
    exactly, `attack` seconds are spent on a search for one. Where tools then contradict each other still, or a `sat`
    stands without a valid counterexample, our own verifier has `decide` seconds.
    """
    for instance, given in claims.items():
        if not any(claim.answer in ("sat", "unsat") for claim in given):
            continue
        network, question = _network(folder / instance.onnx), _question(folder / instance.vnnlib)
        check_fits(network, question)
        audited = _audited(instance, given, network, question, attack, decide, seed)
        told(audited)
        yield audited


@lru_cache(maxsize=4)
def _network(path: Path) -> OnnxNetwork:
    return read_network(path)


@lru_cache(maxsize=4)
def _question(path: Path) -> Property:
    return read_property(path)


def _audited(
    instance: Instance, claims: Iterable[Claim], network: OnnxNetwork, question: Property,
    attack: float, decide: float, seed: int,
) -> Audited:  # fmt: skip
    witness: tuple[Fraction, ...] | None = None
    source, found = "", []
    for claim in claims:
        standing, run, x = _replayed(claim, network, question)
        found.append(Examined(claim, standing, run))
        if x is not None and witness is None:
            witness, source = x, claim.tool
    answers = {claim.answer for claim in claims}
    if witness is None and "unsat" in answers and attack > 0:
        own = search(network, question, seconds=attack, seed=seed)
        witness, source = _taken(own)
    truth: Literal["sat", "unsat", ""] = "sat" if witness is not None else ""
    unsettled = {"sat", "unsat"} <= answers or any(e.standing not in (None, "exact", "moved") for e in found)
    if witness is None and unsettled and decide > 0:
        settled = verify(network, question, timeout=decide, seed=seed)
        if settled.answer == "unsat":
            truth = "unsat"
        elif settled.witness is not None:
            truth, (witness, source) = "sat", _taken(settled.witness)
    judged = tuple(Examined(e.claim, e.standing, e.replay, _wrong(e, truth, source)) for e in found)
    return Audited(instance, judged, truth, witness, source)


def _taken(own: Witness | None) -> tuple[tuple[Fraction, ...] | None, str]:
    return (None, "") if own is None else (own.x, "attack")


def _replayed(
    claim: Claim, network: OnnxNetwork, question: Property
) -> tuple[Standing | None, Replay | None, tuple[Fraction, ...] | None]:
    """The standing of a claim's counterexample, its run, and the input where that is a witness."""
    if claim.answer != "sat":
        return None, None, None
    if claim.counterexample is None:
        return "missing", None, None
    try:
        x = read_counterexample(claim.counterexample, question.inputs)
    except ArgumentError:
        return "unreadable", None, None
    run = replay(network.session, question, x)
    if run.unsafe:
        return "exact", run, x
    for case in question.cases:
        near = into(case, x)
        distance = max((abs(a - b) for a, b in zip(near, x, strict=True)), default=Fraction(0))
        if distance <= TOLERANCE and replay(network.session, question, near).unsafe:
            return "moved", run, near
    return ("border" if run.outside <= TOLERANCE and run.excess <= TOLERANCE else "none"), run, None


def _wrong(examined: Examined, truth: str, source: str) -> str:
    answer = examined.claim.answer
    if answer == "unsat" and truth == "sat":
        return (
            f"unsat, refuted by the counterexample of {source}" if source != "attack" else "unsat, refuted by an attack"
        )
    if answer == "sat" and truth == "unsat":
        return "sat, refuted by a proof of our own"
    run = examined.replay
    if examined.standing == "none" and run is not None:
        return (
            f"its counterexample is none: outside of the box by {run.outside:.2g}, short of unsafe by {run.excess:.2g}"
        )
    return ""
