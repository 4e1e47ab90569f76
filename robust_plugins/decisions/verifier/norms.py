"""`NormBall`: an L2 or L1 ball inside the box around it, in the coordinates of the compact network's state.

A coefficient row a of the state's inputs, each in [-1, 1], is at least `-|a|_1` in the box. In the ball
`s = shift + weight d` with `|d|_p <= 1` it is at least `a shift - |weight a|_q`, with the dual norm q. Both hold in
their intersection, and so does the larger.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.balls import L1, L2, Ball
from robust_plugins.decisions.verifier.attack import Attack, Confirm, slope
from robust_plugins.decisions.verifier.clock import Clock
from robust_plugins.decisions.verifier.properties import Unsafe
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.methods.compact import Reach


@dataclass(frozen=True, eq=False)
class NormBall(Reach):
    """The ball `|x - c|_p <= eps`, p being 1 or 2, in the state's coordinates."""

    norm: int
    shift: Float[Tensor, " inputs"]
    weight: Float[Tensor, " inputs"]

    @classmethod
    def of(cls, ball: Ball, x: Float[Tensor, "1 *features"], box: Interval) -> NormBall | None:
        """That of a ball around one input, whose smallest box is `box`; None where the box is all that counts."""
        if not isinstance(ball, L1 | L2):
            return None
        moving = (box.radius != 0).flatten().nonzero().flatten()
        centre, radius = box.center.flatten()[moving], box.radius.flatten()[moving]
        c, eps = x.detach().cpu().double().flatten()[moving], ball.eps_for(x).flatten()[0].cpu().double()
        eps = eps * (1 + 8 * torch.finfo(x.dtype).eps)  # whoever rounds a distance may still find it in the ball
        return cls(1 if isinstance(ball, L1) else 2, (c - centre) / radius, eps / radius)

    def least(self, a: Float[Tensor, "inputs rows"]) -> Float[Tensor, " rows"]:  # noqa: D102 (inherited)
        in_box = -a.abs().sum(0)
        found, size = self._in_ball(a)
        return torch.maximum(in_box, found - (4 * len(a) + 32) * torch.finfo(a.dtype).eps * size)

    def lowest(self, a: Float[Tensor, "inputs rows"]) -> Float[Tensor, "inputs rows"]:  # noqa: D102 (inherited)
        weight, shift = self.weight.to(a).unsqueeze(1), self.shift.to(a).unsqueeze(1)
        moved = weight * a
        if self.norm == 2:
            direction = moved / moved.norm(dim=0, keepdim=True).clamp(min=1e-30)
        else:
            at = moved.abs().argmax(0, keepdim=True)
            direction = torch.zeros_like(a).scatter(0, at, moved.gather(0, at).sign())
        in_ball = self._in_ball(a)[0] > -a.abs().sum(0)
        return torch.where(in_ball, shift - weight * direction, -a.sign())

    def _in_ball(self, a: Tensor) -> tuple[Tensor, Tensor]:
        shift, weight = self.shift.to(a), self.weight.to(a)
        moved = weight.unsqueeze(1) * a
        far = moved.norm(dim=0) if self.norm == 2 else moved.abs().amax(0)
        return shift @ a - far, shift.abs() @ a.abs() + far


@dataclass(frozen=True, eq=False)
class InBall:
    """An attack within the ball itself: steps along its steepest directions, projected onto it."""

    ball: Ball
    x: Float[Tensor, "1 *features"]
    confirm: Confirm
    other: Attack
    """Proposes an input where this finds none."""
    restarts: int = 5
    steps: int = 30

    def __call__(
        self, model: torch.nn.Module, lower: Tensor, upper: Tensor, unsafe: Unsafe, generator: torch.Generator,
        clock: Clock,
    ) -> Tensor | None:  # fmt: skip
        """An input of the ball that `confirm` accepts, else the other attack's."""
        goals = torch.arange(len(unsafe.member)).repeat(self.restarts).to(lower.device)
        starts = self.x.expand(len(goals), *self.x.shape[1:])
        noise = torch.rand(starts.shape, generator=generator, dtype=torch.float64).to(lower)
        z = self.ball.project(lower + (upper - lower) * noise, starts)
        z[: len(unsafe.member)] = self.x
        for step in range(self.steps):
            if clock.left <= 0:
                return None
            excess, gradient = slope(model, z, unsafe, goals, True)
            for i in (excess.amin(1) <= 0).nonzero().flatten()[:3].tolist():
                if self.confirm(z[i : i + 1]):
                    return z[i : i + 1]
            if gradient is None:
                break
            moved = z - (0.3 if step < self.steps // 2 else 0.05) * self.ball.steepest(gradient)
            z = self.ball.project(moved, starts)
        return self.other(model, lower, upper, unsafe, generator, clock)
