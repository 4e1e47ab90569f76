"""Bounds on the mean gradient of a batch over everything that the poisoner can make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from robust_plugins.intervals import Interval, Network, rounding
from robust_plugins.poisoning.accounts import accounts
from robust_plugins.poisoning.box import sample_gradients
from robust_plugins.poisoning.box.sample_gradients import Forward, Inputs, Pass
from robust_plugins.poisoning.box.sums.aggregation import MEMORY, Method, extreme_sums, extremes, replaced, total
from robust_plugins.poisoning.box.sums.per_sample import PerSample
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.concrete.clipping import Clip, NormClip
from robust_plugins.poisoning.concrete.losses import Objective


@dataclass(frozen=True, kw_only=True)
class Poisoned:
    """The settings that decide the bounds on a batch's gradient, besides the parameters and the batch."""

    budget: PoisoningBudget
    objective: Objective
    first: int
    """The first node of the trained part that has trained parameters."""
    trained: frozenset[str]
    clip: Clip | None
    method: Method = "topk"
    memory: int = MEMORY
    group: dist.ProcessGroup | None = None

    def mean_gradient(
        self, network: Network, clean: Inputs, moved: Inputs | None, y: Shaped[Tensor, "batch *labels"]
    ) -> BatchGradient:
        """The mean gradient over any poisoned form of the batch, and the forward pass over the clean one.

        `network` is the trained part bound to intervals, `clean` the features, `moved` those of the poison sets. An
        empty batch has gradient 0.
        """
        found = self._forward(network, clean)
        start = self._backward(found, [y])
        size = self._size(y)
        if self.budget.change != "none":
            sums = self._replaced(start, size)
        else:
            sums = self._moved(start, self._passes(network, found, moved, y))
            sums = {name: _divided(s, size) for name, s in sums.items()}
        return BatchGradient(sums, found)

    def _forward(self, network: Network, inputs: Inputs) -> Forward:
        return sample_gradients.forward(network, inputs, differing=self.objective.pairwise)

    def _backward(self, found: Forward, labels: list[Tensor | Interval]) -> Pass:
        norm = isinstance(self.clip, NormClip)
        gamma = None if self.clip is None else self.clip.gamma
        return sample_gradients.backward(
            found,
            labels,
            self.objective,
            self.trained,
            first=self.first,
            clip=None if norm else gamma,
            norm=gamma if norm else None,
        )

    def _passes(self, network: Network, clean: Forward, moved: Inputs | None, y: Tensor) -> dict[str, Pass]:
        """The passes over moved features, changed labels, and both, as far as the budget has them."""
        b = self.budget
        changed = self.objective.relabelled(y, clean.outputs.shape[1], b) if b.labels else []
        passes = {}
        if b.points:
            assert moved is not None
            found = self._forward(network, moved)
            passes["features"] = self._backward(found, [y])
            if b.labels:
                passes["both"] = self._backward(found, changed)
        if b.labels:
            passes["labels"] = self._backward(clean, changed)
        return passes

    def _sums(self, clean: Pass) -> dict[str, Interval]:
        """The clean batch's gradient, not yet divided."""
        if clean.clip is not None:
            return {n: total(g, memory=self.memory, group=self.group) for n, g in clean.gradients().items()}
        return {name: self._reduced(s) for name, s in clean.sums().items()}

    def _moved(self, clean: Pass, passes: Mapping[str, Pass]) -> dict[str, Interval]:
        """Bounded budgets: the sum over the clean batch, and the most that the changed samples can add to it."""
        sums = self._sums(clean)
        if not passes:
            return sums
        own = clean.gradients()
        of = {kind: found.gradients() for kind, found in passes.items()}
        result = {}
        for name, s in sums.items():
            down, up = self._excess({kind: g[name] for kind, g in of.items()}, own[name])
            result[name] = Interval(*rounding.widened(s.lower - down, s.upper + up))
        return result

    def _excess(self, g: Mapping[str, PerSample], own: PerSample) -> tuple[Tensor, Tensor]:
        """How far the changed samples can push one parameter's gradient, down and up: the best of two accounts.

        `accounts` says which sums. An effect is what a pass has beyond the clean one, so that with the passes' signs
        the clean pass counts against them.
        """
        found = []
        for account in accounts(self.budget):
            parts = []
            for effects, count in account:
                terms = [(sign, g[kind]) for kind, sign in effects.items()]
                parts.append(self._extremes(terms, own if sum(effects.values()) else None, count))
            low, up = (_total(ends) for ends in zip(*parts, strict=True))
            found.append((low, up) if len(parts) > 1 else parts[0])
        low, up = found[0]
        for other_low, other_up in found[1:]:
            low, up = torch.minimum(low, other_low), torch.minimum(up, other_up)
        return low, up

    def _extremes(self, terms: list[tuple[float, PerSample]], own: PerSample | None, k: int) -> tuple[Tensor, Tensor]:
        if own is not None:
            terms = [*terms, (-sum(sign for sign, _ in terms), own)]
        return extremes(terms, k, method=self.method, memory=self.memory, group=self.group)

    def _replaced(self, clean: Pass, size: int) -> dict[str, Interval]:
        """Unbounded budgets: k samples replaced, added or removed, in the mean over what the batch then holds."""
        k, change = self.budget.k, self.budget.change
        result = {}
        for name, g in clean.gradients().items():
            if change == "substitution":
                gamma = self._gamma
                s = replaced(g, k, gamma=gamma, method=self.method, memory=self.memory, group=self.group)
                # In an empty batch samples can only have been added: any clipped mean, for `PoisoningBudget.privacy`.
                most = Interval(torch.full_like(s.lower, -gamma), torch.full_like(s.upper, gamma))
                result[name] = self._more(_divided(s, size) if size else most, size)
            elif change == "addition":
                # (S + j gamma) / (b + j) grows with j: no mean of clipped gradients exceeds gamma.
                s = total(g, memory=self.memory, group=self.group)
                extra = k * self._gamma
                mean = _divided(Interval(*rounding.widened(s.lower - extra, s.upper + extra)), size + k)
                result[name] = self._more(mean, size)
            else:
                # The mean of the b - j largest grows with j.
                left = max(size - k, 1)
                s = extreme_sums(g, min(left, size), method=self.method, memory=self.memory, group=self.group)
                mean = _divided(s, left)
                zero = Interval.point(torch.zeros_like(mean.lower))
                result[name] = mean if size > k else mean.hull(zero)
        return result

    @property
    def _gamma(self) -> float:
        assert self.clip is not None  # checked for unbounded budgets
        return self.clip.gamma

    def _more(self, mean: Interval, size: int) -> Interval:
        """Rounded outward for sums that are longer by the samples added; none of their terms exceeds gamma."""
        if not rounding.active():
            return mean
        slack = rounding.kappa(size + self.budget.k, mean.lower.dtype) * self._gamma
        return Interval(*rounding.widened(mean.lower - slack, mean.upper + slack))

    def _size(self, y: Tensor) -> int:
        if self.group is None:
            return len(y)
        count = torch.tensor(len(y), device=y.device)
        dist.all_reduce(count, group=self.group)
        return int(count)

    def _reduced(self, s: Interval) -> Interval:
        if self.group is None:
            return s
        both = torch.stack([s.lower, s.upper])
        dist.all_reduce(both, group=self.group)
        return Interval(
            *rounding.widened(both[0], both[1], ulps=2.0 * dist.get_world_size(self.group), scale=both.abs().amax(0))
        )


@dataclass(frozen=True, eq=False)
class BatchGradient:
    """Bounds on a batch's mean gradient, and the forward pass over the clean samples that it came from."""

    gradient: dict[str, Interval]
    clean: Forward


def _divided(s: Interval, size: int) -> Interval:
    scaled = s.map(lambda t: t / max(size, 1))
    return Interval(*rounding.widened(scaled.lower, scaled.upper))


def _total(parts: tuple[Tensor, ...]) -> Tensor:
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return Interval(*rounding.widened(result, result, ulps=len(parts))).upper
