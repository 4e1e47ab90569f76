"""What the rows of a case's outputs reach inside the ball: uniform points, corners, and ascent on each row alone.

The model is run in double precision at points that lie in the ball exactly, so that what is reached is real; and once
more in its own dtype at the farthest points. Certifiers are then compared with the numbers alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import robust_plugins as rp
from support.fuzzing.drawing import Case, outputs

ERRORS = 8
"""As the package has it: how many times the measured rounding error of an evaluation others may be off by."""


@dataclass(frozen=True, eq=False)
class Reached:
    """The least and greatest value of each row, in double precision, and what rounding may add."""

    lower: Tensor
    upper: Tensor
    own_lower: Tensor
    own_upper: Tensor
    """In the model's own dtype."""
    at: Tensor
    """The points of the greatest values, then those of the least: (2, rows, batch, *features)."""
    noise: Tensor
    """The rounding error of the rows, per sample and row."""
    scale: Tensor
    """The largest magnitude of the outputs, per sample."""
    points: int


def outside(reached: Reached, bounds: rp.Interval, *, relative: float) -> Tensor:
    """By how much each row leaves its bounds beyond rounding and `relative` to their scale or a part of their width.

    Relative to the width of the bounds, or to the noise where that is larger: 0 or less where all is inside.
    """
    lower, upper = bounds.lower.detach().double(), bounds.upper.detach().double()
    scale = torch.maximum(torch.maximum(lower.abs(), upper.abs()), reached.scale.unsqueeze(1)).nan_to_num(posinf=0.0)
    width = (upper - lower).clamp(min=0).nan_to_num(posinf=0.0)
    stated = torch.minimum(relative * scale, 1e-3 * width)
    unit = 1e-14 if bounds.dtype == torch.float64 else 2e-6
    allowed = ERRORS * reached.noise + unit * scale + stated
    real = torch.maximum(lower - reached.lower, reached.upper - upper)
    own = torch.maximum(lower - reached.own_lower, reached.own_upper - upper)
    excess = torch.maximum(real, own) - allowed
    return torch.where(lower.isnan() | upper.isnan(), torch.inf, excess / torch.maximum(width, allowed))


def rows_of(case: Case) -> Tensor:
    """The identity and then the rows of `case.spec`: what is pushed, for every sample."""
    classes = case.classes
    identity = torch.eye(classes, dtype=torch.float64).expand(len(case.x), classes, classes)
    return torch.cat((identity, case.spec.double()), 1)


def reach(case: Case, *, samples: int = 64, steps: int = 12, restarts: int = 2) -> Reached:
    """The values of `rows_of(case)` that were found."""
    search = _Search(case)
    draw = torch.Generator().manual_seed(case.seed)
    found = [search.x.unsqueeze(0)]
    found += [search.inside(case.ball.sample(search.x, samples, draw, draw=kind)) for kind in ("uniform", "corner")]  # type: ignore[arg-type]
    best = search.best(torch.cat(found))
    for restart in range(restarts):
        anywhere = case.ball.sample(search.x, 2 * best.shape[1], draw)
        start = best if restart == 0 else search.inside(anywhere).view(best.shape)
        best = search.better(best, search.ascend(start, steps, draw))
    return search.summary(best, points=(1 + 2 * samples) * len(case.x) + restarts * steps * best[..., 0].numel())


