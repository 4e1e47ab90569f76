"""The package's own explanation certifiers, on the interval engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError
from robust_plugins.explanations.bounds.adjoint import Adjoint
from robust_plugins.explanations.bounds.cross_entropy import directions, probabilities, weighted_sum
from robust_plugins.explanations.bounds.curvature import smooth_of
from robust_plugins.explanations.bounds.gradient_graph import graph_interval
from robust_plugins.explanations.bounds.joint_gates import PLANES, gradient_interval
from robust_plugins.explanations.bounds.mixing import is_mixing
from robust_plugins.explanations.bounds.quadratic import SecondOrder
from robust_plugins.explanations.bounds.widening import widened
from robust_plugins.explanations.certifier import ExplanationCertifier
from robust_plugins.explanations.explained import Explained, Of, weight_intervals
from robust_plugins.intervals import Interval, Network, Relaxation, crown, rounding, trace
from robust_plugins.intervals.methods.relaxation import MEMORY
from robust_plugins.intervals.methods.substitution import Support
from robust_plugins.intervals.network.graph import Rounding
from robust_plugins.intervals.rules.selection import softmax_range

STEPS = 8
"""The number of Adam's steps on the planes of joint gates."""


@dataclass(frozen=True, kw_only=True)
class _OfTheEngine(ExplanationCertifier):
    """The engine's certifiers share this: with `outward` their bounds also hold in floating point."""

    outward: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.outward, bool):
            raise ArgumentError("outward", self.outward, accepted="True or False", hint="True rounds bounds outward.")
        if self.outward:
            text = (
                "real and floating-point arithmetic of the model's dtype, sums in any order, by outward rounding; at "
                "kinks the slope of automatic differentiation; L2 and L1 balls by the box around them"
            )
            object.__setattr__(self, "soundness", text)
            object.__setattr__(self, "rounding", 0.0)

    @property
    def _mode(self) -> Rounding:
        return "outward" if self.outward else "nearest"


@dataclass(frozen=True, kw_only=True)
class IBP(_OfTheEngine):
    """Interval bound propagation forward, then the chain rule as a product of intervals backward.

    Wicker et al. 2023, "Robust explanation constraints for neural networks", for any graph of the engine;
    differentiable. Loss gradients are bounded far too widely by it, which certificates say. With `outward`, for float32
    and float64, the bounds hold for the exact gradients and also for those that are computed in floating point, in
    whichever order sums run; not for products in reduced precision (TF32, bfloat16) nor for convolutions by Winograd or
    FFT, which are refused where they can be known.
    """

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
        with rounding.outward(self.outward):
            network = trace(model, x, weights=weight_intervals(model, radius))
            values = widened(network, network.forward(ball.box(x), rounding=self._mode))
            start = Interval.point(explained.coefficients)
            if explained.of == "loss":
                start = start + softmax_range(values[-1], -1)
            return network.backward(values, start, rounding=self._mode).input


@dataclass(frozen=True, kw_only=True)
class CROWN(_OfTheEngine):
    """Linear relaxation bounds nonlinear layers' inputs, the chain rule the gradient, as in `IBP`; differentiable.

    `memory` is the number of bytes for the coefficients of one chunk of neurons. `outward` is as for `interval:ibp`;
    a layer whose relaxation cannot be rounded outward is refused by name.
    """

    memory: int = MEMORY

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory < 1:
            raise ArgumentError("memory", self.memory, accepted="a number of bytes", hint=f"The default is {MEMORY}.")

    def gradient_bounds(  # noqa: D102 (inherited)
        self, model: nn.Module, x: Float[Tensor, "batch *features"], ball: Ball, explained: Explained, *, radius: float
    ) -> Interval:
        with rounding.outward(self.outward):
            network = trace(model, x, weights=weight_intervals(model, radius))
            support = self._support(ball, x)
            values = crown(network, ball.box(x), memory=self.memory, support=support, entries="bent")
            values = widened(network, values, None if support is None else x)
            start = Interval.point(explained.coefficients)
            if explained.of == "loss":
                relaxation = Relaxation(network, values, memory=self.memory, support=support)
                start = start + probabilities(relaxation, explained.y)
            return network.backward(values, start, rounding=self._mode).input

    def _support(self, ball: Ball, x: Tensor) -> Support | None:
        """Says what is known of the ball besides its box, where nothing is rounded outward."""
        return None if self.outward else ball.support(x)


