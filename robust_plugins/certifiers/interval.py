"""The package's own certifiers: interval bound propagation and linear relaxation by the interval engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.errors import ArgumentError
from robust_plugins.hookspecs import Register, hookimpl
from robust_plugins.interfaces import Certifier
from robust_plugins.intervals import Interval, Network, Relaxation, crown, rounding, trace
from robust_plugins.intervals.graph import Rounding
from robust_plugins.intervals.products import product
from robust_plugins.intervals.relaxation import MEMORY
from robust_plugins.specifications import apply_spec, margin_spec


@dataclass(frozen=True, kw_only=True)
class IBP(Certifier):
    """Interval bound propagation, differentiable, the specification merged into the last linear layer.

    Gowal et al. 2018, "On the effectiveness of interval bound propagation". Sound for every ball, over the smallest
    box around it. With `outward`, for float32 and float64, the bounds also hold for the network's floating-point
    evaluation, in whichever order its sums run.
    """

    outward: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.outward:
            text = "floating-point arithmetic of the model's dtype, sums in any order, by outward rounding"
            object.__setattr__(self, "soundness", text)
            object.__setattr__(self, "rounding", 0.0)

    def propagate(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"] | None,
    ) -> Interval:
        with rounding.outward(self.outward):
            network = trace(model, x)
            until = None if spec is None or not _merges(network) else network.nodes[-1].inputs[0]
            values = network.forward(ball.bounds(x), rounding=_mode(self.outward), until=until)
            return _last(network, values, spec)


@dataclass(frozen=True, kw_only=True)
class CROWN(Certifier):
    """Backward linear relaxation of every activation's input and of the specification, differentiable.

    Zhang et al. 2018, "Efficient neural network robustness certification with general activation functions". Sound for
    every ball, over the smallest box around it. `memory` is the number of bytes for the coefficients of one chunk of
    neurons.
    """

    memory: int = MEMORY

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory < 1:
            raise ArgumentError("memory", self.memory, accepted="a number of bytes", hint=f"The default is {MEMORY}.")

    def propagate(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"] | None,
    ) -> Interval:
        network = trace(model, x)
        values = crown(network, ball.bounds(x), memory=self.memory)
        if spec is None:
            return values[-1]
        relaxed = Relaxation(network, values, memory=self.memory).bounds(len(values) - 1, spec)
        return relaxed.sharpened(_last(network, values, spec))


@dataclass(frozen=True, kw_only=True)
class CROWNIBP(Certifier):
    """One linear relaxation from the specification back to the input, on IBP's bounds of the layers, differentiable.

    Zhang et al. 2020, "Towards stable and efficient training of verifiably robust neural networks". Sound for every
    ball, over the smallest box around it. Much cheaper than CROWN where there are many neurons and few classes.
    """

    def propagate(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"] | None,
    ) -> Interval:
        network = trace(model, x)
        values = network.forward(ball.bounds(x))
        rows = spec
        if rows is None:
            classes = values[-1].shape[1]
            rows = torch.eye(classes, dtype=x.dtype, device=x.device).expand(len(x), classes, classes)
        return Relaxation(network, values, memory=MEMORY).bounds(len(values) - 1, rows)


def _last(network: Network, values: Sequence[Interval], spec: Tensor | None) -> Interval:
    """The output's interval times `spec`, merged into the last layer where that is linear."""
    if spec is None or not _merges(network):
        return apply_spec(values[-1], spec)
    weight, bias = (network.parameters[-1][name] for name in ("weight", "bias"))
    assert weight is not None  # every Linear has one
    before, rows = values[network.nodes[-1].inputs[0]], Interval.point(spec)
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


def _labels(spec: Tensor) -> Tensor | None:
    """The classes whose margins, in the order of `rp.margin_spec`, are the rows of `spec`; None where they are not."""
    classes = spec.shape[2]
    if spec.shape[1] != classes - 1:
        return None
    y = spec.sum(1).argmax(1)
    return y if torch.equal(spec, margin_spec(y, classes, dtype=spec.dtype)) else None


def _margins(before: Interval, weight: Tensor, bias: Tensor | None, y: Tensor) -> Interval:
    """As `_last`, for margins: the differences of two rows of weights are few, and shared by the whole batch."""
    classes = len(weight)
    first, second = torch.triu_indices(classes, classes, 1, device=weight.device)
    differences = weight[first] - weight[second]
    center = before.lower / 2 + before.upper / 2
    logits = F.linear(center, weight, bias)
    spread = F.linear((before.upper - before.lower) / 2, differences.abs())
    # Where the pair (a, b), in whichever order, is among the differences.
    place = torch.zeros((classes, classes), dtype=torch.long, device=weight.device)
    place[first, second] = place[second, first] = torch.arange(len(first), device=weight.device)
    others = torch.arange(classes, device=y.device).expand(len(y), classes)
    others = others[others != y.unsqueeze(1)].view(len(y), classes - 1)
    middle = logits.gather(1, y.unsqueeze(1)) - logits.gather(1, others)
    radius = spread.gather(1, place[y.unsqueeze(1), others])
    return Interval(middle - radius, middle + radius)


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
