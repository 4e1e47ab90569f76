"""`verify_property`: whether some input of a box reaches an unsafe set of outputs, by branch and bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.decisions.verifier.attack import Confirm
from robust_plugins.decisions.verifier.chains import chain
from robust_plugins.decisions.verifier.clock import Clock, Ticks, check_ticks
from robust_plugins.decisions.verifier.input_splitting import split_inputs
from robust_plugins.decisions.verifier.proofs import NO_PROOF, Notes, proof_file, property_of
from robust_plugins.decisions.verifier.properties import Answer, Halfspaces, Unsafe
from robust_plugins.decisions.verifier.relaxed_splitting import split_relaxed
from robust_plugins.decisions.verifier.relu_form import relu_form
from robust_plugins.decisions.verifier.search import Found
from robust_plugins.decisions.verifier.stages import Engine, Stages
from robust_plugins.errors import ArgumentError, UnsupportedModelError
from robust_plugins.harness.call import calling
from robust_plugins.harness.wrappers import Logits, logits_in
from robust_plugins.intervals import Interval, Relaxation, crown, rounding, trace
from robust_plugins.intervals.network.graph import Network

INPUTS = 24
"""With more inputs than that, halving boxes does not end."""
FIRST_TURN = 0.25
"""Seconds; where splitting either neurons or boxes of inputs may be better, they take turns that double: what is
decided at all mostly is soon, by one of them."""


def verify_property(
    model: nn.Module,
    lower: Float[Tensor, "*features"] | np.ndarray,
    upper: Float[Tensor, "*features"] | np.ndarray,
    unsafe: Sequence[Halfspaces],
    *,
    timeout: float = 60.0,
    clock: Ticks = "wall",
    seed: int = 0,
    engine: Engine | None = None,
    proof: str | Path | None = None,
) -> Answer:
    """Whether `model` maps some input between `lower` and `upper` into the union of the conjunctions `unsafe`.

    - `model`: maps (batch, *features) to (batch, outputs); evaluated in evaluation mode, and left as found
    - `lower`, `upper`: one input each, without the batch, in the model's dtype; an entry may be a point; tensors or
      numpy arrays
    - `unsafe`: reached by an output z where in one of them every row has `weights z + offsets <= 0`
    - `timeout`: seconds, from the call on
    - `clock`: "wall", or "cpu" for seconds that the process computes
    - `engine`: other parts than the usual ones
    - `proof`: a file to which the proof of `unsat` is added, for `robust-plugins check-proof`; of piecewise linear
      networks

    `unsat` holds in real arithmetic: every closed domain was evaluated once more in float64, with its rounding errors
    taken off. The witness of `sat`, shaped like `lower`, lies in the box and reaches the set as the model computes it.
    Networks that are not piecewise linear are decided where at most 24 inputs vary, or one bound suffices. Raises
    ArgumentError for unusable arguments, UnsupportedModelError, naming the layer, where one has no bounds.

    >>> reached = rp.Halfspaces(torch.tensor([[-1.0]]), torch.tensor([2.0]))  # 2 - z <= 0
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU())
    >>> model[0].weight.data, model[0].bias.data = torch.ones(1, 1), torch.zeros(1)
    >>> rp.verify_property(model, torch.tensor([0.0]), torch.tensor([1.0]), [reached]).answer
    'unsat'
    """
    check_ticks(clock)
    time = Clock(timeout, clock == "cpu")
    lower, upper = torch.as_tensor(lower), torch.as_tensor(upper)  # arrays too
    _check_box(lower, upper)
    low, up = lower.detach().unsqueeze(0), upper.detach().unsqueeze(0)
    with torch.no_grad(), calling(model, low) as call:
        outputs = call.model(low.clone())
        if (found := logits_in(outputs)) is not outputs:
            call.model, outputs = Logits(call.model), found
        _check_finite(call.model, outputs)
        asked = Unsafe(unsafe, outputs.shape[1])
        read = prepared(call.model, low)
        notes, file = Notes(), None if proof is None else proof_file(proof, lambda: read.relu, lower.shape)
        parts = engine or Engine()
        if file is not None:
            parts = replace(parts, root=notes.root, search=notes.search)
        found = decide(
            call.model, read, low, up, asked, reaching(call.model, asked), time, seed, parts,
            notes=None if file is None else notes,
        )  # fmt: skip
        if file is not None and found.answer == "unsat":
            written = file.add(Interval(low, up), *property_of(asked), notes, len(asked.member))
            found = found if written else replace(found, answer="unknown", message=NO_PROOF)
        call.check("verify_property")
    return Answer(found.answer, None if found.witness is None else found.witness[0])


def decide(
    model: nn.Module,
    read: Prepared,
    lower: Float[Tensor, "1 *features"],
    upper: Float[Tensor, "1 *features"],
    unsafe: Unsafe,
    confirm: Confirm,
    clock: Clock,
    seed: int,
    engine: Engine,
    tell: Callable[[int, int, float], None] = lambda domains, open_domains, bound: None,
    *,
    notes: Notes | None = None,
) -> Found:
    """Attacks, then halves boxes of few inputs, else branches over neurons; of a number in between first the latter.

    `model` is in evaluation mode, and `read` is what `prepared` made of it. `confirm` judges every witness. With
    `notes`, what a proof needs is written down.
    """
    few = chain(read.network, lower, upper, INPUTS)
    proved = torch.full((len(unsafe.member),), -torch.inf, dtype=torch.float64)
    box = Interval(lower.cpu().double(), upper.cpu().double())
    if notes is None and few is None and read.piecewise_linear:
        proved = at_once(read.relu, box, unsafe)
        if bool((proved > 0).all()):
            return Found("unsat", None, proved, 0)
    generator = torch.Generator().manual_seed(seed)
    x = engine.attack(model, lower, upper, unsafe, generator, clock)
    if x is not None and confirm(x):
        return Found("sat", x, proved, 0)

    def inside(z: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(z.view(lower.shape).to(lower), upper), lower)

    def confirmed(z: Tensor) -> bool:
        return confirm(inside(z))

    if few is not None and read.piecewise_linear and (not few.bends or not engine.few):
        few = None  # kinks other than ReLU's are better split than approached
    if few is not None and (len(few.lower) <= engine.few or not read.piecewise_linear):
        found = split_inputs(few, unsafe, confirmed, clock, tell, None if notes is None else notes.afresh())
    elif not read.piecewise_linear:
        found = split_relaxed(model, lower, upper, unsafe, confirmed, clock, most=INPUTS, tell=tell)
    else:
        found, domains, neurons, turn = Found("timeout", None, proved, 0), 0, few is None, FIRST_TURN
        given_up: set[bool] = set() if few is not None else {False}
        while clock.left > 0 and len(given_up) < 2:
            limited = clock if given_up or 2 * turn > clock.left else Clock(turn, clock.cpu)
            if few is None or neurons:
                found = Stages(read.relu, box, unsafe, confirmed, limited, engine, tell).run()
            else:
                found = split_inputs(few, unsafe, confirmed, limited, tell, None if notes is None else notes.afresh())
            proved, domains = torch.maximum(proved, found.bounds), domains + found.domains
            if found.answer in ("unsat", "sat") or (limited is clock and found.answer == "timeout"):
                break
            if found.answer == "unknown":
                given_up.add(neurons)
            neurons, turn = neurons if (not neurons) in given_up else not neurons, 2 * turn
        found = replace(found, domains=domains)
    found = replace(found, bounds=torch.maximum(found.bounds, proved))
    if found.witness is None:
        return found
    return replace(found, witness=inside(found.witness))


def at_once(form: Network, box: Interval, unsafe: Unsafe) -> Float[Tensor, " conjunctions"]:
    """Lower bounds of each conjunction's largest row by one linear relaxation, rounded outward; -inf for none."""
    nothing = torch.full((len(unsafe.member),), -torch.inf, dtype=torch.float64)
    try:
        with rounding.outward():
            values = crown(form, box, entries="bent")
            rows = Relaxation(form, values).lower(len(values) - 1, unsafe.weights.unsqueeze(0))
            outputs = torch.maximum(values[-1].lower.abs(), values[-1].upper.abs()).flatten(1)
            size = outputs @ unsafe.weights.abs().t() + unsafe.offsets.abs()  # weights may be rounded too
            return unsafe.excess(rounding.lessened(rows + unsafe.offsets, 2.0**-52 * size))[0]
    except UnsupportedModelError:  # a layer has no such bounds, and is unfolded by columns then
        return nothing


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model read."""

    network: Network
    shapes: list[tuple[int, ...]]
    """Of each node's output, without the batch."""

    @cached_property
    def relu(self) -> Network:
        """Its ReLU form. Raises UnsupportedModelError, naming the layer, where it has none."""
        return relu_form(self.network, self.shapes)

    @property
    def piecewise_linear(self) -> bool:
        """Whether there is a ReLU form."""
        try:
            return self.relu is not None
        except UnsupportedModelError:
            return False


def prepared(model: nn.Module, x: Float[Tensor, "batch *features"]) -> Prepared:
    """The model, traced. Raises UnsupportedModelError, naming the layer, where it cannot be."""
    network = trace(model, x)
    return Prepared(network, [tuple(v.shape[1:]) for v in network.forward(Interval.point(x[:1]))])


def reaching(model: nn.Module, unsafe: Unsafe) -> Callable[[Tensor], bool]:
    """Whether the model reaches the unsafe set on an input, judged in float64 on what it returns."""

    def confirm(x: Tensor) -> bool:
        return bool((unsafe.excess(unsafe.values(model(x).cpu().double())) <= 0).any())

    return confirm


def _check_finite(model: nn.Module, outputs: Tensor) -> None:
    wrong = [f"has the weight {name!r} with" for name, p in model.named_parameters() if not bool(p.isfinite().all())]
    if wrong or not bool(outputs.isfinite().all()):
        raise ArgumentError(
            "model", f"one that {wrong[0] if wrong else 'returns at `lower`'} values that are not finite",
            accepted="finite weights, and finite outputs at `lower`", hint="Nothing is known of such networks.",
        )  # fmt: skip


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
