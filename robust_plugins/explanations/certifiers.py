"""The package's own explanation certifiers, on the interval engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.explanations.definition import Explained, weight_intervals
from robust_plugins.explanations.interface import ExplanationCertifier
from robust_plugins.intervals import Interval, crown, trace
from robust_plugins.intervals.selection_rules import softmax_range


@dataclass(frozen=True, kw_only=True)
class IBP(ExplanationCertifier):
    """Interval bound propagation forward, then the chain rule as a product of intervals backward.

    Wicker et al. 2022, "Robust explanation constraints for neural networks", sections 4 and 5, for any graph of the
    engine; differentiable.
    """

    def gradient_bounds(  # noqa: D102 (inherited)
        self, model: nn.Module, x: Float[Tensor, "batch *features"], ball: Ball, explained: Explained, *, weights: float
    ) -> Interval:
        network = trace(model, x, weights=weight_intervals(model, weights))
        values = network.forward(ball.bounds(x))
        return network.backward(values, start(explained, values)).input


@dataclass(frozen=True, kw_only=True)
class CROWN(ExplanationCertifier):
    """As `IBP`, with the inputs of all nonlinear layers bounded by linear relaxation; differentiable."""

    def gradient_bounds(  # noqa: D102 (inherited)
        self, model: nn.Module, x: Float[Tensor, "batch *features"], ball: Ball, explained: Explained, *, weights: float
    ) -> Interval:
        network = trace(model, x, weights=weight_intervals(model, weights))
        values = crown(network, ball.bounds(x))
        return network.backward(values, start(explained, values)).input


def start(explained: Explained, values: Sequence[Interval]) -> Interval:
    """The derivatives of what is explained by the logits, over the ball: where the backward pass begins."""
    direction = Interval.point(explained.coefficients)
    return direction + softmax_range(values[-1], -1) if explained.of == "loss" else direction