@dataclass(frozen=True, kw_only=True)
class Relaxed(CROWN):
    """Linear relaxation of the forward pass, then of the backward pass; differentiable.

    A gate of the backward pass multiplies the gradient by a slope from an interval; the products are bounded by chords
    and substituted back linearly, as CROWN does through the forward pass. For ReLU these are the bounds of Shi et al.
    2022, "Efficiently computing local Lipschitz constants of neural networks via bound propagation". The loss's
    gradient is bounded through those of the differences of the logits, with probabilities that sum to one.

    Of models with attention, softmax, normalisations of each sample or products of activations the network and its
    backward pass are bounded as one network of the input, whatever is explained and at every effort: tight for small
    balls, and of no use for balls over which the attention may be anything. With `outward` they are not: attention's
    gates are intervals then.

    `effort` chooses what is tried besides, and intersected, for smooth activations (Tanh, Sigmoid, Softplus, GELU,
    SiLU); others always have relaxed gates:

    - 0: nothing.
    - 1, 2: joint gates, which keep the slopes' dependence on the input, with one plane or with three; and the network
      and its backward pass as one, as above, which is tighter on wide balls.
    - 3: as 2, with planes searched for by a few steps of Adam, many times slower; and for networks whose activations
      are all smooth gradients as quadratic functions of the input, where their coefficients for one sample fit
      `memory` (inputs up to about 100) and weights are points.

    With `outward` effort 1 is the network and its backward pass as one, alone. On networks trained on digits its widths
    are at most 3 % above those without `outward` in double precision, in single precision 1 to 3 % for radii from .01
    on and 6 to 26 % at .001. Higher efforts are refused: the planes of joint gates are not rounded outward.

    Certificates for a finite `delta` try effort 0 first (and 2 before 3), and more only for the samples and components
    that are not robust by then; `bounds`, and infinite `delta`, take it for all.
    """

    effort: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.effort not in range(4):
            raise ArgumentError(
                "effort", self.effort, accepted="0, 1, 2 or 3", hint="More effort is tighter for smooth activations."
            )
        if self.outward and self.effort > 1:
            raise ArgumentError(
                "effort", self.effort, accepted="0 or 1 with outward rounding", hint="Planes are not rounded outward."
            )

    def bytes_per_sample(self, activations: Sequence[int], classes: int, itemsize: int) -> int:
        """The loss's gradient takes as many backward passes as there are classes; coefficients have `memory`."""
        return 12 * itemsize * classes * (sum(activations) + classes)

    def cheaper(self, model: nn.Module, x: Float[Tensor, "batch *features"]) -> ExplanationCertifier | None:
        """Effort 0, and before the search for planes effort 2, where they change anything."""
        if not self.effort:
            return None
        network = trace(model, x[:1])
        smooth = any(smooth_of(layer) is not None for layer in network.layers)
        return replace(self, effort=2 if self.effort == 3 else 0) if smooth and not is_mixing(network) else None

    def gradient_bounds(  # noqa: D102 (inherited)
        self, model: nn.Module, x: Float[Tensor, "batch *features"], ball: Ball, explained: Explained, *, radius: float
    ) -> Interval:
        return self._refined(model, x, ball, explained, radius, None)

    def refined(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        explained: Explained,
        *,
        radius: float,
        wanted: Bool[Tensor, "batch *features"],
    ) -> Interval:
        return self._refined(model, x, ball, explained, radius, wanted)

    def _refined(
        self, model: nn.Module, x: Tensor, ball: Ball, explained: Explained, radius: float, wanted: Tensor | None
    ) -> Interval:
        with rounding.outward(self.outward):
            network = trace(model, x, weights=weight_intervals(model, radius))
            support = self._support(ball, x)
            values = crown(network, ball.box(x), memory=self.memory, support=support, entries="bent")
            values = widened(network, values, None if support is None else x)
            if is_mixing(network) and not self.outward:
                return graph_interval(
                    network, values, explained.of, explained.coefficients, memory=self.memory, support=support
                )
            if explained.of != "loss":
                return self._of_logits(network, values, explained.coefficients, wanted, support)
            return self._of_loss(network, values, explained.y, wanted, support)

    def _of_loss(
        self, network: Network, values: Sequence[Interval], y: Tensor, wanted: Tensor | None, support: Support | None
    ) -> Interval:
        """Bounds on the gradient of the cross-entropy: a weighted sum of those of differences of the logits."""
        batch, classes = values[-1].shape
        others, coefficients = directions(y, classes)
        if self.outward:  # the weights that are computed do not sum to zero: what they miss goes to the class itself
            coefficients = torch.cat([coefficients, F.one_hot(y.long(), classes).unsqueeze(1)], 1)
        count = coefficients.shape[1]
        repeated = [v.map(lambda t: t.repeat_interleave(count, 0)) for v in values]
        start = coefficients.to(values[-1].lower).flatten(0, 1)
        if wanted is not None:
            wanted = wanted.repeat_interleave(count, 0)
        each = None if support is None else _repeated(support, count)
        rows = self._of_logits(network, repeated, start, wanted, each).map(lambda t: t.unflatten(0, (batch, count)))
        p = probabilities(Relaxation(network, values, memory=self.memory, support=support), y)
        own = p.map(lambda t: t.gather(1, y.long().unsqueeze(1)).squeeze(1))
        p, total = p.map(lambda t: t.gather(1, others)), 1 - own
        if not self.outward:
            return weighted_sum(p, total, rows)
        missed = 8 * classes * (classes + 16) * rounding.unit(p.dtype)[0]
        found = weighted_sum(p, Interval(total.lower - missed, total.upper + missed), rows[:, :-1])
        return found + rows[:, -1] * Interval(*(torch.full_like(rows.lower[:, -1], s * missed) for s in (-1, 1)))

    def _of_logits(
        self,
        network: Network,
        values: Sequence[Interval],
        coefficients: Tensor,
        wanted: Tensor | None,
        support: Support | None,
    ) -> Interval:
        """Bounds on the gradient of `coefficients` times the logits, one row of them for each sample of `values`."""
        adjoint = Adjoint.of(network, values)
        planes = () if self.outward else PLANES[: {0: 0, 1: 1}.get(self.effort, len(PLANES))]
        start, steps = Interval.point(coefficients), STEPS if self.effort == 3 else 0
        found = gradient_interval(
            network, values, adjoint, start, planes, self.memory, steps=steps, asked=wanted, support=support
        )
        if self.effort and any(smooth_of(layer) is not None for layer in network.layers):
            whole = graph_interval(network, values, "logit", coefficients, memory=self.memory, support=support)
            found = found.agreeing(whole)
        if self.effort < 3:
            return found
        second_order = SecondOrder(network, values, adjoint)
        size = second_order.bytes_per_sample()
        if not second_order.applicable or size > self.memory:
            return found
        return found.agreeing(second_order.bounds(coefficients, at_once=self.memory // size))


def _repeated(support: Support, count: int) -> Support:
    """The support of a batch in which each sample is there `count` times in a row."""

    def least(a: Tensor) -> Tensor:
        if len(a) == 1:
            return support(a).repeat_interleave(count, 0)
        rows = a.unflatten(0, (-1, count))
        return support(rows.flatten(1, 2)).view(len(a), -1)

    return least
