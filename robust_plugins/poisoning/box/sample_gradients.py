"""Bounds on every sample's gradient by the parameters, over intervals of the parameters and the sample's poison set.

Sosnin et al. 2024, "Certified robustness to data poisoning in gradient-based training", section 4: one interval pass
forward and one backward. Tighter than there: products are exact; the softmax is bounded through the differences of the
logits, each bounded as one row of the last layer; the gradient below the last layer is `sum_c (W_c - W_y) p_c`, in
which the label's own term cancels; and over a poison set the network's dependence on the moved input is kept by linear
relaxation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.intervals import Interval, Network, Relaxation, crown, rounding
from robust_plugins.intervals.methods.affine_forms import Form, Norm, affine_forms, through_affine
from robust_plugins.intervals.methods.substitution import Support
from robust_plugins.intervals.products import total
from robust_plugins.poisoning.box import logit_differences
from robust_plugins.poisoning.box.logit_differences import (
    antisymmetric,
    below_last,
    last_linear,
    pairs,
    with_cancellation,
)
from robust_plugins.poisoning.box.sums.per_sample import Dense, Outer, PerSample
from robust_plugins.poisoning.concrete.losses import Objective

PAIRS = 2**25
"""The most logit differences that are bounded for a batch; with more the logits alone are."""

MEMORY = 2**28
"""Bytes for the affine forms of a part of a batch."""

RELAXED = 2**34
"""The most multiplications that affine forms of a batch may take for "auto" to use them."""

Dependence = Literal["none", "affine", "crown"]
"""How the dependence on moved inputs is kept: not at all, by affine forms, or by backward linear relaxation."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs that a pass starts from: a box of features for every sample, and perhaps a smaller set in it.

    The smaller set is a ball around `center` in `norm`, of radius 1 in units of `radius`, (batch or 1, *features).
    """

    box: Interval
    relaxation: Dependence = "none"
    center: Tensor | None = None
    radius: Tensor | None = None
    norm: Norm = "linf"

    def __getitem__(self, samples: slice) -> Inputs:
        """A slice of the batch."""
        center = None if self.center is None else self.center[samples]
        radius = self.radius if self.radius is None or len(self.radius) == 1 else self.radius[samples]
        return Inputs(self.box[samples], self.relaxation, center, radius, self.norm)

    @property
    def support(self) -> Support | None:
        """The least `a x` over the smaller set, by the dual norm; None where the box is the set."""
        if self.center is None or self.radius is None or self.norm == "linf":
            return None
        x, radius, norm = self.center.flatten(1).unsqueeze(2), self.radius.flatten(1).unsqueeze(1), self.norm

        def least(a: Tensor) -> Tensor:
            flat = a.flatten(2)
            scaled = flat * radius
            dual = scaled.norm(dim=2) if norm == "l2" else scaled.abs().amax(2)
            return torch.matmul(flat, x).squeeze(2) - dual

        return least

    def form(self) -> tuple[Tensor, Tensor]:
        """Center and generators of the set, one direction for each feature that moves."""
        center = self.box.center if self.center is None else self.center
        radius = self.box.radius if self.radius is None else self.radius
        flat = radius.flatten(1)
        moving = (flat > 0).any(0).nonzero().flatten()
        generators = flat.new_zeros((len(flat), max(len(moving), 1), flat.shape[1]))
        generators[:, torch.arange(len(moving), device=flat.device), moving] = flat[:, moving]
        return center, generators.view(len(flat), -1, *radius.shape[1:])


@dataclass(frozen=True, eq=False)
class Forward:
    """Intervals of every node's output, and of the differences of the logits where these are known."""

    network: Network
    values: list[Interval]
    differences: Interval | None
    """`z_j - z_i` at [batch, i, j]."""

    @property
    def outputs(self) -> Interval:
        """The outputs of the last node."""
        return self.values[-1]


def forward(network: Network, inputs: Inputs, *, differing: bool, memory: int = MEMORY) -> Forward:
    """Bounds on the outputs; with `differing` also on their differences, as for a softmax.

    Affine forms are made for as many samples at a time as `memory`, in bytes, has room for.
    """
    samples = len(inputs.box)
    step = _samples_at_once(network, inputs, memory) if inputs.relaxation == "affine" and samples else samples
    if step >= samples:
        return _forward(network, inputs, differing)
    parts = [_forward(network, inputs[s : s + step], differing) for s in range(0, samples, step)]
    values = [_joined_samples(v) for v in zip(*(p.values for p in parts), strict=True)]
    differences = [p.differences for p in parts if p.differences is not None]
    return Forward(network, values, _joined_samples(differences) if len(differences) == len(parts) else None)


