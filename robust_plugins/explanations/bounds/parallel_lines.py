"""A second choice of lines for activations that turn: parallel ones, which no line that is best in the middle beats.

Lines that touch an S-shaped function where they lie nearest in the middle of its interval lie further from it at the
ends. Which of the two is tighter in the end depends on the coefficients: bounds by either are intersected.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from robust_plugins.explanations.bounds.curvature import smooth_of
from robust_plugins.intervals import Interval, Network, Relaxation
from robust_plugins.intervals.rules.elementwise import Activation, line
from robust_plugins.intervals.rules.registry import LinearBound, Rules


def with_parallel_lines(relaxation: Relaxation) -> Relaxation | None:
    """The relaxation of the same network by `Activation.parallel_lines`; None where no activation turns."""
    network = relaxation.network
    turning = [_turning(layer) for layer in network.layers]
    if not any(turning):
        return None
    rules = [r if a is None else _parallel(r, a) for r, a in zip(network.rules, turning, strict=True)]
    other = Network.from_parts(network.model, network.nodes, network.layers, rules, network.parameters)
    return Relaxation(other, relaxation.values, memory=relaxation.memory, support=relaxation.support)


def _turning(layer: nn.Module) -> Activation | None:
    """The record of a smooth activation that is convex on one side of a point and concave on the other."""
    smooth = smooth_of(layer)
    return smooth.activation if smooth is not None and smooth.activation.turns and not smooth.step else None


def _parallel(rules: Rules, activation: Activation) -> Rules:
    def relaxation(_: nn.Module, z: Interval) -> tuple[LinearBound, LinearBound]:
        (a, b), (c, d) = activation.parallel_lines(z)
        return line(a, b), line(c, d)

    return replace(rules, relaxation=relaxation)
