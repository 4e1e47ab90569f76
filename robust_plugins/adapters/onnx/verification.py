"""`verify`: whether a network satisfies a property, as the competition's tools answer it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from robust_plugins.adapters.onnx.attack import Witness, confirmed, search
from robust_plugins.adapters.onnx.network import OnnxNetwork, read_network
from robust_plugins.adapters.onnx.properties import Case, Property, read_property
from robust_plugins.adapters.onnx.properties.rows import WithInput, box, halfspaces, needs_input
from robust_plugins.decisions.verifier import verify_property
from robust_plugins.decisions.verifier.clock import Clock, Ticks, check_ticks
from robust_plugins.decisions.verifier.verify import INPUTS
from robust_plugins.errors import ArgumentError, UnsupportedModelError

Word = Literal["unsat", "sat", "unknown", "timeout"]
ATTACK, SHORT = 0.1, 0.02
"""Seconds, at most a fiftieth of all, that are spent on counterexamples before anything is bounded; and where the
inputs are few, so that searches by boxes of inputs meet them soon."""


@dataclass(frozen=True, repr=False)
class Verified:
    """The answer to a property: `unsat` where nothing unsafe is reached, `sat` with a witness.

    - `answer`: `unsat`, `sat`, `unknown` or `timeout`.
    - `witness`: the input of `sat`, with its run by onnxruntime.
    - `message`: why there is no answer.
    """

    answer: Word
    witness: Witness | None = None
    message: str = ""

    def __repr__(self) -> str:
        """One line."""
        found = "" if self.witness is None else f", with a witness of {len(self.witness.x)} inputs"
        return f"<Verified: {self.answer}{found}{': ' * bool(self.message)}{self.message}>"


def verify(
    network: OnnxNetwork | Path | str,
    property: Property | Path | str,
    *,
    timeout: float,
    clock: Ticks = "wall",
    seed: int = 0,
    proof: str | Path | None = None,
) -> Verified:
    """Says whether some input of the property's boxes has an unsafe output: `unsat`, or `sat` with a witness.

    - `network`: an ONNX file, plain or gzipped, or one that was read
    - `property`: a file in VNN-LIB, plain or gzipped, or one that was read
    - `timeout`: seconds, from the call on
    - `clock`: "wall", or "cpu" for seconds that the process computes
    - `seed`: of the search for counterexamples
    - `proof`: a file to which the proof of each box of the property is added, for `robust-plugins check-proof`; of
      piecewise linear networks

    `sat` has a witness that lies in its box exactly, and whose run in onnxruntime is unsafe exactly. `unsat` is proved
    for all real inputs of the boxes, in the arithmetic that the verifier states. Raises ArgumentError where a file
    cannot be read, or network and property do not fit together.
    """
    check_ticks(clock)
    time = Clock(timeout, clock == "cpu")
    if not isinstance(network, OnnxNetwork):
        network = read_network(network)
    if not isinstance(property, Property):
        property = read_property(property)
    check_fits(network, property)
    with torch.random.fork_rng(devices=[]):
        attack = SHORT if property.inputs <= INPUTS else ATTACK
        witness = search(network, property, seconds=min(timeout / 50, attack), cpu=time.cpu, seed=seed)
        if witness is not None:
            return Verified("sat", witness)
        messages: list[str] = []
        open_cases: set[Word] = set()
        for case in property.cases:
            if time.left <= 0:
                return Verified("timeout")
            found = _decided(network, property, case, time.left, clock, seed, proof)
            if found.answer == "sat":
                return found
            if found.answer != "unsat":
                open_cases.add(found.answer)
                messages.append(found.message)
    if not open_cases:
        return Verified("unsat")
    return Verified("timeout" if "timeout" in open_cases else "unknown", message=" ".join(dict.fromkeys(messages)))


def _decided(
    network: OnnxNetwork,
    property: Property,
    case: Case,
    timeout: float,
    clock: Ticks,
    seed: int,
    proof: str | Path | None,
) -> Verified:
    if not case.unsafe:
        return Verified("unsat")
    model = nn.Sequential(network.model, nn.Flatten()) if len(network.output_shape) > 1 else network.model
    if needs_input(case):
        model = WithInput(network.model)
    ends = box(case, network.dtype, outward=True)
    lower, upper = (side.view(network.input_shape) for side in ends)
    sets = halfspaces(case, property.outputs)
    if not all(len(offsets) for _, offsets in sets):
        return Verified("unknown", message="Every output is unsafe, and onnxruntime found none that is finite.")
    try:
        answer, x = verify_property(model, lower, upper, sets, timeout=timeout, clock=clock, seed=seed, proof=proof)
    except UnsupportedModelError as error:
        return Verified("unknown", message=str(error))
    if answer != "sat":
        return Verified(answer)
    assert x is not None
    witness = confirmed(network, property, case, x)
    if witness is None:
        # A point on the border, where the two round differently: look for one that is further in.
        witness = search(network, property, seconds=min(timeout, 1.0), cpu=clock == "cpu", seed=seed, starts=[x])
    if witness is None:
        return Verified("unknown", message="A counterexample of the imported network is none in onnxruntime.")
    return Verified("sat", witness)


def check_fits(network: OnnxNetwork, property: Property) -> None:
    """Raises ArgumentError unless the property has the network's inputs and outputs, and bounds of its numbers."""
    sizes = torch.Size(network.input_shape).numel(), torch.Size(network.output_shape).numel()
    if sizes != (property.inputs, property.outputs):
        raise ArgumentError(
            "property", f"{str(property.path)!r}: of {property.inputs} inputs and {property.outputs} outputs",
            accepted=f"those of {str(network.path)!r}: {sizes[0]} inputs and {sizes[1]} outputs",
            hint="Give the network that the property is written for.",
        )  # fmt: skip
    largest = torch.finfo(network.dtype).max
    for case in property.cases:
        for i, ends in enumerate(zip(case.lower, case.upper, strict=True)):
            if max(map(abs, ends)) > largest:
                raise ArgumentError(
                    "property", f"{str(property.path)!r}: X_{i} from {float(ends[0]):.3g} to {float(ends[1]):.3g}",
                    accepted=f"bounds of at most {largest:.3g}, the largest number of the network's {network.dtype}",
                    hint="Bound the input to what it can be.",
                )  # fmt: skip
