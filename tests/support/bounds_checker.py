"""Looks for points of a ball that lie outside bounds: samples, corners and gradient ascent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import robust_plugins as rp

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-6}
"""Relative to the scale of the bounds: the backend rounds to nearest, in either dtype."""


def violation(
    model: nn.Module, x: Tensor, ball: rp.Ball, bounds: rp.Interval, spec: Tensor | None = None, *, samples: int = 100
) -> float:
    """How far the worst point found lies outside `bounds`, relative to their scale; at most 0 where none does."""
    generator = torch.Generator().manual_seed(0)
    bounds = bounds.detach()
    points = [ball.sample(x, samples, generator, draw=draw) for draw in ("uniform", "corner")]
    points.append(_ascended(model, x, ball, bounds.shape[1], spec, generator))
    worst = -torch.inf
    scale = 1 + float(torch.stack((bounds.lower.abs(), bounds.upper.abs())).amax())
    for z in points:
        with torch.no_grad():
            value = _rows(model, z.flatten(0, 1), spec, len(z)).view(len(z), *bounds.shape)
        assert value.isfinite().all()
        outside = torch.maximum(bounds.lower - value, value - bounds.upper).amax()
        worst = max(worst, float(outside))
    return worst / scale


def sound(
    model: nn.Module, x: Tensor, ball: rp.Ball, bounds: rp.Interval, spec: Tensor | None = None, *, samples: int = 100
) -> bool:
    """Whether no point of the ball was found outside `bounds`, up to rounding."""
    assert bool(bounds.ordered(tolerance=1e-5).all())
    return violation(model, x, ball, bounds, spec, samples=samples) <= TOLERANCE[x.dtype]


def _rows(model: nn.Module, z: Tensor, spec: Tensor | None, repeats: int) -> Tensor:
    logits: Tensor = model(z)
    return logits if spec is None else (spec.repeat(repeats, 1, 1) @ logits.unsqueeze(2)).squeeze(2)


def _ascended(
    model: nn.Module, x: Tensor, ball: rp.Ball, rows: int, spec: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Points that push every row up, and down: 2 * rows per sample."""
    n = 2 * rows
    many = x.repeat(n, *[1] * (x.dim() - 1))
    eps = ball.eps * n if isinstance(ball.eps, tuple) else ball.eps
    wide = type(ball)(eps=eps, clip=ball.clip)
    goal = torch.cat((torch.eye(rows), -torch.eye(rows))).to(x).repeat_interleave(len(x), 0)
    z = ball.sample(x, n, generator).flatten(0, 1)
    for step in (2.0, 2.0, 2.0, 1.0, 0.5, 0.2, 0.1):
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            (g,) = torch.autograd.grad((goal * _rows(model, z, spec, n)).sum(), z)
        flat = g.flatten(1)
        steepest = flat.sign() if ball.norm == float("inf") else flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)
        z = wide.project(z.detach() + step * wide.eps_for(many) * steepest.view_as(z), many)
    return z.detach().view(n, *x.shape)
