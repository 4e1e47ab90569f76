"""`search`: looks for a counterexample to a property by gradient descent, judged by onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from robust_plugins.adapters.onnx.counterexamples import Replay, into, replay
from robust_plugins.adapters.onnx.network import OnnxNetwork
from robust_plugins.adapters.onnx.properties import Case, Property
from robust_plugins.adapters.onnx.properties.rows import WithInput, box, halfspaces, needs_input
from robust_plugins.decisions.verifier import Halfspaces
from robust_plugins.decisions.verifier.clock import Clock

BATCH = 256
"""Inputs that are moved at once."""
STEPS = 60
BEFORE = 10
"""Steps that are gone whatever the time."""


@dataclass(frozen=True)
class Witness:
    """An input that onnxruntime confirms, inside its box exactly, and the run.

    - `x`: the values, as exact fractions.
    - `replay`: the run.
    """

    x: tuple[Fraction, ...]
    replay: Replay


def confirmed(network: OnnxNetwork, property: Property, case: Case, x: Tensor) -> Witness | None:
    """The input moved into its box exactly, where its run in onnxruntime is unsafe; else None."""
    point = into(case, [Fraction(v) for v in x.flatten().tolist()])
    run = replay(network.session, property, point)
    return Witness(point, run) if run.unsafe else None


def search(
    network: OnnxNetwork,
    property: Property,
    *,
    seconds: float,
    cpu: bool = False,
    seed: int = 0,
    starts: Sequence[Tensor] = (),
) -> Witness | None:
    """A counterexample, or None where none was found in about so many seconds, or at least one round.

    From random inputs of every box, signed steps downhill on the farthest row of each conjunction, whose size shrinks;
    rounds with new inputs until the time is used up, which with `cpu` is what the process computes. `starts` are inputs
    to begin the first round with.
    """
    generator, clock = torch.Generator().manual_seed(seed), Clock(seconds, cpu)
    first = True
    while first or clock.left > 0:
        for case in property.cases:
            found = _round(network, property, case, generator, list(starts) if first else [], clock)
            if found is not None:
                return found
            if clock.left <= 0 and len(property.cases) > 1:
                return None
        first = False
    return None


def _round(
    network: OnnxNetwork, property: Property, case: Case, generator: torch.Generator, starts: list[Tensor], clock: Clock
) -> Witness | None:
    if not case.unsafe:
        return None
    lower, upper = (side.view(1, *network.input_shape) for side in box(case, network.dtype, outward=False))
    sets = halfspaces(case, property.outputs)
    model = WithInput(network.model) if needs_input(case) else network.model
    count = max(8, min(BATCH, BATCH * 64 // lower.numel()))
    goals = torch.arange(count) % len(sets)
    shares = torch.rand((count, *network.input_shape), generator=generator, dtype=network.dtype)
    shares[: count // 4] = shares[: count // 4].round()  # corners
    x = lower + (upper - lower) * shares
    x[0] = (lower + (upper - lower) / 2)[0]
    for place, start in enumerate(starts[: count - 1], start=1):
        x[place] = start.view(network.input_shape)
    for step in range(STEPS):
        x = torch.maximum(torch.minimum(x, upper), lower).detach().requires_grad_()
        excess = excesses(model, x, sets)
        for index in (excess.amin(1) <= 0).nonzero()[:3].flatten().tolist():
            found = confirmed(network, property, case, x[index].detach())
            if found is not None:
                return found
        if clock.left <= 0 and step >= BEFORE:
            return None
        chosen = excess.gather(1, goals.unsqueeze(1)).sum()
        (gradient,) = torch.autograd.grad(chosen, x)
        size = (upper - lower) * (0.3 * 0.9**step + 1e-3)
        x = x.detach() - size * gradient.sign()
    return None


def excesses(model: nn.Module, x: Tensor, sets: Sequence[Halfspaces]) -> Tensor:
    """How far each input's outputs are from each conjunction: its farthest row, (batch, conjunctions)."""
    z = model(x).flatten(1).double()
    parts = [(z @ weights.t() + offsets).amax(1) if len(weights) else z.new_zeros(len(z)) for weights, offsets in sets]
    return torch.stack(parts, 1)
