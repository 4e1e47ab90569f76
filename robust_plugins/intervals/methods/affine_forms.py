"""Forward propagation that keeps the dependence on the input: every value as an affine form of where the input moved.

A value is `c + G xi +- r`: its center, its linear dependence on the position xi of the input in its set (a ball of
radius 1 in l-infinity, l2 or l1), and a remainder for all else: nonlinearity, and intervals of the weights. Singh et
al. 2018, "Fast and effective robustness certification" (DeepZ), but for the remainders, which are boxes. Costs one
pass for each entry of xi, whatever the number of units, where `crown` costs one for each unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.methods.substitution import deviation
from robust_plugins.intervals.network.graph import Network
from robust_plugins.intervals.rules.elementwise import Activation, activation_of
from robust_plugins.intervals.rules.registry import Rules

Norm = Literal["linf", "l2", "l1"]


@dataclass(frozen=True, eq=False)
class Form:
    """`center + sum_d generators_d xi_d +- remainder` for every sample, over `|xi| <= 1`."""

    center: Tensor
    """(batch, *shape)."""
    generators: Tensor
    """(batch, directions, *shape), or (1, ...) where all samples share them."""
    remainder: Tensor
    """(batch, *shape), not negative."""
    norm: Norm

    @property
    def radius(self) -> Tensor:
        """How far the value can be from its center: by the dual norm of each entry's generators."""
        if self.norm == "linf":
            dual = self.generators.abs().sum(1)
        elif self.norm == "l2":
            dual = self.generators.norm(dim=1)
        else:
            dual = self.generators.abs().amax(1)
        return dual + self.remainder

    def interval(self) -> Interval:
        """The smallest box around the value."""
        radius = self.radius
        return Interval(self.center - radius, self.center + radius)


def affine_forms(
    network: Network, center: Tensor, generators: Tensor, *, norm: Norm = "linf", box: Interval | None = None
) -> tuple[list[Interval], list[Form]]:
    """Intervals and affine forms of every node's output, for inputs `center + sum_d generators_d xi_d`, `|xi| <= 1`.

    `center` is (batch, *features), `generators` (batch or 1, directions, *features). The inputs also lie in `box`,
    where given. Intervals are those of interval propagation intersected with those of the forms. Sound over the
    intervals of the weights too. Not available with outward rounding.
    """
    if rounding.active():
        raise ArgumentError("rounding", "'outward'", accepted="'nearest' for affine forms", hint="Use Network.forward.")
    form = Form(center, generators, torch.zeros_like(center), norm)
    values = [form.interval() if box is None else form.interval().agreeing(box)]
    forms = [form]
    for index in range(1, len(network.nodes)):
        rules, layer, sources = network.rules[index], network.layers[index], network.nodes[index].inputs
        inputs, before = [values[j] for j in sources], [forms[j] for j in sources]
        value = network.step(index, values)
        activation = activation_of(layer)
        if rules.affine:
            form = through_affine(rules, layer, inputs, before, network.parameters[index])
        elif activation is not None and activation.relaxable:
            form = _through_activation(activation, inputs[0], before[0])
        else:
            form = Form(value.center, center.new_zeros((1, 1, *value.shape[1:])), value.radius, norm)
        values.append(value.agreeing(form.interval()))
        forms.append(form)
    return values, forms


def through_affine(
    rules: Rules,
    layer: object,
    inputs: list[Interval],
    before: list[Form],
    parameters: Mapping[str, Interval | None],
) -> Form:
    """A layer that is affine in its inputs: generators go through its linear part, weights' widths to the remainder."""
    rule = rules.forward
    assert rule is not None
    centers = {k: p if p is None or p.is_point else Interval.point(p.center) for k, p in parameters.items()}
    center = rule(layer, *[Interval.point(f.center) for f in before], **centers).lower
    zeros = [Interval.point(torch.zeros_like(f.center[:1])) for f in before]
    offset = rule(layer, *zeros, **centers).lower
    # Inputs that do not depend on the set carry one direction of zeros; the others all have the same number.
    count = max(f.generators.shape[1] for f in before)
    samples = max(len(f.generators) for f in before)
    stacked = [_padded(f.generators, samples, count) for f in before]
    flat = rule(layer, *[Interval.point(g.flatten(0, 1)) for g in stacked], **centers).lower - offset
    generators = flat.view(samples, count, *center.shape[1:])
    remainder = rule(layer, *[Interval(-f.remainder, f.remainder) for f in before], **centers).upper - offset
    if any(p is not None and not p.is_point for p in parameters.values()):
        deviations = {k: None if p is None else deviation(p) for k, p in parameters.items()}
        moved = rule(layer, *(zeros if rules.additive else inputs), **deviations)
        center, remainder = center + moved.center, remainder + moved.radius
    return Form(center, generators, remainder.clamp(min=0), before[0].norm)


def _through_activation(activation: Activation, z: Interval, before: Form) -> Form:
    """A line through the middle of the function, and the most that it is off."""
    slope, low, up = strip(activation, z)
    factor = slope.unsqueeze(1)
    center = slope * before.center + (low + up) / 2
    return Form(center, factor * before.generators, slope.abs() * before.remainder + (up - low) / 2, before.norm)


def strip(activation: Activation, z: Interval) -> tuple[Tensor, Tensor, Tensor]:
    """A slope a, and the ends of an interval that holds `f(t) - a t` for every t in z."""
    (low_slope, low), (up_slope, up) = activation.lines(z)
    convex = activation.shape == "convex"
    slope = up_slope if convex else (low_slope + up_slope) / 2
    lowest = torch.minimum((low_slope - slope) * z.lower, (low_slope - slope) * z.upper) + low
    highest = torch.maximum((up_slope - slope) * z.lower, (up_slope - slope) * z.upper) + up
    if convex:
        # Above both end tangents, whose maximum less a t is least where they meet: exact for one kink.
        a, b = z.lower, z.upper
        sa, sb = activation.slope(a), activation.slope(b)
        ta, tb = activation.f(a) - sa * a, activation.f(b) - sb * b
        apart = (sb - sa) > 1e-6
        meet = torch.where(apart, (ta - tb) / torch.where(apart, sb - sa, 1), a)
        meet = torch.minimum(torch.maximum(meet, a), b)
        lowest = torch.where(apart, torch.maximum(lowest, (sa - slope) * meet + ta), lowest)
    return slope, torch.minimum(lowest, highest), torch.maximum(lowest, highest)


def _padded(generators: Tensor, samples: int, count: int) -> Tensor:
    generators = generators.expand(samples, *generators.shape[1:])
    missing = count - generators.shape[1]
    if not missing:
        return generators
    return torch.cat([generators, generators.new_zeros((samples, missing, *generators.shape[2:]))], 1)
