"""How a ball is called in tables."""

from __future__ import annotations

from robust_plugins.balls import Ball


def ball_name(ball: Ball) -> str:
    """A ball as a column's title: its norm and its radius, or the range of its radii."""
    eps = (ball.radii or (0.0,)) if isinstance(ball.radii, tuple) else (ball.radii,)  # of no sample: nothing moves
    radius = f"{min(eps):.4g}" if min(eps) == max(eps) else f"{min(eps):.4g} to {max(eps):.4g}"
    if len(eps) > 1:
        radius += " (one per sample)"
    return f"{type(ball).__name__} {radius}"
