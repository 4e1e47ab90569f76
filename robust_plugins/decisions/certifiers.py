"""The package's own certifiers: interval bound propagation and linear relaxation by the interval engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.balls import Ball, Support
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.decisions.specifications import apply_spec, margin_spec
from robust_plugins.decisions.trusted import of_the_engine
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.arguments import check_spec
from robust_plugins.intervals import Interval, Network, Relaxation, crown, rounding, trace
from robust_plugins.intervals.methods.ascent import Ascent
from robust_plugins.intervals.methods.fused_ibp import propagate
from robust_plugins.intervals.methods.optimised_slopes import optimised
from robust_plugins.intervals.methods.relaxation import MEMORY
from robust_plugins.intervals.network.graph import Rounding
from robust_plugins.intervals.products import product
from robust_plugins.registry.hookspecs import Register, hookimpl

ROUNDINGS = 2**6
"""By how many units in the last place of the largest value inside a network the bounds of a margin may be rounded."""

LAST = 1 / 7
"""The last step of a search for slopes, as a part of the first."""


@dataclass(frozen=True, kw_only=True)
class _OfTheEngine(Certifier):
    """The engine's certifiers share this: with `outward` their bounds also hold in floating point."""

    outward: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.outward, bool):
            raise ArgumentError("outward", self.outward, accepted="True or False", hint="True rounds bounds outward.")
        if self.outward:
            text = "real and floating-point arithmetic of the model's dtype, sums in any order, by outward rounding"
            object.__setattr__(self, "soundness", text)
            object.__setattr__(self, "rounding", 0.0)


@of_the_engine
@dataclass(frozen=True, kw_only=True)
class IBP(_OfTheEngine):
    """Interval bound propagation, differentiable, the specification merged into the last linear layer.

    Gowal et al. 2018, "On the effectiveness of interval bound propagation". Sound for every ball, over the smallest
    box around it. With `outward`, for float32 and float64, the bounds hold for the network in real arithmetic and also
    for its floating-point evaluation, in whichever order its sums run, with fused multiply-add or without; not for
    products in reduced precision (TF32, bfloat16) nor for convolutions by Winograd or FFT, which are refused where they
    can be known.
    """

    def propagate(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"] | None,
    ) -> Interval:
        with rounding.outward(self.outward):
            network = trace(model, x)
            box = ball.box(x)
            until = network.nodes[-1].inputs[0] if spec is not None and _merges(network) else len(network.nodes) - 1
            found = propagate(network, box, until=until)
            if found is None:
                found = network.forward(box, rounding=_mode(self.outward), until=until)[-1]
            return _last(network, found, spec)


@of_the_engine
@dataclass(frozen=True, kw_only=True)
class CROWN(_OfTheEngine):
    """Backward linear relaxation of every activation's input and of the specification, differentiable.

    Zhang et al. 2018, "Efficient neural network robustness certification with general activation functions". Sound for
    every ball: over `L2` and `L1` by the dual norm of the input's coefficients or over the smallest box around the
    ball, whichever is tighter; over an `rp.Box` with the simplex of each one-hot group; with `outward` over the box
    alone. `memory` is the number of bytes for the coefficients of one chunk of neurons. `outward` is as for
    `interval:ibp`; a layer whose relaxation cannot be rounded outward is refused by name.
    """

    memory: int = MEMORY

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_memory(self.memory)

    def propagate(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"] | None,
    ) -> Interval:
        with rounding.outward(self.outward):
            network = trace(model, x)
            support = _support(ball, x)
            values = crown(network, ball.box(x), memory=self.memory, support=support, entries="bent")
            if spec is None:
                return values[-1]
            check_spec(spec, x, values[-1].shape[1])
            relaxed = Relaxation(network, values, memory=self.memory, support=support).bounds(len(values) - 1, spec)
            return relaxed.agreeing(_last(network, _before_last(network, values), spec))

    def propagate_lower(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"],
    ) -> Float[Tensor, "batch rows"]:
        with rounding.outward(self.outward):
            network = trace(model, x)
            support = _support(ball, x)
            values = crown(network, ball.box(x), memory=self.memory, support=support, entries="bent")
            check_spec(spec, x, values[-1].shape[1])
            relaxed = Relaxation(network, values, memory=self.memory, support=support).lower(len(values) - 1, spec)
            before = _last(network, _before_last(network, values), spec)
            found = Interval(torch.maximum(relaxed, before.lower), before.upper)
            return _uncrossed(found, before, before, values).lower


