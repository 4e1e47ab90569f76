"""Balls of separate points, `rp.Box` with categories and whole numbers, in branch and bound."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.balls import Ball, Box
from robust_plugins.decisions.verifier.attack import Attack
from robust_plugins.decisions.verifier.clock import Clock
from robust_plugins.decisions.verifier.properties import Unsafe
from robust_plugins.harness.wrappers import Landed
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.methods.compact import Reach

PIECES = 4096
"""So many boxes without gaps are searched one by one where the box around all of them does not suffice."""


@dataclass(frozen=True, eq=False)
class Simplices(Reach):
    """The box [-1, 1]^n in which of each group of entries one is 1 and the others are -1, and all that lies between."""

    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, ball: Ball, box: Interval) -> Simplices | None:
        """Those of the one-hot groups that may change, among the inputs that move; None where there are none."""
        if not isinstance(ball, Box):
            return None
        moving = (box.radius != 0).flatten().nonzero().flatten().tolist()
        place = {feature: i for i, feature in enumerate(moving)}
        groups = tuple(tuple(place[i] for i in group if i in place) for group in ball.one_hot)
        groups = tuple(group for group in groups if len(group) > 1)
        return cls(groups) if groups else None

    def least(self, a: Float[Tensor, "inputs rows"]) -> Float[Tensor, " rows"]:  # noqa: D102 (inherited)
        found = (a * self.lowest(a)).sum(0)
        return found - (4 * len(a) + 32) * torch.finfo(a.dtype).eps * a.abs().sum(0)

    def lowest(self, a: Float[Tensor, "inputs rows"]) -> Float[Tensor, "inputs rows"]:  # noqa: D102 (inherited)
        found = -a.sign()
        for group in self.groups:
            part = a[list(group)]
            found[list(group)] = torch.full_like(part, -1.0).scatter(0, part.argmin(0, keepdim=True), 1.0)
        return found


@dataclass(frozen=True, eq=False)
class OnLanded(Attack):
    """An attack on the model as it answers at the nearest points of the set."""

    ball: Ball
    attack: Attack

    def __call__(
        self, model: nn.Module, lower: Tensor, upper: Tensor, unsafe: Unsafe, generator: torch.Generator, clock: Clock
    ) -> Tensor | None:
        """Proposes what the attack proposes."""
        return self.attack(Landed(model, self.ball), lower, upper, unsafe, generator, clock)


def pieces(ball: Ball, x: Float[Tensor, "1 *features"]) -> list[Interval] | None:
    """The boxes without gaps that the set around one input consists of; None for more than `PIECES`."""
    assert isinstance(ball, Box)
    box = ball.box(x)
    low, up = box.lower.flatten(), box.upper.flatten()
    choices: list[list[tuple[list[int], list[float]]]] = []
    for group in ball.one_hot:
        open_ = [i for i in group if up[i] > low[i]] or [i for i in group if up[i] == 1]
        choices.append([(list(group), [float(i == j) for j in group]) for i in open_])
    choices += [[([i], [float(n)]) for n in range(int(low[i]), int(up[i]) + 1)] for i in ball.integers]
    count = 1
    for options in choices:
        count *= len(options)
    return None if count > PIECES else list(_boxes(box, choices))


def _boxes(box: Interval, choices: list[list[tuple[list[int], list[float]]]]) -> Iterator[Interval]:
    for chosen in itertools.product(*choices):
        low, up = box.lower.clone(), box.upper.clone()
        for features, values in chosen:
            for end in (low, up):
                end.view(-1)[features] = torch.tensor(values).to(end)
        yield Interval(low, up)
