"""The perturbation sets `B_eps(x)`, cut to the valid range of inputs: `Linf`, `L2`, `L1` and `Box`."""

from robust_plugins.balls.ball import Ball, Draw, Support
from robust_plugins.balls.box import Box
from robust_plugins.balls.norms import BALLS, L1, L2, Linf

__all__ = ["BALLS", "L1", "L2", "Ball", "Box", "Draw", "Linf", "Support"]
