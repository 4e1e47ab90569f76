"""The heart of every soundness test: points of the ball, found in every way that we know, against the bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.harness.evaluation import evaluating
from robust_plugins.intervals import Interval

RELATIVE_TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
"""What floating-point evaluation of bound and network may differ by, relative to the largest magnitude involved."""


def assert_inside(
    bounds: Interval, values: Float[Tensor, "*points batch rows"], what: str, *, tolerance: float | None = None
) -> None:
    """Fails where a value lies outside `bounds` of shape (batch, rows), naming the sample, the row and the excess.

    `tolerance` is relative to the largest magnitude of bounds and values; by default that of the dtype.
    """
    relative = RELATIVE_TOLERANCE[bounds.dtype] if tolerance is None else tolerance
    scale = max(bounds.lower.abs().max().item(), bounds.upper.abs().max().item(), values.abs().max().item())
    excess = torch.maximum(bounds.lower - values, values - bounds.upper)
    assert not excess.isnan().any(), f"{what}: a bound or a value is NaN"
    worst = int(excess.argmax())
    rows, batch = values.shape[-1], values.shape[-2]
    assert excess.max() <= relative * scale, (
        f"{what}: sample {worst // rows % batch}, row {worst % rows} leaves its bounds by {excess.max().item():.3g} "
        f"(allowed: {relative * scale:.3g})"
    )


def adversarial_points(
    model: nn.Module,
    x: Float[Tensor, "batch *features"],
    ball: Ball,
    spec: Float[Tensor, "batch rows classes"],
    *,
    samples: int = 100,
    steps: int = 30,
    seed: int = 0,
) -> Iterator[tuple[str, Float[Tensor, "points batch rows"]]]:
    """Values of `spec @ logits` at points of the ball, with the way in which the points were found.

    Uniform points, corners, the centre, Gaussian starts, and for every row the ends of a gradient descent and a
    gradient ascent on it alone. The model evaluates many points in one batch.
    """
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model, freeze=True), torch.enable_grad():

        def rows(z: Tensor) -> Tensor:
            """The rows at several points of each sample, (points, batch, *features) in one pass."""
            logits: Tensor = model(z.flatten(0, 1)).unflatten(0, z.shape[:2])
            return (spec @ logits.unsqueeze(3)).squeeze(3)

        with torch.no_grad():
            yield "the centre", rows(x.unsqueeze(0))
            for draw in ("uniform", "corner", "gaussian"):
                yield f"{draw} samples", rows(ball.sample(x, samples, generator, draw=draw))
        for sign, name in ((-1, "descent"), (1, "ascent")):
            ends = _climb(rows, sign, spec.shape[1], x, ball, steps)
            for row, end in enumerate(ends):
                yield f"gradient {name} on row {row}", end.unsqueeze(0)


def _climb(
    rows: Callable[[Tensor], Tensor], sign: int, count: int, x: Tensor, ball: Ball, steps: int
) -> Float[Tensor, "rows batch rows"]:
    """The rows' values where projected steps up (sign 1) or down each of them end.

    The step shrinks from half of the ball to a hundredth. All rows climb together, in a batch of `count` copies of `x`.
    """
    start = x.repeat(count, *[1] * (x.ndim - 1))
    ball = replace(ball, eps=ball.radii * count) if isinstance(ball.radii, tuple) else ball
    z = start
    for step in range(steps):
        z = z.detach().requires_grad_()
        climbed = rows(z.unflatten(0, (count, len(x)))).diagonal(0, 0, 2)
        (gradient,) = torch.autograd.grad(climbed.sum(), z)
        size = max(0.5 * (1 - step / steps), 0.01)
        z = ball.project(z + size * ball.steepest(sign * gradient), start)
    with torch.no_grad():
        return rows(z.detach().unflatten(0, (count, len(x))))
