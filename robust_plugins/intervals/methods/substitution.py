"""`Substitution`: what each node of a network is replaced by, where coefficients of its output are sent back.

An affine layer by its backward rule and the constant part of its output, a nonlinear one by the lines of its
relaxation, the lower line where a coefficient is positive and the upper one where it is negative; the input by its
extreme values. With outward rounding each of them pays for the errors of what is computed there (see `Reach`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.methods.coefficients import (
    Coefficients,
    Substituted,
    each,
    lower_sum,
    parts,
    upper_sum,
)
from robust_plugins.intervals.methods.reach import ARRIVING, Reach, arriving, dot, reach_of_affine, refusal, terms_of
from robust_plugins.intervals.methods.window_steps import WindowSteps
from robust_plugins.intervals.network.graph import Network
from robust_plugins.intervals.rules.registry import LinearBound

Support = Callable[[Tensor], Tensor]


class Substitution:
    """The replacements of a network's nodes over a box, from intervals of the nodes' outputs.

    The arguments are those of `Relaxation`.
    """

    def __init__(self, network: Network, values: Sequence[Interval], support: Support | None) -> None:
        self.network, self.values, self.support = network, values, support
        self.once = False
        """Whether upper bounds take the coefficients of the lower ones while both are the same, see `apart`."""
        self.steps = WindowSteps(network, values, self._reach, self._lines, self.apart)
        self._gaps: dict[int, Tensor | None] = {}
        self._reaches: dict[int, Reach] = {}
        self._bounds: dict[int, tuple[LinearBound, LinearBound] | None] = {}

    def substituted(
        self,
        node: int,
        lower: Float[Tensor, "..."] | None,
        upper: Float[Tensor, "..."] | None,
    ) -> Substituted:
        """A linear combination of `node`'s output, bounded by one of the outputs of the nodes that it takes.

        `lower` are its coefficients in a lower bound, (batch or 1, rows, *output), `upper` those in an upper bound;
        None where that is not wanted. One tensor for both costs one pass through an affine layer.
        """
        if self.network.rules[node].affine and self.network.rules[node].backward is not None:
            reach = self._reach(node)
            numbers = None if lower is None else reach.least(lower), None if upper is None else reach.most(upper)
            with rounding.outward(False):  # its errors are in the reach
                return Substituted(*numbers, self._through_affine(node, lower, upper))
        lines = self._lines(node)
        if lines is None:
            reach = self._constant(node)
            return Substituted(
                None if lower is None else reach.least(lower), None if upper is None else reach.most(upper), []
            )
        under, over = lines
        if lower is upper and lower is not None and (gap := self.apart(node)) is not None:
            positive, negative = parts(lower)
            first, second, terms = dot(positive, under.offset), dot(negative, over.offset), under.offset[0].numel()
            most = upper_sum(upper_sum(first, second, terms), dot(lower.abs(), gap), terms)
            same = each(under.transpose(positive), over.transpose(negative))
            return Substituted(lower_sum(first, second, terms), most, [(t, t) for t in same])
        low = up = None
        below: list[Tensor | None] = [None] * len(self.network.nodes[node].inputs)
        above = list(below)
        if lower is not None:
            positive, negative = parts(lower)
            low = lower_sum(dot(positive, under.offset), dot(negative, over.offset), under.offset[0].numel())
            below = each(under.transpose(positive), over.transpose(negative))
        if upper is not None:
            positive, negative = parts(upper)
            up = upper_sum(dot(positive, over.offset), dot(negative, under.offset), under.offset[0].numel())
            above = each(over.transpose(positive), under.transpose(negative))
        return Substituted(low, up, list(zip(below, above, strict=True)))

    def apart(self, node: int) -> Float[Tensor, "batch *shape"] | None:
        """The most that a node's lines are apart, where one set of coefficients serves both ends, else None.

        A lower bound takes the lower line for positive coefficients a and the upper one for negative ones; with `|a|`
        times this added, what it takes is an upper bound too.
        """
        if not self.once:
            return None
        if node not in self._gaps:
            lines, z = self._lines(node), self.values[self.network.nodes[node].inputs[0]]
            self._gaps[node] = None if lines is None else _gap(*lines, z)
        return self._gaps[node]

    def over_inputs(
        self, lower: Float[Tensor, "..."] | None, upper: Float[Tensor, "..."] | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The least value over all inputs of a combination with coefficients `lower`, and the largest with `upper`."""
        least = None if lower is None else self._input_least(lower)
        return least, None if upper is None else -self._input_least(-upper)

    def _input_least(self, a: Tensor) -> Tensor:
        least = self._constant(0).least(a)
        return least if self.support is None else torch.maximum(least, self.support(a))

    def errors(self, node: int, pair: Coefficients) -> tuple[Tensor | None, Tensor | None]:
        """The errors of a node's coefficients, times its values: paid where others are added to them.

        None where nothing is rounded outward.
        """
        if not rounding.active():
            return None, None
        size = arriving(self.values[node])
        lower, upper = (None if a is None else dot(a.abs(), size) for a in pair)
        return lower, upper

    def _constant(self, node: int) -> Reach:
        """The reach of a node's values: the input's, or of one that has no lines."""
        if -1 - node not in self._reaches:
            self._reaches[-1 - node] = Reach.of(self.values[node])
        return self._reaches[-1 - node]

    def _through_affine(self, index: int, a: Tensor | None, b: Tensor | None) -> list[Coefficients]:
        """The layer's backward rule, applied to point gradients, one for each row."""
        network = self.network
        given = [t for t in ((a,) if a is b else (a, b)) if t is not None]
        both = given[0] if len(given) == 1 else torch.cat(given, 1)
        rule = network.rules[index].backward
        assert rule is not None
        inputs = [self.values[j] for j in network.nodes[index].inputs]
        flat = Interval.point(both.flatten(0, 1))
        below = rule(network.layers[index], *inputs, flat, **self.steps.centers(index))
        found: list[Coefficients] = []
        for part in below if isinstance(below, tuple) else (below,):
            t = part.lower.view(len(both), both.shape[1], *part.shape[1:])
            if len(given) == 1:
                found.append((None if a is None else t, None if b is None else t))
            else:
                found.append((t[:, : given[0].shape[1]], t[:, given[0].shape[1] :]))
        return found

    def _reach(self, index: int) -> Reach:
        """The reach of an affine layer's output for input zero, and of what its weights' intervals add; see `Reach`."""
        if index not in self._reaches:
            network = self.network
            rule, layer = network.rules[index].forward, network.layers[index]
            assert rule is not None
            inputs = [self.values[j] for j in network.nodes[index].inputs]
            zeros = [Interval.point(torch.zeros_like(i.lower[:1])) for i in inputs]
            offset = rule(layer, *zeros, **self.steps.centers(index))
            parameters = network.parameters[index]
            if network.rules[index].additive:
                offset = rule(layer, *zeros, **parameters)
            elif any(p is not None and not p.is_point for p in parameters.values()):
                deviations = {k: None if p is None else deviation(p) for k, p in parameters.items()}
                offset = offset + rule(layer, *inputs, **deviations)
            self._reaches[index] = reach_of_affine(network, index, inputs, offset)
        return self._reaches[index]

    def _lines(self, index: int) -> tuple[LinearBound, LinearBound] | None:
        if index not in self._bounds:
            rule = self.network.rules[index].relaxation
            inputs = [self.values[j] for j in self.network.nodes[index].inputs]
            found = None if rule is None else self.network.applied(index, rule, *inputs)
            if found is not None and rounding.active():
                found = self._with_room(index, found)
            self._bounds[index] = found
        return self._bounds[index]

    def _with_room(self, index: int, lines: tuple[LinearBound, LinearBound]) -> tuple[LinearBound, LinearBound]:
        """Lines that hold outward, moved apart by the errors of products with their offsets.

        Those through the origin stay there, as a ReLU's lower one, and leave the errors of the coefficients that they
        send on to the node before them; where that does not pay for these, they do.
        """
        if not self.network.rules[index].outward:
            raise refusal(self.network, index, "has lines that are not rounded outward")
        under, over = lines
        (source, *others) = self.network.nodes[index].inputs
        dtype = under.offset.dtype
        once, errors = rounding.once(under.offset[0].numel(), dtype), torch.zeros_like(under.offset)
        if under.slope is not None and over.slope is not None and not others and not self._settles(source):
            with torch.no_grad():
                errors = (under.slope.abs() + over.slope.abs()) * arriving(self.values[source])

        def room(offset: Tensor) -> Tensor:
            return (once * offset.abs() + errors).detach()

        return (
            replace(under, offset=under.offset - room(under.offset)),
            replace(over, offset=over.offset + room(over.offset)),
        )

    def _settles(self, node: int) -> bool:
        """Whether a node pays for errors of coefficients that arrive; one that moves entries leaves it to others."""
        if node == 0:
            return True
        rules, sources = self.network.rules[node], self.network.nodes[node].inputs
        if not rules.affine or rules.backward is None:
            return False
        if terms_of(self.network, node, [self.values[j] for j in sources]) != (0, 0):
            return True
        return all(self._settles(j) for j in sources)


def _gap(under: LinearBound, over: LinearBound, z: Interval) -> Tensor | None:
    """The most that two lines are apart on an interval, with room for errors of what is computed with it."""
    if under.slope is None or over.slope is None:
        return None
    rise = over.slope - under.slope
    found = (over.offset - under.offset + torch.maximum(rise * z.lower, rise * z.upper)).clamp(min=0)
    if not rounding.active():
        return found
    terms = found[0].numel() + ARRIVING
    size = (under.slope.abs() + over.slope.abs()) * z.magnitude + under.offset.abs() + over.offset.abs()
    return found + 2 * rounding.once(terms, found.dtype) * size + rounding.underflow(terms, found.dtype)


def deviation(p: Interval) -> Interval:
    """The interval less its center: what it adds to the center's part."""
    return Interval.point(torch.zeros_like(p.lower)) if p.is_point else p - p.center
