"""The package's own explanation certifiers, on the interval engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError
from robust_plugins.explanations.bounds.adjoint import Adjoint
from robust_plugins.explanations.bounds.cross_entropy import directions, probabilities, weighted_sum
from robust_plugins.explanations.bounds.gradient_graph import graph_interval
from robust_plugins.explanations.bounds.joint_gates import PLANES, gradient_interval
from robust_plugins.explanations.bounds.mixing import is_mixing
from robust_plugins.explanations.bounds.quadratic import SecondOrder
from robust_plugins.explanations.bounds.widening import widened
from robust_plugins.explanations.certifier import ExplanationCertifier
from robust_plugins.explanations.explained import Explained, Of, weight_intervals
from robust_plugins.intervals import Interval, Network, Relaxation, crown, rounding, trace
from robust_plugins.intervals.methods.relaxation import MEMORY
from robust_plugins.intervals.network.graph import Rounding
from robust_plugins.intervals.rules.selection import softmax_range

STEPS = 8
"""The number of Adam's steps on the planes of joint gates."""


@dataclass(frozen=True, kw_only=True)
class IBP(ExplanationCertifier):
    """Interval bound propagation forward, then the chain rule as a product of intervals backward.

    Wicker et al. 2023, "Robust explanation constraints for neural networks", for any graph of the engine;
    differentiable. Loss gradients are bounded far too widely by it, which certificates say. With `outward`, for float32
    and float64, the bounds also hold for the gradients that are computed in floating point, in whichever order sums
    run.
    """

    outward: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.outward:
            text = (
                "floating-point arithmetic of the model's dtype, sums in any order, by outward rounding; at kinks the "
                "slope of automatic differentiation; L2 and L1 balls by the box around them"
            )
            object.__setattr__(self, "soundness", text)
            object.__setattr__(self, "rounding", 0.0)

    def advice(self, of: Of) -> str:  # noqa: D102 (inherited)
        if of != "loss":
            return ""
        return (
            "interval:ibp multiplies the ranges of probabilities and of gradients as if they were independent, and its "
            "bounds on the loss's gradient are mostly far too wide (measured on small networks: 20 to 2,000,000 times "
            "those of interval:relaxed): use interval:relaxed"
        )

    def gradient_bounds(  # noqa: D102 (inherited)
        self, model: nn.Module, x: Float[Tensor, "batch *features"], ball: Ball, explained: Explained, *, radius: float
    ) -> Interval:
        mode: Rounding = "outward" if self.outward else "nearest"
        with rounding.outward(self.outward):
            network = trace(model, x, weights=weight_intervals(model, radius))
            values = widened(network, network.forward(ball.box(x), rounding=mode))
            start = Interval.point(explained.coefficients)
            if explained.of == "loss":
                start = start + softmax_range(values[-1], -1)
            return network.backward(values, start, rounding=mode).input


@dataclass(frozen=True, kw_only=True)
class CROWN(ExplanationCertifier):
    """Linear relaxation bounds nonlinear layers' inputs, the chain rule the gradient, as in `IBP`; differentiable.

    `memory` is the number of bytes for the coefficients of one chunk of neurons.
    """

    memory: int = MEMORY

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory < 1:
            raise ArgumentError("memory", self.memory, accepted="a number of bytes", hint=f"The default is {MEMORY}.")

    def gradient_bounds(  # noqa: D102 (inherited)
        self, model: nn.Module, x: Float[Tensor, "batch *features"], ball: Ball, explained: Explained, *, radius: float
    ) -> Interval:
        network = trace(model, x, weights=weight_intervals(model, radius))
        values = widened(network, crown(network, ball.box(x), memory=self.memory, entries="bent"))
        start = Interval.point(explained.coefficients)
        if explained.of == "loss":
            start = start + probabilities(Relaxation(network, values, memory=self.memory), explained.y)
        return network.backward(values, start).input


@dataclass(frozen=True, kw_only=True)
class Relaxed(CROWN):
    """Linear relaxation of the forward pass, then of the backward pass; differentiable.

    A gate of the backward pass multiplies the gradient by a slope from an interval; the products are bounded by chords
    and substituted back linearly, as CROWN does through the forward pass. For ReLU these are the bounds of Shi et al.
    2022, "Efficiently computing local Lipschitz constants of neural networks via bound propagation". The loss's
    gradient is bounded through those of the differences of the logits, with probabilities that sum to one.

    Of models with attention, softmax, normalisations of each sample or products of activations the network and its
    backward pass are bounded as one network of the input, whatever is explained and at every effort: tight for small
    balls, and of no use for balls over which the attention may be anything.

    `effort` chooses what is tried besides, and intersected, for smooth activations (Tanh, Sigmoid, Softplus, GELU,
    SiLU); others always have relaxed gates:

    - 0: nothing.
    - 1, 2: joint gates, which keep the slopes' dependence on the input, with one plane or with three.
    - 3: as 2, with planes searched for by a few steps of Adam, many times slower; and for networks whose activations
      are all smooth gradients as quadratic functions of the input, where their coefficients for one sample fit
      `memory` (inputs up to about 100) and weights are points.
    """

    effort: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.effort not in range(4):
            raise ArgumentError(
                "effort", self.effort, accepted="0, 1, 2 or 3", hint="More effort is tighter for smooth activations."
            )

    def bytes_per_sample(self, activations: Sequence[int], classes: int, itemsize: int) -> int:
        """The loss's gradient takes as many backward passes as there are classes; coefficients have `memory`."""
        return 12 * itemsize * classes * (sum(activations) + classes)

    def gradient_bounds(  # noqa: D102 (inherited)
        self, model: nn.Module, x: Float[Tensor, "batch *features"], ball: Ball, explained: Explained, *, radius: float
    ) -> Interval:
        network = trace(model, x, weights=weight_intervals(model, radius))
        values = widened(network, crown(network, ball.box(x), memory=self.memory, entries="bent"))
        if is_mixing(network):
            return graph_interval(network, values, explained.of, explained.coefficients, memory=self.memory)
        if explained.of != "loss":
            return self._of_logits(network, values, explained.coefficients)
        others, coefficients = directions(explained.y, values[-1].shape[1])
        count = others.shape[1]
        repeated = [v.map(lambda t: t.repeat_interleave(count, 0)) for v in values]
        rows = self._of_logits(network, repeated, coefficients.to(x).flatten(0, 1))
        p = probabilities(Relaxation(network, values, memory=self.memory), explained.y)
        own = p.map(lambda t: t.gather(1, explained.y.long().unsqueeze(1)).squeeze(1))
        return weighted_sum(
            p.map(lambda t: t.gather(1, others)), 1 - own, rows.map(lambda t: t.unflatten(0, (len(x), count)))
        )

    def _of_logits(self, network: Network, values: Sequence[Interval], coefficients: Tensor) -> Interval:
        """Bounds on the gradient of `coefficients` times the logits, one row of them for each sample of `values`."""
        adjoint = Adjoint.of(network, values)
        planes = PLANES[: {0: 0, 1: 1}.get(self.effort, len(PLANES))]
        start, steps = Interval.point(coefficients), STEPS if self.effort == 3 else 0
        found = gradient_interval(network, values, adjoint, start, planes, self.memory, steps=steps)
        if self.effort < 3:
            return found
        second_order = SecondOrder(network, values, adjoint)
        size = second_order.bytes_per_sample()
        if not second_order.applicable or size > self.memory:
            return found
        return found.agreeing(second_order.bounds(coefficients, at_once=self.memory // size))
