"""One update of gradient descent on a state, for all poisoned batches."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from robust_plugins.intervals import Interval
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.zonotope.accounting import worst_sums
from robust_plugins.poisoning.zonotope.effects import Poisoned
from robust_plugins.poisoning.zonotope.flips import flips
from robust_plugins.poisoning.zonotope.gradient import Gradient, gradient
from robust_plugins.poisoning.zonotope.moves import Moves
from robust_plugins.poisoning.zonotope.reach import pieces
from robust_plugins.poisoning.zonotope.set import Axes, State
from robust_plugins.poisoning.zonotope.slopes import LossSlope


def update(
    state: State, loss: LossSlope, budget: PoisoningBudget, x: Float[Tensor, "batch inputs"],
    y: Shaped[Tensor, "batch *labels"], moves: Moves | None, *, lr: float, weight_decay: float, memory: int,
) -> State:  # fmt: skip
    """All theta - lr (g(theta) + weight_decay theta), g the mean gradient of x, y or of a poisoned batch near them.

    The mean over an empty batch is 0.
    """
    if not len(x):
        kept = 1 - lr * weight_decay  # below 0 where one decay overshoots; radii are sizes all the same
        return replace(
            state, center=kept * state.center, generators=kept * state.generators, radii=abs(kept) * state.radii
        )
    clean = gradient(state, loss, x, y, memory=memory)
    poisoned = Poisoned(state, loss, clean, y, moves)
    axes = _axes(state, clean, poisoned, budget)
    low, high = _remainder(state, clean, poisoned, budget, axes, memory)
    jacobian = clean.jacobian
    if state.layout.neurons:
        gates = flips(state, clean.hidden, clean.sent_back, axes.hidden, poisoned.pushed if moves else None,
                      budget.points, memory=memory)  # fmt: skip
        cut = state.layout.neurons * state.layout.inputs
        low[:cut] += gates.along.lower.flatten() / len(x)
        high[:cut] += gates.along.upper.flatten() / len(x)
        jacobian[:cut, :cut] += torch.block_diag(*gates.slope) / len(x)
    kept = 1 - lr * weight_decay
    old = state.all_generators()
    center = kept * state.center - lr * (clean.value + axes.combined(state.layout, (high + low) / 2))
    moved = kept * old - lr * (jacobian @ old)
    return replace(state, center=center, generators=moved, axes=axes, radii=lr * (high - low) / 2)


def _remainder(
    state: State, clean: Gradient, poisoned: Poisoned, budget: PoisoningBudget, axes: Axes, memory: int
) -> tuple[Tensor, Tensor]:
    """The range of the poison and of the clean remainder along the axes."""
    layout, h, batch = state.layout, clean.hidden, len(poisoned.y)
    kinds = [(f, y) for f in (False, True) for y in (False, True) if _possible(budget, f, y)]
    changes = {kind: poisoned.change(*kind) for kind in kinds}
    width = batch * (0 if poisoned.moves is None else poisoned.moves.magnitude.shape[1]) * 4 + 8 * batch
    neurons: list[Interval] = []
    for part in pieces(layout.neurons, layout.inputs * width, memory):
        local = axes.hidden[part]

        def support(features: bool, labels: bool, part: slice = part, local: Tensor = local) -> Interval:
            return poisoned.neurons(changes[features, labels], features, labels, part, local)

        added = worst_sums(budget, support)
        own = torch.einsum("bj,jbq->jq", clean.along_inputs[:, part], (h.x @ local).abs())
        neurons.append(Interval(added.lower - own, added.upper + own))
    last: list[Interval] = []
    for k in range(layout.outputs):
        for part in pieces(layout.features, width, memory):
            local = axes.last[k][:, part]

            def row_support(features: bool, labels: bool, k: int = k, local: Tensor = local) -> Interval:
                return poisoned.last_rows(changes[features, labels], features, labels, k, local)

            added = worst_sums(budget, row_support)
            own = (h.features @ local).abs().T @ clean.along_features[:, k]
            own = own + batch * (clean.entries[k] @ local.abs())
            last.append(Interval(added.lower - own, added.upper + own))

    def vector(end: str) -> Tensor:
        return torch.cat([getattr(t, end).flatten() for t in (*neurons, *last)]) / batch

    return vector("lower"), vector("upper")


def _possible(budget: PoisoningBudget, features: bool, labels: bool) -> bool:
    return (budget.points > 0 or not features) and (budget.labels > 0 or not labels)


def _axes(state: State, clean: Gradient, poisoned: Poisoned, budget: PoisoningBudget) -> Axes:
    """Axes along which the remainders are small: the principal axes of the inputs that carry them, by their weight."""
    x, layout = clean.hidden.x, state.layout
    found = Axes.coordinates(layout, state.center)
    if layout.neurons:
        weights = clean.along_inputs + poisoned.weights_guess(budget.points, budget.labels) + 1e-12
        second = (weights.T[..., None] * x).mT @ x
        found = replace(found, hidden=torch.linalg.eigh(second).eigenvectors)
    else:
        f = clean.hidden.features
        found = replace(found, last=torch.linalg.eigh(f.T @ f).eigenvectors.expand(layout.outputs, -1, -1))
    return found