@of_the_engine
@dataclass(frozen=True, kw_only=True)
class CROWNIBP(_OfTheEngine):
    """One linear relaxation from the specification back to the input, on IBP's bounds of the layers, differentiable.

    Zhang et al. 2020, "Towards stable and efficient training of verifiably robust neural networks". Sound for every
    ball, over the set that `interval:crown` takes. Much cheaper than CROWN where there are many neurons and few
    classes. `memory` is the number of bytes for the coefficients of one chunk of the specification's rows. `outward`
    is as for `interval:crown`.
    """

    memory: int = MEMORY

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_memory(self.memory)

    def propagate(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"] | None,
    ) -> Interval:
        with rounding.outward(self.outward):
            network = trace(model, x)
            values = network.forward(ball.box(x), rounding=_mode(self.outward))
            classes = values[-1].shape[1]
            if spec is None:
                rows = torch.eye(classes, dtype=x.dtype, device=x.device).expand(len(x), classes, classes)
            else:
                check_spec(spec, x, classes)
                rows = spec
            relaxation = Relaxation(network, values, memory=self.memory, support=_support(ball, x))
            found = relaxation.bounds(len(values) - 1, rows)
            before = _last(network, _before_last(network, values), rows)
            return _uncrossed(found, before, before, values)

    def propagate_lower(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"],
    ) -> Float[Tensor, "batch rows"]:
        with rounding.outward(self.outward):
            network = trace(model, x)
            values = network.forward(ball.box(x), rounding=_mode(self.outward))
            check_spec(spec, x, values[-1].shape[1])
            relaxation = Relaxation(network, values, memory=self.memory, support=_support(ball, x))
            low = relaxation.lower(len(values) - 1, spec)
            before = _last(network, _before_last(network, values), spec)
            return _uncrossed(Interval(low, low), before, before, values).lower