class _Search:
    """Points of a case's ball in double precision."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.alone = "batch" in case.written.flags
        self.model = case.written.model().double()
        self.x = case.x.double()
        self.rows = rows_of(case)
        self.box = case.ball.box(case.x)
        self.eps = case.ball.eps_for(case.x).double()

    def inside(self, z: Tensor) -> Tensor:
        """`z` of shape (..., batch, *features), moved into the ball: exactly, with a margin for rounding."""
        ball = self.case.ball
        if ball.norm != torch.inf:
            # The ball around the rounded x; a little smaller, because it is projected with rounding.
            flat = z.reshape(-1, *self.x.shape)
            near = self.x.expand(flat.shape)
            radius = (self.eps.flatten() * (1 - 1e-9)).repeat(len(flat))
            smaller = type(ball)(eps=radius, clip=ball.clip)
            z = smaller.project(flat.flatten(0, 1), near.flatten(0, 1)).view(z.shape)
        return torch.minimum(torch.maximum(z, self.box.lower.double()), self.box.upper.double())

    def values(self, z: Tensor, model: nn.Module | None = None) -> Tensor:
        """`rows @ outputs` at z of shape (n, batch, *features), for all rows: (n, batch, rows)."""
        model = model or self.model
        if self.alone:
            out = torch.stack([outputs(model, sample) for sample in z])
        else:
            out = outputs(model, z.flatten(0, 1)).view(len(z), len(self.x), -1)
        return (self.rows.to(out.dtype) @ out.unsqueeze(-1)).squeeze(-1)

    def best(self, z: Tensor) -> Tensor:
        """Of points (n, batch, *features) those with the greatest and the least rows, (2, rows, batch, *features)."""
        with torch.no_grad():
            values = self.values(z)
        pick = torch.stack((values.argmax(0), values.argmin(0))).transpose(1, 2)  # 2, rows, batch
        return z[pick, torch.arange(len(self.x))]

    def own(self, z: Tensor) -> Tensor:
        """The row at which each point of (2, rows, batch, *features) was aimed: (2, rows, batch)."""
        values = self.values(z.flatten(0, 1)).view(2, z.shape[1], len(self.x), -1)
        return values.diagonal(dim1=1, dim2=3).transpose(1, 2)

    def better(self, old: Tensor, new: Tensor) -> Tensor:
        with torch.no_grad():
            sign = torch.tensor([1.0, -1.0], dtype=old.dtype).view(2, 1, 1)
            take = sign * self.own(new) > sign * self.own(old)
        return torch.where(take.view(*take.shape, *[1] * (self.x.dim() - 1)), new, old)

    def ascend(self, z: Tensor, steps: int, draw: torch.Generator) -> Tensor:
        """Projected steps along each row's own gradient, up and down, the best point of the way kept."""
        sign = torch.tensor([1.0, -1.0], dtype=z.dtype).view(2, *[1] * (z.dim() - 1))
        best = z
        for step in range(steps):
            try:
                with torch.enable_grad():
                    z = z.detach().requires_grad_()
                    (gradient,) = torch.autograd.grad(self.own(z).sum(), z)
            except RuntimeError:  # an operation in place that automatic differentiation refuses, or no gradient at all
                break
            noise = torch.randn(z.shape, generator=draw, dtype=z.dtype)
            flat = torch.where(gradient == 0, 1e-9 * noise, gradient).nan_to_num().flatten(3)
            if self.case.ball.norm == torch.inf:
                direction = flat.sign()
            elif self.case.ball.norm == 1 and step % 2:
                largest = flat.abs().argmax(-1, keepdim=True)
                direction = torch.zeros_like(flat).scatter(-1, largest, flat.gather(-1, largest).sign())
            else:
                direction = nn.functional.normalize(flat, dim=-1)
            size = self.eps * (2.0 if step == 0 else 1.5 * (1 - step / steps) ** 2 + 0.01)
            z = self.inside(z.detach() + sign * size * direction.view(z.shape))
            best = self.better(best, z)
        return best

    def summary(self, best: Tensor, points: int) -> Reached:
        rounded = best.to(self.case.x.dtype).flatten(0, 1)
        own_z = torch.stack([self.case.ball.project(z, self.case.x) for z in rounded])
        own_z = own_z.view(best.shape)
        with torch.no_grad():
            real = self.own(best)
            own = self.own_in(self.case.written.model(), own_z)
            own_real = self.own(own_z.double())
            if self.case.x.dtype == torch.float64:
                single = self.own_in(self.case.written.model().float(), own_z.float())
                error = (single - own).abs() * 2.0**-29
            else:
                error = (own - own_real).abs()
            scale = torch.stack([outputs(self.model, z).abs().amax(1) for z in (self.x, *best.flatten(0, 1))]).amax(0)
        noise = error.nan_to_num(nan=0.0, posinf=0.0).amax((0, 1)).unsqueeze(1).expand(-1, best.shape[1])
        if self.case.ball.norm != torch.inf:
            own = own_real = real  # projected with rounding: not a point of the ball
        upper, lower = real[0].T, real[1].T
        return Reached(lower, upper, own[1].double().T, own[0].double().T, best, noise, scale, points)

    def own_in(self, model: nn.Module, z: Tensor) -> Tensor:
        values = self.values(z.flatten(0, 1), model).view(2, z.shape[1], len(self.x), -1)
        return values.diagonal(dim1=1, dim2=3).transpose(1, 2).double()