def _samples_at_once(network: Network, inputs: Inputs, memory: int) -> int:
    entries = sum(v.lower[0].numel() for v in network.forward(inputs.box[:1]))
    return max(1, memory // (2 * inputs.form()[1].shape[1] * entries * inputs.box.lower.element_size()))


def _joined_samples(parts: Sequence[Interval]) -> Interval:
    low = torch.cat([p.lower for p in parts])
    return Interval(low, low if all(p.is_point for p in parts) else torch.cat([p.upper for p in parts]))


def _forward(network: Network, inputs: Inputs, differing: bool) -> Forward:
    kind: Dependence = "none" if inputs.box.is_point or rounding.active() else inputs.relaxation
    forms = None
    if kind == "crown":
        values = crown(network, inputs.box, support=inputs.support)
    elif kind == "affine":
        center, generators = inputs.form()
        values, forms = affine_forms(network, center, generators, norm=inputs.norm, box=inputs.box)
    else:
        values = network.forward(inputs.box)
    outputs = values[-1]
    if not differing or outputs.lower.dim() != 2 or outputs.shape[0] * outputs.shape[1] ** 2 > PAIRS:
        return Forward(network, values, None)
    differences = logit_differences.of(network, values)
    spec, (i, j) = pairs(outputs.lower)
    found = None
    if kind == "crown":
        found = Relaxation(network, values, support=inputs.support).bounds(len(values) - 1, spec.unsqueeze(0))
    elif forms is not None:
        found = _form_of_differences(network, values, forms, i, j).interval()
    if found is not None:
        differences = differences.sharpened(antisymmetric(found, i, j, outputs.shape[1]))
    return Forward(network, values, differences)


def _form_of_differences(network: Network, values: list[Interval], forms: list[Form], i: Tensor, j: Tensor) -> Form:
    """The affine form of all `z_j - z_i`: of the rows' differences where the last layer is linear."""
    last = last_linear(network)
    if last is None:
        z = forms[-1]
        return Form(z.center[:, j] - z.center[:, i], z.generators[:, :, j] - z.generators[:, :, i],
                    z.remainder[:, j] + z.remainder[:, i], z.norm)  # fmt: skip
    weight, bias = last
    before = network.nodes[-1].inputs[0]
    rows = {"weight": weight[j] - weight[i], "bias": None if bias is None else bias[j] - bias[i]}
    return through_affine(network.rules[-1], network.layers[-1], [values[before]], [forms[before]], rows)


@dataclass(frozen=True, eq=False)
class Pass:
    """Intervals of every sample's dL/d node, from which those of the parameters follow."""

    forward: Forward
    nodes: tuple[Interval | None, ...]
    trained: frozenset[str]
    clip: float | None = None
    scale: Interval | None = field(default=None)

    def gradients(self) -> dict[str, PerSample]:
        """Every trained parameter's gradients, one for each sample; clipped where that is set."""
        found: dict[str, list[PerSample]] = {}
        for index, local, name in self._places():
            found.setdefault(name, []).append(self._at(index, local))
        return {name: _clipped(_joined(parts), self.scale, self.clip) for name, parts in found.items()}

    def sums(self) -> dict[str, Interval]:
        """Every trained parameter's gradient summed over the batch, by products of matrices; for passes not clipped."""
        network, values = self.forward.network, self.forward.values
        found: dict[str, Interval] = {}
        for index in {index: None for index, _, _ in self._places()}:
            node, grad = network.nodes[index], self.nodes[index]
            rule = network.rules[index].weights
            assert grad is not None
            assert rule is not None
            inputs = [values[j] for j in node.inputs]
            for local, value in rule(
                network.layers[index], *inputs, grad, summed=True, **network.parameters[index]
            ).items():
                name = network.names[index].get(local)
                if name in self.trained:
                    found[name] = found[name] + value if name in found else value
        return found

    def _places(self) -> list[tuple[int, str, str]]:
        names = enumerate(self.forward.network.names)
        return [(index, local, name) for index, named in names if self.nodes[index] is not None
                for local, name in named.items() if name in self.trained]  # fmt: skip

    def _at(self, index: int, local: str) -> PerSample:
        """The gradients of one layer's parameter."""
        network = self.forward.network
        layer, grad = network.layers[index], self.nodes[index]
        inputs = [self.forward.values[j] for j in network.nodes[index].inputs]
        assert grad is not None
        if network.rules[index].layer is nn.Linear and local == "weight" and grad.lower.dim() == 2:
            return Outer(grad, inputs[0])
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) and local == "bias":
            axes = tuple(range(1, grad.lower.dim() - 1) if isinstance(layer, nn.Linear) else range(2, grad.lower.dim()))
            return Dense.stored(total(grad, axes))
        rule: Callable[..., dict[str, Interval]] | None = network.rules[index].weights
        assert rule is not None
        parameters = network.parameters[index]
        parameter = parameters[local]
        assert parameter is not None

        def values(samples: slice) -> Interval:
            here = [i[samples] for i in inputs]
            return rule(layer, *here, grad[samples], summed=False, **parameters)[local]

        return Dense(values, len(grad), parameter.shape)


