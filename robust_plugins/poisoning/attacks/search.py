"""The search for poison: of a batch, the changes inside the budget that raise a score of its samples most.

Everything is done for several trainings at once: scores are (trainings, samples).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from robust_plugins.intervals import Interval
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.concrete.batches import PoisonedBatch
from robust_plugins.poisoning.concrete.losses import Objective

Score = Callable[[Tensor, Tensor], Tensor]
"""The score of every sample, from x (trainings, samples, *features) and its labels."""

POOL = 32
"""Samples of the batch from which unlimited poison is made, with any label."""
STARTS = 2
"""Random points of the samples' sets from which ascent may begin, besides the samples."""
SCALES = (1.0, -1.0, 10.0, -10.0, 100.0)


def guided(
    budget: PoisoningBudget,
    objective: Objective,
    score: Score,
    x: Float[Tensor, "samples *features"],
    y: Shaped[Tensor, "samples *labels"],
    trainings: int,
    outputs: int,
    steps: int,
    generator: torch.Generator,
) -> PoisonedBatch:
    """The batch with (about) the largest mean score."""
    x, y = x.expand(trainings, *x.shape), y.expand(trainings, *y.shape)
    present = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if budget.nothing or not x.shape[1]:
        return PoisonedBatch(x, y, present)
    if budget.change == "none":
        return PoisonedBatch(*_moved(budget, objective, score, x, y, outputs, steps, generator), present)
    with torch.no_grad():
        own = score(x, y)
        if budget.change == "removal":
            return PoisonedBatch(x, y, ~_removed(own, budget.k))
        pool_x, pool_y = _pool(objective, x, y, outputs, generator)
        found = score(pool_x, pool_y).nan_to_num(nan=-torch.inf)
    best, index = found.max(1, keepdim=True)
    new_x, new_y = _taken(pool_x, index), _taken(pool_y, index)
    if budget.change == "addition":
        added = (best > own.mean(1, keepdim=True)).expand(-1, budget.k)
        return _with_added(x, y, new_x.expand(-1, budget.k, *x.shape[2:]), new_y.expand(-1, budget.k, *y.shape[2:]),
                           added)  # fmt: skip
    replaced = _top(best - own, budget.k)
    return PoisonedBatch(_where(replaced, new_x, x), _where(replaced, new_y, y), present)


def random_poison(
    budget: PoisoningBudget,
    objective: Objective,
    x: Float[Tensor, "samples *features"],
    y: Shaped[Tensor, "samples *labels"],
    trainings: int,
    outputs: int,
    generator: torch.Generator,
) -> PoisonedBatch:
    """Random changes of as many samples as the budget has."""
    x, y = x.expand(trainings, *x.shape), y.expand(trainings, *y.shape)
    present = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if budget.nothing or not x.shape[1]:
        return PoisonedBatch(x, y, present)
    order = _random(x.shape[:2], x, generator)
    if budget.change == "removal":
        return PoisonedBatch(x, y, ~_top(order, budget.k))
    if budget.unbounded:
        pool_x, pool_y = _pool(objective, x, y, outputs, generator)
        count = budget.k if budget.change == "addition" else x.shape[1]
        index = torch.randint(pool_x.shape[1], (trainings, count), generator=generator).to(x.device)
        new_x, new_y = _taken(pool_x, index), _taken(pool_y, index)
        if budget.change == "addition":
            return _with_added(x, y, new_x, new_y, torch.ones_like(index, dtype=torch.bool))
        replaced = _top(order, budget.k)
        return PoisonedBatch(_where(replaced, new_x, x), _where(replaced, new_y, y), present)
    if budget.points:
        share = 2 * _random(x.shape, x, generator) - 1
        corner = _random(x.shape[:2], x, generator) < 0.5
        share = _where(corner, share.sign(), share)
        x = _where(_top(order, budget.points), _project(budget, x + share * budget.radius(x[0]), x), x)
    if budget.labels:
        other = order if budget.paired else _random(x.shape[:2], x, generator)
        labels = torch.stack(_labels(budget, objective, y, outputs), 2)
        drawn = torch.randint(labels.shape[2], (*x.shape[:2], 1), generator=generator).to(x.device)
        new = torch.take_along_dim(labels, drawn.view(*drawn.shape, *[1] * (y.dim() - 2)), dim=2).squeeze(2)
        y = _where(_top(other, budget.labels), new, y)
    return PoisonedBatch(x, y, present)