@of_the_engine
@dataclass(frozen=True, kw_only=True)
class AlphaCROWN(_OfTheEngine):
    """CROWN with the slopes of piecewise linear activations optimised, for each bound of each neuron on its own.

    `steps` of projected Adam are made, the first of about `learning_rate` and each of `decay` of the one before, for
    the bounds of the specification, and two thirds as many for those of every layer's unstable neurons; a certificate
    stops as soon as all margins are positive. Without a `decay` the last step is a seventh of the first, however many
    they are. Never looser than `interval:crown`, and sound for any slopes, however good the search was. Sound for every
    ball: slopes are searched for over the smallest box around it. Differentiable, with the slopes as constants.

    `memory` is the number of bytes for the coefficients of one layer and of one chunk of rows. A network whose layers
    do not fit has the slopes of the specification optimised alone, on CROWN's bounds of the layers. `outward` is as for
    `interval:crown`: slopes are searched for as without it, and the bounds that they give are evaluated again, rounded
    outward.

    Xu et al. 2021, "Fast and complete: enabling complete neural network verification with rapid and massively
    parallel incomplete verifiers".
    """

    steps: int = 12
    learning_rate: float = 0.5
    decay: float | None = None
    memory: int = MEMORY

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_memory(self.memory)
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise ArgumentError(
                "steps", self.steps, accepted="an integer of at least 1", hint="For no steps, use interval:crown."
            )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ArgumentError(
                "learning_rate", self.learning_rate, accepted="a finite number > 0", hint="0.5 suits slopes in [0, 1]."
            )
        if self.decay is not None and not 0 < self.decay <= 1:
            accepted = "a number in (0, 1], or None"
            raise ArgumentError("decay", self.decay, accepted=accepted, hint="1 keeps the step size.")

    def propagate(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"] | None,
    ) -> Interval:
        return self._optimised(model, x, ball, spec)

    def propagate_lower(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"],
    ) -> Float[Tensor, "batch rows"]:
        return self._optimised(model, x, ball, spec, upper=False).lower

    def propagate_decision(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"],
    ) -> Interval:
        return self._optimised(model, x, ball, spec, upper=False, decide=True)

    def _optimised(
        self, model: nn.Module, x: Tensor, ball: Ball, spec: Tensor | None, *, upper: bool = True, decide: bool = False
    ) -> Interval:
        with rounding.outward(self.outward):
            return self._found(model, x, ball, spec, upper, decide)

    def _found(
        self, model: nn.Module, x: Tensor, ball: Ball, spec: Tensor | None, upper: bool, decide: bool
    ) -> Interval:
        network = trace(model, x)
        support = _support(ball, x)
        values = crown(network, ball.box(x), memory=self.memory, support=support, entries="bent")
        if spec is None:
            known, classes = values[-1], values[-1].shape[1]
            spec = torch.eye(classes, dtype=x.dtype, device=x.device).expand(len(x), classes, classes)
        else:
            check_spec(spec, x, values[-1].shape[1])
            relaxation = Relaxation(network, values, memory=self.memory, support=support)
            last = len(values) - 1
            before = _last(network, _before_last(network, values), spec)
            if upper:
                known = relaxation.bounds(last, spec).agreeing(before)
            else:
                low = torch.maximum(relaxation.lower(last, spec), before.lower)
                known = _uncrossed(Interval(low, before.upper), before, before, values)
        decay = LAST ** (1 / self.steps) if self.decay is None else self.decay
        ascent = Ascent(steps=self.steps, learning_rate=self.learning_rate, decay=decay)
        found = optimised(network, values, known, spec, ascent=ascent, memory=self.memory, upper=upper, decide=decide)
        clean = network.forward(Interval.point(x))
        before, inside = (_last(network, _before_last(network, v), spec) for v in (values, clean))
        return _uncrossed(found, before, inside, values)


def _support(ball: Ball, x: Tensor) -> Support | None:
    """Says what is known of the ball besides its box, where nothing is rounded outward."""
    return None if rounding.active() else ball.support(x)


def _uncrossed(found: Interval, before: Interval, inside: Interval, values: Sequence[Interval]) -> Interval:
    """`found`; where rounding makes it cross, or miss `inside`, interval propagation's `before`, widened by the gap.

    The values inside the network are then so large that their rounding exceeds what linear relaxation gains, as for
    scores that share a large number. What that does not explain stays as it is, and is an error.
    """
    if rounding.active():
        return found
    gap = torch.maximum(found.lower - torch.minimum(found.upper, inside.upper), inside.lower - found.upper)
    if not bool((gap > 0).any()):
        return found
    size = max(float(v.magnitude.detach().max()) for v in values if v.lower.numel())
    apart = (gap > 0) & (gap <= ROUNDINGS * torch.finfo(gap.dtype).eps * size)
    return Interval(
        torch.where(apart, before.lower - gap, found.lower), torch.where(apart, before.upper + gap, found.upper)
    )


def _check_memory(memory: int) -> None:
    if not isinstance(memory, int) or isinstance(memory, bool) or memory < 1:
        raise ArgumentError("memory", memory, accepted="a whole number of bytes", hint=f"The default is {MEMORY}.")


