"""The heart of every soundness test: points of the ball, found in every way that we know, against the bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
    gradient ascent on it alone.
    """
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model, freeze=True), torch.enable_grad():

        def rows(z: Tensor) -> Tensor:
            logits: Tensor = model(z)
            return (spec @ logits.unsqueeze(2)).squeeze(2)

        with torch.no_grad():
            yield "the centre", rows(x).unsqueeze(0)
            for draw in ("uniform", "corner", "gaussian"):
                points = ball.sample(x, samples, generator, draw=draw)
                yield f"{draw} samples", torch.stack([rows(z) for z in points])
        for row in range(spec.shape[1]):
            for sign, name in ((-1, "descent"), (1, "ascent")):
                z = _climb(rows, row, sign, x, ball, steps)
                with torch.no_grad():
                    yield f"gradient {name} on row {row}", rows(z).unsqueeze(0)


def _climb(
    rows: Callable[[Tensor], Tensor], row: int, sign: int, x: Tensor, ball: Ball, steps: int
) -> Float[Tensor, "batch *features"]:
    """Projected steps up (sign 1) or down one row, with a step that shrinks to a hundredth of the ball."""
    z = x
    for step in range(steps):
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(rows(z)[:, row].sum(), z)
        size = max(0.5 * (1 - step / steps), 0.01)
        z = ball.project(z + size * ball.steepest(sign * gradient), x)
    return z.detach()