def _moved(
    budget: PoisoningBudget,
    objective: Objective,
    score: Score,
    x: Tensor,
    y: Tensor,
    outputs: int,
    steps: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The samples with the largest gains: first the labels', then, with these, the features'."""
    n, m = budget.points, budget.labels
    allowed = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if m:
        with torch.no_grad():
            base = score(x, y)
            best, new = torch.full_like(base, -torch.inf), y
            for label in _labels(budget, objective, y, outputs):
                found = score(x, label).nan_to_num(nan=-torch.inf)
                best, new = torch.maximum(best, found), _where(found > best, label, new)
        gain = best - base
        changed = _top(gain, m)
        if budget.paired and m >= n:
            allowed = _top(gain, m, only_gains=False)
        y = _where(changed & (gain > 0), new, y)
    if n:
        moved, gain = _ascended(budget, score, x, y, steps, generator)
        gain = gain.masked_fill(~allowed, -torch.inf)
        if m and budget.paired and n > m:  # all of the samples with changed labels are among those that may move
            chosen = _top(torch.where(changed & allowed, torch.inf, gain), n, only_gains=False) & (gain > 0)
        else:
            chosen = _top(gain, n)
        x = _where(chosen, moved, x)
    return x, y


def _ascended(
    budget: PoisoningBudget, score: Score, x: Tensor, y: Tensor, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The best points of the samples' sets that projected gradient ascent visits, and by how much they are better."""
    radius = budget.radius(x[0])
    with torch.no_grad():
        best, base = x, score(x, y).nan_to_num(nan=-torch.inf)
        top = base
        for _ in range(STARTS):  # a sample in a flat place has no gradient to follow
            share = (2 * _random(x.shape, x, generator) - 1).sign()
            z = _project(budget, x + share * radius, x)
            best, top = _better(best, top, z, score(z, y))
    z = best
    for step in range(steps):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            (slope,) = torch.autograd.grad(score(z, y).sum(), z)
        # The first step goes to the end of the set; later ones are shorter.
        z = _project(budget, z.detach() + _ascent(budget, slope * radius) * radius / (1 + step), x)
        with torch.no_grad():
            best, top = _better(best, top, z, score(z, y))
    return best, top - base


def _better(best: Tensor, top: Tensor, z: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    found = found.nan_to_num(nan=-torch.inf)
    return _where(found > top, z, best), torch.maximum(top, found)


def _ascent(budget: PoisoningBudget, slope: Tensor) -> Tensor:
    """The best step of norm 1, in units of the radii."""
    if budget.norm == "linf":
        return slope.sign()
    flat = slope.flatten(2)
    if budget.norm == "l2":
        return torch.nn.functional.normalize(flat, dim=2, eps=torch.finfo(flat.dtype).tiny).view_as(slope)
    largest = torch.nn.functional.one_hot(flat.abs().argmax(2), flat.shape[2])
    return (largest * flat.sign()).view_as(slope)


def _project(budget: PoisoningBudget, z: Tensor, x: Tensor) -> Tensor:
    shape = x.shape
    flat = x.reshape(-1, *shape[2:])
    found = budget.project(z.reshape(-1, *shape[2:]), flat)
    if budget.norm != "linf":  # a hair inside, against rounding
        found = flat + (found - flat) * (1 - 8 * torch.finfo(x.dtype).eps)
    return found.view(shape)


def _removed(own: Tensor, k: int) -> Tensor:
    """The samples, at most k, without which the mean is largest; it is 0 where none is left."""
    count = own.shape[1]
    order = own.sort(1)
    left = count - torch.arange(min(k, count) + 1, device=own.device)
    above = order.values.flip(1).cumsum(1).flip(1)  # of the samples from each on
    above = torch.cat([above, torch.zeros_like(above[:, :1])], 1)[:, : len(left)]
    best = (above / left.clamp(min=1)).argmax(1, keepdim=True)
    removed: Tensor = order.indices.argsort(1) < best  # by the rank of each
    return removed


def _pool(
    objective: Objective, x: Tensor, y: Tensor, outputs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Samples of any kind: some of the batch, scaled, with any label."""
    some = torch.randperm(x.shape[1], generator=generator)[:POOL].to(x.device)
    if objective.classifies:
        budget = PoisoningBudget(labels=1)
        labels = [y[:, some], *_labels(budget, objective, y[:, some], outputs)]
    else:
        labels = [y[:, some] + 10.0**power * sign for power in range(4) for sign in (-1, 1)]
    found_x = torch.cat([scale * x[:, some] for _ in labels for scale in SCALES], 1)
    found_y = torch.cat([label for label in labels for _ in SCALES], 1)
    return found_x, found_y


def _labels(budget: PoisoningBudget, objective: Objective, y: Tensor, outputs: int) -> list[Tensor]:
    """Labels that every sample can be given; its own among them."""
    found: list[Tensor] = []
    flat = y.flatten(0, 1)
    for label in objective.relabelled(flat, outputs, budget):
        ends = (label.lower, label.upper) if isinstance(label, Interval) else (label,)
        found += [end.view(y.shape) for end in ends]
    return found


def _top(gain: Tensor, k: int, *, only_gains: bool = True) -> Tensor:
    """Where each row has its k largest entries, of these only the positive ones."""
    chosen = torch.zeros_like(gain, dtype=torch.bool)
    chosen.scatter_(1, gain.topk(min(k, gain.shape[1]), dim=1).indices, True)
    return chosen & (gain > 0) if only_gains else chosen


def _with_added(x: Tensor, y: Tensor, new_x: Tensor, new_y: Tensor, added: Tensor) -> PoisonedBatch:
    present = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return PoisonedBatch(torch.cat([x, new_x], 1), torch.cat([y, new_y], 1), torch.cat([present, added], 1))


def _taken(t: Tensor, index: Tensor) -> Tensor:
    return torch.take_along_dim(t, index.view(*index.shape, *[1] * (t.dim() - 2)), dim=1)


def _where(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(mask.view(*mask.shape, *[1] * (b.dim() - 2)), a, b)


def _random(shape: torch.Size, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=like.dtype).to(like.device)