def _last(network: Network, before: Interval, spec: Tensor | None) -> Interval:
    """The output's interval times `spec`, merged into the last layer where that is linear.

    `before` is the interval of the input of the last layer where it is merged with `spec`, else of the output.
    """
    if spec is None:
        return before
    if not _merges(network):
        check_spec(spec, before.lower, before.shape[1])
        return apply_spec(before, spec)
    weight, bias = (network.parameters[-1][name] for name in ("weight", "bias"))
    assert weight is not None  # every Linear has one
    check_spec(spec, before.lower, len(weight))
    rows = Interval.point(spec)
    y = _labels(spec)
    if y is not None and weight.is_point and not rounding.active():
        return _margins(before, weight.lower, None if bias is None else bias.lower, y)
    merged = product(torch.matmul, rows, weight, terms=spec.shape[2])
    shift = None if bias is None else product(lambda s, b: (s * b).sum(-1), rows, bias, terms=spec.shape[2])
    found = product(lambda h, w: torch.einsum("bi,bri->br", h, w), before, merged, terms=weight.shape[1], bias=shift)
    if not rounding.active():
        return found
    # The network adds up its logits before they are subtracted, so that its rounding errors are those of the logits.
    size = before.magnitude @ weight.magnitude.mT + (0.0 if bias is None else bias.magnitude)
    slack = rounding.kappa(weight.shape[1], found.dtype) * (spec.abs() @ size.unsqueeze(2)).squeeze(2)
    return Interval(found.lower - slack, found.upper + slack)


def _before_last(network: Network, values: Sequence[Interval]) -> Interval:
    """Prepares what `_last` takes."""
    return values[network.nodes[-1].inputs[0]] if _merges(network) else values[-1]


def _labels(spec: Tensor) -> Tensor | None:
    """The classes whose margins, in the order of `rp.margin_spec`, are the rows of `spec`; None where they are not."""
    classes = spec.shape[2]
    if spec.shape[1] != classes - 1:
        return None
    y = spec.sum(1).argmax(1)
    return y if torch.equal(spec, margin_spec(y, classes, dtype=spec.dtype)) else None


def _margins(before: Interval, weight: Tensor, bias: Tensor | None, y: Tensor) -> Interval:
    """Bounds margins as `_last` does: the differences of two rows of weights are few, and shared by the whole batch."""
    pairs, place, others = _pairs(len(weight), weight.device)
    differences = (weight.index_select(0, pairs[0]) - weight.index_select(0, pairs[1])).abs()
    center = torch.lerp(before.lower, before.upper, 0.5)
    logits = F.linear(center, weight, bias)
    spread = F.linear(before.upper - center, differences)
    middle = logits.gather(1, y.unsqueeze(1)) - logits.gather(1, others[y])
    radius = spread.gather(1, place[y])
    return Interval(middle - radius, middle + radius)


@lru_cache(maxsize=8)
def _pairs(classes: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs a < b of classes; for each class all others; and for each of these which pair the two are."""
    with torch.inference_mode(False):  # kept for callers that differentiate
        pairs = torch.triu_indices(classes, classes, 1, device=device)
        place = torch.zeros((classes, classes), dtype=torch.long, device=device)
        place[pairs[0], pairs[1]] = place[pairs[1], pairs[0]] = torch.arange(pairs.shape[1], device=device)
        every = torch.arange(classes, device=device)
        others = every.expand(classes, classes)[every != every.unsqueeze(1)].view(classes, classes - 1)
        return pairs, place.gather(1, others), others


def _merges(network: Network) -> bool:
    return isinstance(network.layers[-1], nn.Linear)


def _mode(outward: bool) -> Rounding:
    return "outward" if outward else "nearest"


@hookimpl
def register_certifiers(register: Register) -> None:
    """Registers the certifiers of the interval engine."""
    register("interval:ibp", IBP)
    register("interval:crown-ibp", CROWNIBP)
    register("interval:crown", CROWN)
    register("interval:alpha-crown", AlphaCROWN)
