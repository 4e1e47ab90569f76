"""Searches for poisoned trainings, and for single updates, that leave their zonotope."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_plugins.intervals import Interval
from robust_plugins.poisoning.zonotope import Zonotope
from robust_plugins.poisoning.zonotope import update as updates
from robust_plugins.poisoning.zonotope.set import State
from support.poisoned_training import Poisoner, poisoners
from support.zonotope_cases import Case, everything

TOLERANCE = 1e-11


def excess(zonotope: Zonotope, poisoned: list[Poisoner], x: torch.Tensor) -> tuple[float, float]:
    """How far the worst training lies outside the bounds, and outside those on outputs."""
    hull = zonotope.hull()
    outside = max(
        max(float((hull[n].lower - p).max()), float((p - hull[n].upper).max()))
        for training in poisoned
        for n, p in training.parameters.items()
    )
    outputs = torch.stack([training.outputs(x) for training in poisoned])
    rows = torch.randn((len(x), 5, outputs.shape[2]), generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    rows[:, 0] -= rows[:, 0].mean(1, keepdim=True)
    bounds = zonotope.bounds(Interval.point(x), rows)
    values = torch.einsum("bro,tbo->tbr", rows, outputs)
    return outside, max(float((bounds.lower - values).max()), float((values - bounds.upper).max()))


def search(case: Case, trainings: int, seed: int = 0, model: nn.Module | None = None, **options: int) -> float:
    """The largest excess over all updates of a few trainings."""
    model = model or case.model(seed)
    batches = case.batches(seed + 1)
    zonotope = case.start(model, **options)
    poisoned = poisoners(model, case.names(model), case.loss, case.limits, trainings, batches[-1])
    worst = -float("inf")
    for t, (x, y) in enumerate(batches):
        lr = case.lr / (1 + 0.2 * t)
        zonotope.step(x, y, lr=lr, weight_decay=case.weight_decay, box=everything(zonotope))
        for training in poisoned:
            training.step(x, y, lr, case.weight_decay)
        worst = max(worst, *excess(zonotope, poisoned, batches[0][0]))
    return worst


def drawn(state: State, random: torch.Generator, *, size: float) -> State:
    """A set of some size around a centre: a few generators, and a box along the coordinates."""
    layout = state.layout

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    # Rows of the last layer that sum to 0, as the softmax's do.
    w, v = layout.split(normal(layout.size, 7) * size)
    generators = layout.join(w, v - v.mean(0, keepdim=True) if layout.outputs > 1 else v)
    radii = torch.zeros_like(state.radii)
    wide = state.center.abs() * 0 + 1e9
    return State(layout, state.center, generators, state.axes, radii, -wide, wide)


def flat(zonotope: Zonotope, parameters: dict[str, Tensor], kept: float) -> Tensor:
    """The state's coordinates of named parameters, where weight decay left `kept` of what rows share."""
    tail = zonotope.tail
    last = zonotope._basis.T @ (tail.last.row(parameters) - kept * zonotope._shared)
    hidden = last[:0, :0] if tail.hidden is None else tail.hidden.row(parameters)
    return zonotope._state.layout.join(hidden, last)


def named(zonotope: Zonotope, theta: Tensor) -> dict[str, Tensor]:
    w, v = zonotope._state.layout.split(theta)
    found = zonotope.tail.last.named(zonotope._basis @ v + zonotope._shared)
    return found if zonotope.tail.hidden is None else found | zonotope.tail.hidden.named(w)


def largest_excess(case: Case, size: float = 0.03, draws: int = 24, seed: int = 0) -> float:
    """By how much updates leave the box along the axes around where the generators take them."""
    random = torch.Generator().manual_seed(seed)
    model, (x, y) = case.model(seed), case.batches(seed + 1)[1]
    zonotope = case.start(model)
    before = drawn(zonotope._state, random, size=size)
    features, labels = zonotope.tail.first.append_one(zonotope.tail.features(x)), zonotope._labels(y)
    kinds: list[Poisoner | None] = [None, *poisoners(model, case.names(model), case.loss, case.limits, draws, (x, y))]
    moves = zonotope.tail.moves(x, case.limits)
    after = updates.update(before, zonotope.loss, case.limits, features, labels, moves, lr=case.lr,
                           weight_decay=case.weight_decay, memory=2**28)  # fmt: skip
    worst = -float("inf")
    for i, training in enumerate(kinds):
        xi = torch.rand(before.generators.shape[1], generator=random, dtype=torch.float64) * 2 - 1
        xi = xi.sign() if i % 3 == 0 else xi
        theta = before.center + before.generators @ xi
        one = training or Poisoner(model, case.names(model), case.loss, case.limits, "random", 0, (x, y))
        one.parameters = named(zonotope, theta)
        if training is None:
            one.budget = type(one.budget)()
        one.step(x, y, case.lr, case.weight_decay)
        left = flat(zonotope, one.parameters, 1 - case.lr * case.weight_decay) - after.center - after.generators @ xi
        w, v = before.layout.split(left)
        along = before.layout.join((after.axes.hidden.mT @ w[..., None])[..., 0],
                                   (after.axes.last.mT @ v[..., None])[..., 0])  # fmt: skip
        worst = max(worst, float((along.abs() - after.radii).max()))
    return worst
