"""The closest adversarial example of each sample that a search has met."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from robust_plugins.balls import L1, L2, Ball, Box, Linf
from robust_plugins.decisions.attacks.ascent import slope
from robust_plugins.decisions.attacks.objectives import objective
from robust_plugins.decisions.attacks.sets import farthest, nearest
from robust_plugins.errors import ArgumentError

PULLS = 12
"""Passes of the model that bring an example to within less than a thousandth of where it stops failing."""

LAST = 0.001
"""The last step's length, as a part of the first one's."""


class Closest:
    """Keeps, for each sample, the closest point offered on which the model fails, in the ball's norm.

    `y` are labels to leave, or with `targeted` classes to reach. Where `x` fails itself, it is the closest; where no
    point of the ball that was offered fails, `x` stands for none and `found` is False.
    """

    def __init__(
        self, model: nn.Module, x: Float[Tensor, "batch *features"], y: Integer[Tensor, " batch"], ball: Ball,
        *, targeted: bool,
    ) -> None:  # fmt: skip
        self.x = x.clone()
        self.distance = x.new_full((len(x),), torch.inf)
        self._model, self._start, self._y, self._ball, self._targeted = model, x, y, ball, targeted
        self.offer(x)

    @property
    def found(self) -> Bool[Tensor, " batch"]:
        """Where a point was found on which the model fails."""
        return self.distance.isfinite()

    @torch.no_grad()
    def offer(
        self, z: Float[Tensor, "some *features"], at: Tensor | None = None, *, logits: Tensor | None = None
    ) -> Bool[Tensor, " some"]:
        """Takes what fails, lies in the ball, and is closer than what is held. Says which samples of `z` fail.

        `at` are the samples that `z` belongs to, by index; all of them where it is None. `logits` are the model's on
        `z`, where they are known.
        """
        z = self._ball.landed(z)  # whose distance counts, where whole numbers and categories are what the model sees
        chosen = torch.arange(len(self.x), device=self.x.device) if at is None else at
        x, ball = self._start[chosen], self._ball if at is None else of_samples(self._ball, at)
        logits = self._model(z.clone()) if logits is None else logits
        wins = (logits.argmax(1) == self._y[chosen]) == self._targeted
        wins &= ~logits.isnan().any(1)
        distance = ball.distance(z, x)
        closer = wins & (distance < self.distance[chosen]) & ball.contains(z, x)
        self.distance[chosen] = torch.where(closer, distance, self.distance[chosen])
        self.x[chosen] = where(closer, z, self.x[chosen])
        return wins

    def refined(self) -> Float[Tensor, "batch *features"]:
        """Ends an attack by gradients: tries the linearised optima, pulls what is held, and returns it.

        For the margin's gradient at the example, of all points at one distance from `x` the linear function is
        largest at one; the distance is bisected. On a linear model that is the closest example there is.
        """
        if self._nothing_to_do():
            return self.x
        rising, _, _ = slope(self._model, self.x, objective("margin", self._y, targeted=self._targeted))
        self._bisect(lambda ball: farthest(ball, rising, self._start))
        return self.pull()

    def pull(self) -> Float[Tensor, "batch *features"]:
        """Bisects the radius of the ball onto which what is held can be projected and fails; returns the result."""
        if self._nothing_to_do():
            return self.x
        outer = self.x.clone()
        self._bisect(lambda ball: nearest(ball, outer, self._start))
        return self.x

    def _nothing_to_do(self) -> bool:
        return not bool((self.found & (self.distance > 0)).any())

    @torch.no_grad()
    def _bisect(self, point: Callable[[Ball], Tensor]) -> None:
        """Offers the points of balls whose radius is bisected below the distance. One pass of the model per step."""
        high = torch.where(self.found, self.distance, 0)
        low = torch.zeros_like(high)
        for step in range(PULLS):
            radii = high if step == 0 else (low + high) / 2
            wins = self.offer(point(with_radii(self._ball, radii)))
            low, high = torch.where(wins, low, radii), torch.where(wins, radii, high)


def with_radii(ball: Ball, radii: Float[Tensor, " batch"]) -> Ball:
    """The ball with these radii, one per sample."""
    return replace(ball, eps=tuple(radii.tolist()))


def of_samples(ball: Ball, at: Tensor) -> Ball:
    """The ball of the samples with these indices."""
    radii = ball.radii
    return replace(ball, eps=tuple(radii[i] for i in at.tolist())) if isinstance(radii, tuple) else ball


def where(samples: Tensor, these: Tensor, those: Tensor) -> Tensor:
    """`these` for the samples of a mask, `those` for the others."""
    return torch.where(samples.view(-1, *[1] * (these.dim() - 1)), these, those)


def per_sample(numbers: Tensor, x: Tensor) -> Tensor:
    """Numbers (batch,) shaped to broadcast against `x`."""
    return numbers.view(-1, *[1] * (x.dim() - 1))


def falling(step: int, steps: int) -> float:
    """From 1 at the first of `steps` steps to LAST at the end, along a cosine."""
    return LAST + (1 - LAST) * (1 + math.cos(math.pi * step / steps)) / 2


def check_share(name: str, value: object, *, hint: str) -> None:
    """Raises ArgumentError for what is no number above 0 and below 1."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise ArgumentError(name, repr(value), accepted="a number above 0 and below 1", hint=hint)


def check_norm(ball: Ball, *norms: type[Ball], name: str) -> None:
    """Raises ArgumentError for a ball of another norm than an attack minimises."""
    if not isinstance(ball, norms):
        accepted = " or ".join(f"rp.{norm.__name__}" for norm in norms)
        other = (
            "'rp:fmn'" if isinstance(ball, Linf | L2 | L1 | Box) else "rp.minimal of an attack that takes such balls"
        )
        raise ArgumentError(
            "ball", repr(ball), accepted=f"{accepted}, whose norm {name} minimises", hint=f"Use {other} instead."
        )
