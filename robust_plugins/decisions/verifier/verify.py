"""`verify_property`: whether some input of a box reaches an unsafe set of outputs, by branch and bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.decisions.verifier.clock import Clock
from robust_plugins.decisions.verifier.proofs import NO_PROOF, Notes, ProofFile, property_of
from robust_plugins.decisions.verifier.properties import Answer, Halfspaces, Unsafe
from robust_plugins.decisions.verifier.relu_form import relu_form
from robust_plugins.decisions.verifier.search import Found
from robust_plugins.decisions.verifier.stages import Engine, Stages
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.call import calling
from robust_plugins.intervals import Interval, trace
from robust_plugins.intervals.network.graph import Network


def verify_property(
    model: nn.Module,
    lower: Float[Tensor, "*features"],
    upper: Float[Tensor, "*features"],
    unsafe: Sequence[Halfspaces],
    *,
    timeout: float = 60.0,
    seed: int = 0,
    engine: Engine | None = None,
    proof: str | Path | None = None,
) -> Answer:
    """Whether `model` maps some input between `lower` and `upper` into the union of the conjunctions `unsafe`.

    - `model`: maps (batch, *features) to (batch, outputs); evaluated in evaluation mode, and left as found
    - `lower`, `upper`: one input each, without the batch, in the model's dtype; an entry may be a point
    - `unsafe`: reached by an output z where in one of them every row has `weights z + offsets <= 0`
    - `timeout`: wall-clock seconds, from the call on
    - `engine`: other parts than the usual ones
    - `proof`: a file to which the proof of `unsat` is added, for `robust-plugins check-proof`

    `unsat` holds in real arithmetic: every closed domain was evaluated once more in float64, with its rounding errors
    taken off. The witness of `sat`, shaped like `lower`, lies in the box and reaches the set as the model computes it.
    Raises ArgumentError for unusable arguments, UnsupportedModelError, naming the layer, where one is not piecewise
    linear.
    """
    clock = Clock(timeout)
    _check_box(lower, upper)
    low, up = lower.detach().unsqueeze(0), upper.detach().unsqueeze(0)
    with torch.no_grad(), calling(model, low) as call:
        outputs = call.model(low.clone())
        asked = Unsafe(unsafe, outputs.shape[1])
        form = prepared(call.model, low)
        notes, file = Notes(), None if proof is None else ProofFile(Path(proof), form, tuple(lower.shape))
        parts = engine or Engine()
        if file is not None:
            parts = replace(parts, root=notes.root, search=notes.search)
        found = decide(call.model, form, low, up, asked, reaching(call.model, asked), clock, seed, parts)
        if file is not None and found.answer == "unsat":
            written = file.add(Interval(low, up), *property_of(asked), notes, len(asked.member))
            found = found if written else replace(found, answer="unknown", message=NO_PROOF)
        call.check("verify_property")
    return Answer(found.answer, None if found.witness is None else found.witness[0])


def decide(
    model: nn.Module,
    form: Network,
    lower: Float[Tensor, "1 *features"],
    upper: Float[Tensor, "1 *features"],
    unsafe: Unsafe,
    confirm: Callable[[Tensor], bool],
    clock: Clock,
    seed: int,
    engine: Engine,
    tell: Callable[[int, int, float], None] = lambda domains, open_domains, bound: None,
) -> Found:
    """Attacks, bounds the root, then searches; `model` is in evaluation mode, `form` its ReLU form.

    `confirm` judges every witness.
    """
    proved = torch.full((len(unsafe.member),), -torch.inf, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    x = engine.attack(model, lower, upper, unsafe, generator, clock)
    if x is not None and confirm(x):
        return Found("sat", x, proved, 0)

    def confirmed(z: Tensor) -> bool:
        return confirm(torch.maximum(torch.minimum(z.to(lower), upper), lower))

    box = Interval(lower.cpu().double(), upper.cpu().double())
    found = Stages(form, box, unsafe, confirmed, clock, engine, tell).run()
    if found.witness is None:
        return found
    witness = torch.maximum(torch.minimum(found.witness.to(lower), upper), lower)
    return Found(found.answer, witness, found.bounds, found.domains)


def prepared(model: nn.Module, x: Float[Tensor, "batch *features"]) -> Network:
    """The model's ReLU form. Raises UnsupportedModelError, naming the layer, where it has none."""
    network = trace(model, x)
    return relu_form(network, [tuple(v.shape[1:]) for v in network.forward(Interval.point(x[:1]))])


def reaching(model: nn.Module, unsafe: Unsafe) -> Callable[[Tensor], bool]:
    """Whether the model reaches the unsafe set on an input, judged in float64 on what it returns."""

    def confirm(x: Tensor) -> bool:
        return bool((unsafe.excess(unsafe.values(model(x).cpu().double())) <= 0).any())

    return confirm


def _check_box(lower: Tensor, upper: Tensor) -> None:
    if lower.shape != upper.shape or lower.dtype != upper.dtype or not lower.dtype.is_floating_point:
        raise ArgumentError(
            "upper", f"{upper.dtype} of shape {tuple(upper.shape)}",
            accepted=f"lower's floating dtype and shape, {lower.dtype} {tuple(lower.shape)}",
            hint="Give both ends of the box in the model's dtype.",
        )  # fmt: skip
    if not bool((lower <= upper).all()) or not bool(lower.isfinite().all() & upper.isfinite().all()):
        raise ArgumentError(
            "lower", "above `upper` somewhere, or not finite", accepted="finite numbers, lower <= upper",
            hint="A box that holds no input satisfies nothing.",
        )  # fmt: skip
