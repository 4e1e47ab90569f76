"""`HopSkipJump`: walks along the decision boundary by decisions alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.balls import L2, Ball, Linf
from robust_plugins.decisions.attack import Attack, Found
from robust_plugins.decisions.attacks.closest import (
    PULLS,
    Closest,
    check_norm,
    of_samples,
    per_sample,
    where,
    with_radii,
)
from robust_plugins.decisions.attacks.sets import nearest
from robust_plugins.harness.parameters import check_count

ROWS = 2048
"""At most so many rows go through the model at once, or one per sample."""

HALVINGS = 10
"""At most so many times a step is halved until it is adversarial."""


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(Attack):
    """The closest adversarial example by the model's decisions alone: for models without gradients.

    Chen et al. 2020, "HopSkipJumpAttack: a query-efficient decision-based attack", algorithm 2, for all samples at
    once: from an adversarial start, each step estimates the boundary's normal by decisions on random points around it,
    goes along it (along its signs for L-infinity) by the distance over the square root of the step's number, halved
    until it is adversarial, and returns to the boundary by bisection.

    - `steps` >= 1.
    - `first_queries` >= 1: random points of the first step; step t has `sqrt(t)` times as many, `most_queries` at most.
    - `tries` >= 1: starts that are drawn at most, in turn uniformly from the range of inputs, from its corners, and
      from the corners of the box around the ball.

    L-infinity and L2. The ball bounds the search: what is returned lies inside it and is the closest found; the walk
    may begin outside. Targeted where a start of the target's class is drawn, which is rare for many classes. How often
    the model was asked is in the result's notes. Raises ArgumentError for other balls and unusable parameters.
    """

    black_box: ClassVar[bool] = True
    nearest: ClassVar[bool] = True

    steps: int = 20
    first_queries: int = 50
    most_queries: int = 500
    tries: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "first_queries", "most_queries", "tries"):
            check_count(name, getattr(self, name))

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Tensor:  # noqa: D102
        return self.find(model, x, y, ball, targeted=targeted).candidates

    @torch.no_grad()
    def find(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, targeted: bool) -> Found:  # noqa: D102
        check_norm(ball, Linf, L2, name="rp:hopskipjump")
        closest = Closest(model, x, y, ball, targeted=targeted)
        at = (~closest.found & ball.radii_for(x).gt(0)).nonzero().flatten()
        asked = 1 + PULLS  # to judge the input, and to bring the closest to where it stops failing
        if len(at):
            walk = _Walk(model, x, y, ball, at, closest, targeted)
            walk.start(self.tries)
            for step in range(1, self.steps + 1):
                if not len(walk.at):
                    break
                walk.step(step, min(int(self.first_queries * math.sqrt(step)), self.most_queries))
            asked += walk.asked
        return Found(closest.pull(), notes=(f"the model's decision was asked for at most {asked} times per sample",))


class _Walk:
    """The points of all samples on their way; those for which no start was found are left out."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, at: Tensor, closest: Closest, targeted: bool
    ) -> None:
        self.at, self.asked = at, 0
        self._model, self._closest, self._targeted = model, closest, targeted
        self._all = x, y, ball
        self._take(at)
        self.z = self.x.clone()

    def _take(self, at: Tensor) -> None:
        x, y, ball = self._all
        self.at, self.x, self.y, self.ball = at, x[at], y[at], of_samples(ball, at)

    def _wins(self, z: Tensor) -> Tensor:
        """Whether each point is adversarial; remembers it where it is close."""
        self.asked += 1
        return self._closest.offer(z, self.at)

    def start(self, tries: int) -> None:
        """An adversarial point for each sample, brought to the boundary."""
        found = torch.zeros_like(self.y, dtype=torch.bool)
        for attempt in range(tries):
            drawn = self._drawn(attempt)
            won = self._wins(drawn)
            self.z, found = where(won & ~found, drawn, self.z), found | won
            if bool(found.all()):
                break
        kept = found.nonzero().flatten()
        self.z = self.z[kept]
        self._take(self.at[kept])
        if len(kept):
            self._to_boundary()

    def _drawn(self, attempt: int) -> Tensor:
        box = self.ball.box(self.x)
        low, high = box.lower, box.upper
        kind = attempt % 3
        if self.ball.clip is not None and kind < 2:
            low, high = (torch.full_like(self.x, end) for end in self.ball.clip)
        share = torch.rand_like(self.x)
        return low + (high - low) * (share if kind == 0 else share.round())

    def _to_boundary(self) -> None:
        """Bisects the radius of the ball onto which each point is projected, to the precision of the paper."""
        dims = self.x[0].numel()
        outer, high = self.z, self.ball.distance(self.z, self.x)
        low = torch.zeros_like(high)
        for _ in range(math.ceil(math.log2(dims) * (2.0 if isinstance(self.ball, Linf) else 1.5)) + 2):
            middle = (low + high) / 2
            point = nearest(with_radii(self.ball, middle), outer, self.x)
            won = self._wins(point)
            self.z = where(won, point, self.z)
            low, high = torch.where(won, low, middle), torch.where(won, middle, high)

    def step(self, number: int, queries: int) -> None:
        """One step along the estimated normal, and back to the boundary."""
        distance = self.ball.distance(self.z, self.x)
        direction = self._normal(distance, queries)
        length = distance / math.sqrt(number)
        found = torch.zeros_like(self.y, dtype=torch.bool)
        for _ in range(HALVINGS):
            moved = self._inside(self.z + per_sample(length, self.x) * direction)
            won = self._wins(moved) & ~found
            self.z, found = where(won, moved, self.z), found | won
            if bool(found.all()):
                break
            length = torch.where(found, length, length / 2)
        self._to_boundary()

    def _inside(self, z: Tensor) -> Tensor:
        return z if self.ball.clip is None else z.clamp(*self.ball.clip)

    def _normal(self, distance: Tensor, queries: int) -> Tensor:
        """The estimate of equation 16 there: random directions, weighed by their decisions less the mean of these."""
        linf, dims, done = isinstance(self.ball, Linf), self.x[0].numel(), 0
        width = per_sample((distance / dims).clamp(min=torch.finfo(distance.dtype).tiny), self.x)
        sums = torch.zeros(2, *self.x.shape).to(self.x)  # of directions that stay adversarial, and of the others
        count = torch.zeros_like(distance)
        while done < queries:
            many = min(queries - done, max(1, ROWS // len(self.x)))
            shape = (many, *self.x.shape)
            raw = (2 * torch.rand(shape) - 1 if linf else torch.randn(shape)).to(self.x)
            raw = F.normalize(raw.flatten(2), dim=2).view(shape)
            points = self._inside(self.z + width * raw)
            decided = self._model(points.flatten(0, 1)).argmax(1).view(many, -1)
            won = (decided == self.y) == self._targeted
            seen, held = (points - self.z) / width, won.view(*won.shape, *[1] * (self.x.dim() - 1))
            sums += torch.stack(((seen * held).sum(0), (seen * ~held).sum(0)))
            count += won.sum(0)
            done += many
        self.asked += queries
        mean = 2 * count / queries - 1
        weights = torch.where(mean.abs() < 1, torch.stack((1 - mean, -1 - mean)), mean.expand(2, -1))
        normal = (weights.view(2, -1, *[1] * (self.x.dim() - 1)) * sums).sum(0)
        return normal.sign() if linf else F.normalize(normal.flatten(1), dim=1).view_as(self.x)
