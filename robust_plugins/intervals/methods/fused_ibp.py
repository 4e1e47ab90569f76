"""Interval propagation for training: a chain of affine layers and ReLUs as one step, forward and backward.

What `Network.forward` does layer by layer, written for speed: a new tensor of the size of an activation costs more
than what is computed with it. Between two affine layers a box is its centre c and its radius r, and all of

    C = c W^T + b, R = r |W|^T, low = max(C - R, 0), up = max(C + R, 0), c' = (low + up) / 2, r' = (up - low) / 2

happens in three tensors, which are used again; the gradients are those of these formulas, written by hand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.layers import Reshape, Scale, Shift
from robust_plugins.intervals.network.graph import Network
from robust_plugins.intervals.rules import structure

Pair = tuple[Tensor, Tensor]
"""Centre and radius, or the derivatives by them."""


def propagate(network: Network, x: Interval, *, until: int) -> Interval | None:
    """Computes what `network.forward(x, until=until)` has for its last node, up to rounding; None where it is no chain.

    A chain consists of linear layers, two-dimensional convolutions, ReLU and layers that only change the shape, with
    weights that are points; before its first affine layer come only constants that are added to inputs or multiplied
    with them, as in a normalisation, and then changes of shape. Outward rounding is left to
    `Network.forward`. Differentiable in `x` and the weights; again, too, which then goes layer by layer.
    """
    first = _after_normalisation(network)
    plan = None if rounding.active() or x.is_point else _plan(network, first, until)
    if plan is None:
        return None
    for index in range(1, first):
        x = network.step(index, [x] * index)
    center = torch.lerp(x.lower, x.upper, 0.5)
    return Interval(*_Chain.apply(plan, center, x.upper - center, *plan.parameters))


class _Affine(ABC):
    """An affine layer on centres and radii."""

    layer: Any

    def __init__(self, layer: nn.Module, weight: Tensor, bias: Tensor | None = None) -> None:
        self.layer = layer
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.size = self.weight.abs()

    @abstractmethod
    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with other parameters than its own."""

    def forward(self, c: Tensor, r: Tensor) -> Pair:
        """Centre and radius of the output, in tensors of their own."""
        return self.apply(c, self.weight, self.bias), self.apply(r, self.size, None)

    @abstractmethod
    def backward(
        self, c: Tensor, r: Tensor, to_c: Tensor, to_r: Tensor, *, below: bool
    ) -> tuple[Pair | None, list[Tensor]]:
        """From the derivatives by the output's centre and radius, those by the input's and by weight and bias."""


class _Linear(_Affine):
    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def backward(
        self, c: Tensor, r: Tensor, to_c: Tensor, to_r: Tensor, *, below: bool
    ) -> tuple[Pair | None, list[Tensor]]:
        found = (to_c @ self.weight, to_r @ self.size) if below else None
        to_c, to_r, c, r = (t.flatten(0, -2) for t in (to_c, to_r, c, r))
        weight = (to_r.t() @ r).mul_(self.weight.sign()).addmm_(to_c.t(), c)
        return found, [weight] if self.bias is None else [weight, to_c.sum(0)]