def backward(
    found: Forward,
    labels: Sequence[Tensor | Interval],
    objective: Objective,
    trained: Iterable[str],
    *,
    first: int,
    clip: float | None = None,
    norm: float | None = None,
) -> Pass:
    """Each sample's gradients for any of the `labels`, from a forward pass; `first` is the first trained node.

    `clip` cuts every entry to [-clip, clip]; `norm` scales a sample's gradient down to that norm.
    """
    network, z = found.network, found.outputs
    deltas, below = [], []
    for y in labels:
        deltas.append(objective.gradient(z, y, found.differences))
        if found.differences is not None and isinstance(y, Tensor) and len(network.nodes) - 1 > first:
            below.append(below_last(network, deltas[-1], y))
    known = {}
    if below and all(b is not None for b in below):
        known[network.nodes[-1].inputs[0]] = with_cancellation(_hull([b for b in below if b is not None]), network)
    nodes = network.backward(found.values, _hull(deltas), known=known, until=first).nodes
    result = Pass(found, nodes, frozenset(trained), clip=clip)
    return result if norm is None else replace(result, scale=_scale(result.gradients().values(), norm), clip=norm)


def arithmetic(mode: Literal["nearest", "outward"]) -> AbstractContextManager[None]:
    """Rounds outward inside the block where the mode says so."""
    return rounding.outward(mode == "outward")


def affordable(network: Network, x: Float[Tensor, "batch *features"], directions: int) -> Dependence:
    """Resolves "auto": "affine" where affine forms of that many directions take few multiplications for a batch x."""
    values = network.forward(Interval.point(x[:1]))
    cost, shared = 0, True
    for index in range(1, len(values)):
        # Up to the first nonlinear layer all samples share their generators.
        shared = shared and network.rules[index].affine
        weight = network.parameters[index].get("weight")
        if not shared and weight is not None and weight.lower.dim() > 1:
            cost += values[index].lower[0].numel() * weight.lower[0].numel()
    return "affine" if len(x) * directions * cost <= RELAXED else "none"


def _hull(intervals: Sequence[Interval]) -> Interval:
    result = intervals[0]
    for other in intervals[1:]:
        result = result.hull(other)
    return result


def _joined(parts: list[PerSample]) -> PerSample:
    """The sum of the gradients at all places where the model uses one parameter."""
    if len(parts) == 1:
        return parts[0]

    def values(samples: slice) -> Interval:
        result = parts[0].chunk(samples)
        for part in parts[1:]:
            result = result + part.chunk(samples)
        return result

    return Dense(values, parts[0].batch, parts[0].shape)


def _clipped(g: PerSample, scale: Interval | None, clip: float | None) -> PerSample:
    assert isinstance(g, Outer | Dense)
    return g if scale is None and clip is None else replace(g, scale=scale, clip=clip)


def _scale(gradients: Iterable[PerSample], norm: float) -> Interval:
    """`min(1, norm / ||g||)` of each sample, from the interval of its gradient's norm."""
    low: Tensor | None = None
    up: Tensor | None = None
    terms = 16
    for g in gradients:
        terms += g.shape.numel()
        if isinstance(g, Outer):  # the norm of an outer product is the product of the norms
            least, most = (a * b for a, b in zip(_squares(g.delta), _squares(g.activation), strict=True))
        else:
            step = max(1, 2**24 // max(1, g.shape.numel()))
            parts = [_squares(g.chunk(slice(s, s + step))) for s in range(0, max(g.batch, 1), step)]
            least, most = (torch.cat(p) for p in zip(*parts, strict=True))
        low, up = (least, most) if low is None or up is None else (low + least, up + most)
    assert low is not None
    assert up is not None
    low, up = low.sqrt(), up.sqrt()
    scale = Interval(norm / up.clamp(min=norm), norm / low.clamp(min=norm))
    # Two long sums and two roots: their relative errors are those of the number of terms at most.
    return Interval(*rounding.widened(scale.lower, scale.upper, ulps=4.0 * terms))


def _squares(g: Interval) -> tuple[Tensor, Tensor]:
    """The ends of the sum of squares of each sample's entries."""
    least = torch.where((g.lower <= 0) & (g.upper >= 0), 0, torch.minimum(g.lower.abs(), g.upper.abs()))
    flat = len(g), g.shape[1:].numel()
    return least.reshape(flat).square().sum(1), g.magnitude.reshape(flat).square().sum(1)