class _Convolution(_Affine):
    def __init__(self, layer: nn.Conv2d, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(layer, _pixelwise(weight.detach()), bias)

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = self.layer
        return F.conv2d(_pixelwise(x), weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    def backward(
        self, c: Tensor, r: Tensor, to_c: Tensor, to_r: Tensor, *, below: bool
    ) -> tuple[Pair | None, list[Tensor]]:
        by_c, weight, _ = self._derivatives(to_c, c, self.weight, below)
        by_r, size, _ = self._derivatives(to_r, r, self.size, below)
        weight += size * self.weight.sign()
        return (by_c, by_r) if below else None, [weight] if self.bias is None else [weight, to_c.sum((0, 2, 3))]

    def _derivatives(self, above: Tensor, x: Tensor, weight: Tensor, below: bool) -> Any:
        layer = self.layer
        return torch.ops.aten.convolution_backward(
            _pixelwise(above), _pixelwise(x), weight, None, layer.stride, layer.padding, layer.dilation,
            False, [0, 0], layer.groups, [below, True, False],
        )  # fmt: skip


_AFFINE: dict[type[nn.Module], type[_Affine]] = {nn.Linear: _Linear, nn.Conv2d: _Convolution}
_SHAPING = (nn.Flatten, nn.Unflatten, Reshape)


@dataclass
class _Link:
    """An affine layer, and what comes before the next one; ReLU and changes of shape commute."""

    affine: _Affine
    relu: bool = False
    shaping: list[nn.Module] = field(default_factory=list)


@dataclass(frozen=True)
class _Plan:
    shaping: Sequence[nn.Module]
    """What comes before the first link."""
    links: Sequence[_Link]
    parameters: Sequence[Tensor]
    """All weights and biases, as autograd knows them."""


@dataclass(frozen=True)
class _Kept:
    """A link as the backward pass needs it: its input, the shape of its output, and the input's lower end.

    That is given where the input is the image of a ReLU. The gate of its lower end is open where that is above zero,
    the gate of the upper one where the image's centre is.
    """

    c: Tensor
    r: Tensor
    shape: torch.Size
    low: Tensor | None


class _Chain(torch.autograd.Function):
    """From centre and radius of the input, and the parameters, to the ends of the output."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, center: Tensor, radius: Tensor, *parameters: Tensor) -> Pair:
        (lower, upper), kept = _forward(plan, center, radius)
        if any(ctx.needs_input_grad):
            ctx.plan, ctx.kept = plan, kept
            ctx.save_for_backward(center, radius, lower, upper, *parameters)
        return lower, upper

    @staticmethod
    def backward(ctx: Any, to_lower: Tensor, to_upper: Tensor) -> tuple[Tensor | None, ...]:
        center, radius, lower, upper, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *_differentiable(ctx.plan, (center, radius, *parameters), wanted, (to_lower, to_upper))
        to_ends = to_lower, to_upper
        if ctx.plan.links[-1].relu:
            to_ends = _gated(to_lower.clone(), lower), _gated(to_upper.clone(), upper)
        below = wanted[0] or wanted[1]
        to_input, gradients = _backward(ctx.plan, ctx.kept, to_ends, below=below)
        return None, *((None, None) if to_input is None else (t.reshape(center.shape) for t in to_input)), *gradients


def _forward(plan: _Plan, c: Tensor, r: Tensor) -> tuple[Pair, list[_Kept]]:
    """The ends of the output, and what the way back needs."""
    c, r = _shaped(plan.shaping, (c, r))
    low: Tensor | None = None
    kept = []
    for link in plan.links:
        center, radius = link.affine.forward(c, r)
        kept.append(_Kept(c, r, center.shape, low))
        if link is plan.links[-1]:
            lower = torch.sub(center, radius)
            upper = center.add_(radius)
            ends = (lower.clamp_(min=0), upper.clamp_(min=0)) if link.relu else (lower, upper)
            return _shaped(link.shaping, ends), kept
        c, r = _shaped(link.shaping, (center, radius))
        low, c, r = _relu(c, r) if link.relu else (None, c, r)
    raise AssertionError  # there is a link


def _backward(plan: _Plan, kept: Sequence[_Kept], to_ends: Pair, *, below: bool) -> tuple[Pair | None, list[Tensor]]:
    """From the derivatives by the ends of the last link's box: those by the input's, and by all parameters in order."""
    to: Pair | None = (to_ends[0] + to_ends[1], to_ends[1] - to_ends[0])
    gradients: list[Tensor] = []
    for index in range(len(kept) - 1, -1, -1):
        assert to is not None
        at, link = kept[index], plan.links[index]
        if index + 1 < len(kept) and link.relu:
            to = _relu_backward(kept[index + 1], *to)
        to, found = link.affine.backward(at.c, at.r, *(t.reshape(at.shape) for t in to), below=below or index > 0)
        gradients = found + gradients
    return to, gradients


def _relu(center: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The lower end, the centre and the radius of the box's image; the last two in the memory of the arguments."""
    low = torch.sub(center, radius).clamp_(min=0)
    up = center.add_(radius).clamp_(min=0)
    middle = torch.lerp(low, up, 0.5, out=radius)
    return low, middle, up.sub_(middle)


def _relu_backward(image: _Kept, to_c: Tensor, to_r: Tensor) -> Pair:
    """The derivatives by the box's centre and radius from those by its image's; in the memory of the latter."""
    assert image.low is not None  # a ReLU comes before it
    low = _gated(torch.sub(to_c, to_r), image.low)
    up = _gated(to_c.add_(to_r), image.c)
    middle = torch.lerp(low, up, 0.5, out=to_r)
    return middle, up.sub_(middle)


def _gated(gradient: Tensor, z: Tensor) -> Tensor:
    """`gradient` where z > 0, else 0; in place. A product with a mask takes ten times as long."""
    found: Tensor = torch.ops.aten.threshold_backward(gradient, z, 0, grad_input=gradient)
    return found


def _differentiable(
    plan: _Plan, inputs: Sequence[Tensor], wanted: Sequence[bool], to_ends: Pair
) -> list[Tensor | None]:
    """The gradients by centre, radius and parameters, by formulas that can be differentiated again."""
    c, r, *parameters = aliases = [t.view_as(t) for t in inputs]  # of which none depends on another
    given = iter(parameters)
    c, r = _shaped(plan.shaping, (c, r))
    for link in plan.links:
        weight, bias = next(given), None if link.affine.bias is None else next(given)
        center, radius = link.affine.apply(c, weight, bias), link.affine.apply(r, weight.abs(), None)
        low, up = center - radius, center + radius
        low, up = _shaped(link.shaping, (low.relu(), up.relu()) if link.relu else (low, up))
        c, r = (low + up) / 2, (up - low) / 2
    chosen = [t for t, w in zip(aliases, wanted, strict=True) if w]
    found = iter(torch.autograd.grad((low, up), chosen, to_ends, create_graph=True))
    return [next(found) if w else None for w in wanted]


def _after_normalisation(network: Network) -> int:
    """The first node that is no shift or scale of the inputs."""
    index = 1
    while (
        index < len(network.nodes)
        and type(network.layers[index]) in (Shift, Scale)
        and network.nodes[index].inputs == (index - 1,)
    ):
        index += 1
    return index


def _plan(network: Network, first: int, until: int) -> _Plan | None:
    """The layers from the first node on as links; None where there is one that fits nowhere."""
    start: list[nn.Module] = []
    links: list[_Link] = []
    parameters: list[Tensor] = []
    for index in range(first, until + 1):
        layer, rules = network.layers[index], network.rules[index]
        if network.nodes[index].inputs != (index - 1,) or rules.owner:
            return None
        if isinstance(layer, _SHAPING):
            (links[-1].shaping if links else start).append(layer)
        elif rules.layer is nn.ReLU and links:
            links[-1].relu = True
        elif rules.layer in _AFFINE and getattr(layer, "padding_mode", "zeros") == "zeros":
            weight, bias = network.parameters[index]["weight"], network.parameters[index]["bias"]
            if weight is None or not weight.is_point or not (bias is None or bias.is_point):
                return None
            if isinstance(getattr(layer, "padding", None), str):
                return None
            given = [i.lower for i in (weight, bias) if i is not None]
            links.append(_Link(_AFFINE[rules.layer](layer, *given)))
            parameters += given
        elif rules.forward is not structure.identity:
            return None
    return _Plan(start, links, parameters) if links else None


def _shaped(shaping: Sequence[nn.Module], pair: Pair) -> Pair:
    for layer in shaping:
        pair = layer.forward(pair[0]), layer.forward(pair[1])
    return pair


def _pixelwise(t: Tensor) -> Tensor:
    """On a CPU with the channels of each pixel side by side, for which its convolutions are several times quicker."""
    if t.device.type != "cpu" or t.dtype != torch.float32:
        return t
    if t.shape[1] == 1:  # torch takes such a tensor for one in its usual order, unless the strides say otherwise
        height, width = t.shape[2:]
        return t.contiguous().as_strided(t.shape, (height * width, 1, width, 1))
    return t.contiguous(memory_format=torch.channels_last)
