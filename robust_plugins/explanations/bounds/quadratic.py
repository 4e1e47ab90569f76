"""Second order: gradients as quadratic functions of the input, so that second-order terms of different units cancel.

Every quantity is `c + L d + Q(d, d) + E e`, with d in [-1, 1]^n the input's position in its box and e in [-1, 1]^m new
noise: what rounding a function to its parabola, and dropping terms of third order, leaves over. Affine layers act on
the four parts alike. Planes through single gates cannot do this; the price is n^2 coefficients for each unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod

import torch
from torch import Tensor

from robust_plugins.explanations.bounds.adjoint import Adjoint, turned
from robust_plugins.explanations.bounds.curvature import Smooth, smooth_of
from robust_plugins.intervals import Interval, Network

PIECES = 32
"""Pieces of an interval on which a parabola's distance to the function is measured."""


@dataclass(frozen=True, eq=False)
class Form:
    """Quadratic functions of the input, one for each entry of a layer's output."""

    center: Tensor
    """(batch, *shape)."""
    linear: Tensor | None = None
    """(batch, n, *shape)."""
    square: Tensor | None = None
    """(batch, n (n + 1) / 2, *shape): the coefficients of `d_k d_l` for k <= l, row by row."""
    noise: dict[int, Tensor] = field(default_factory=dict)
    """Coefficients of the noise, by its origin: (batch, units, *shape)."""

    def through(self, linear: Callable[[Tensor], Tensor], center: Tensor) -> Form:
        """The form of an affine layer's output: `linear` maps (batch, terms, *shape) without the layer's offset."""
        parts = {-2: self.linear, -1: self.square, **self.noise}
        present = {key: part for key, part in parts.items() if part is not None}
        if not present:
            return Form(center)
        joined = linear(torch.cat(list(present.values()), 1)).split([p.shape[1] for p in present.values()], 1)
        found = dict(zip(present, joined, strict=True))
        return Form(center, found.pop(-2, None), found.pop(-1, None), found)

    def __add__(self, other: Form) -> Form:
        noise = {k: _sum(self.noise.get(k), other.noise.get(k)) for k in {**self.noise, **other.noise}}
        return Form(
            self.center + other.center,
            _sum(self.linear, other.linear),
            _sum(self.square, other.square),
            {k: v for k, v in noise.items() if v is not None},
        )

    def scaled(self, factor: Tensor) -> Form:
        """Times a number for each entry."""
        return self.through(lambda t: t * factor.unsqueeze(1), self.center * factor)

    def first(self) -> Tensor:
        """The largest `|L d|`."""
        return torch.zeros_like(self.center) if self.linear is None else self.linear.abs().sum(1)

    def rest(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest `Q(d, d) + E e`: squares lie in [0, 1], products of two in [-1, 1]."""
        low = up = torch.zeros_like(self.center)
        if self.square is not None:
            squares = _diagonal(self.square)
            mixed = self.square.abs().sum(1) - squares.abs().sum(1)
            low, up = squares.clamp(max=0).sum(1) - mixed, squares.clamp(min=0).sum(1) + mixed
        for part in self.noise.values():
            size = part.abs().sum(1)
            low, up = low - size, up + size
        return low, up

    def interval(self) -> Interval:
        """The range over all d and e."""
        first, (low, up) = self.first(), self.rest()
        return Interval(self.center - first + low, self.center + first + up)


class SecondOrder:
    """Bounds on the gradients of a network whose activations are smooth.

    `values` are the bounds of its nodes over the box `values[0]`, and `adjoint` is the network's for them.
    """

    def __init__(self, network: Network, values: Sequence[Interval], adjoint: Adjoint) -> None:
        self.network, self.values, self.adjoint = network, values, adjoint

    @property
    def applicable(self) -> bool:
        """Whether all layers are affine, with points for weights, or smooth activations."""
        affine = all(
            rules.affine or not index or smooth_of(layer) is not None
            for index, (rules, layer) in enumerate(zip(self.network.rules, self.network.layers, strict=True))
        )
        points = all(p is None or p.is_point for own in self.network.parameters for p in own.values())
        return affine and points and bool(self.adjoint.gates)

    def bytes_per_sample(self) -> int:
        """An estimate of the memory that one sample takes."""
        n, units = prod(self.values[0].shape[1:]), max(prod(v.shape[1:]) for v in self.values)
        return 4 * (n * (n + 1) // 2) * units * self.values[0].lower.element_size()

    def bounds(self, coefficients: Tensor, *, at_once: int) -> Interval:
        """Bounds on the gradient of `coefficients` times the output, (batch, outputs), `at_once` samples at a time."""
        if len(coefficients) <= at_once:
            return self._bounds(coefficients)
        found = []
        for begin in range(0, len(coefficients), at_once):
            part = slice(begin, begin + at_once)
            values = [v.map(lambda t: t[part]) for v in self.values]  # noqa: B023 (used at once)
            of_part = SecondOrder(self.network, values, Adjoint.of(self.network, values))
            found.append(of_part._bounds(coefficients[part]))
        return Interval(torch.cat([f.lower for f in found]), torch.cat([f.upper for f in found]))

    def _bounds(self, coefficients: Tensor) -> Interval:
        slopes = self._slopes()
        forms: list[Form] = [Form(coefficients)]
        for index in range(1, len(self.adjoint.nodes)):
            inputs = [forms[j] for j in self.adjoint.nodes[index].inputs]
            if len(inputs) == 2:
                forms.append(inputs[0] + inputs[1])
            elif index in self.adjoint.gates:
                forms.append(_product(slopes[self.adjoint.gates[index]], inputs[0], origin=-3 - index))
            else:
                linear = partial(self._backward, index)
                forms.append(inputs[0].through(_each(linear), linear(inputs[0].center)))
        return forms[-1].interval()

    def _slopes(self) -> dict[int, Form]:
        """The forms of all activations' slopes, by index in the network."""
        network, box = self.network, self.values[0]
        size = prod(box.shape[1:])
        found: dict[int, Form] = {}
        forms: list[Form] = [Form(box.center, torch.diag_embed(box.radius.flatten(1)).view(-1, size, *box.shape[1:]))]
        last = max(self.adjoint.gates.values())
        for index in range(1, last + 1):
            inputs = [forms[j] for j in network.nodes[index].inputs]
            smooth = smooth_of(network.layers[index])
            if smooth is not None:
                z = inputs[0].interval().agreeing(self.values[network.nodes[index].inputs[0]])
                second, third = smooth.bends(z)
                f, slope = smooth.activation.f, smooth.activation.slope
                found[index] = _composed(slope, third, smooth, inputs[0], z, origin=2 * index)
                forms.append(_composed(f, second, smooth, inputs[0], z, origin=2 * index + 1))
                continue
            points = [Interval.point(form.center) for form in inputs]
            rule = network.rules[index].forward
            assert rule is not None  # checked when the network was bound
            total = Form(rule(network.layers[index], *points, **network.parameters[index]).lower)
            for slot, form in enumerate(inputs):
                linear = partial(self._forward, index, slot)
                total = total + form.through(_each(linear), torch.zeros_like(total.center))
            forms.append(total)
        return found

    def _forward(self, index: int, slot: int, t: Tensor) -> Tensor:
        """Sends one input of an affine layer through it, without its offset."""
        network, layer = self.network, self.network.layers[index]
        rules = turned(network.rules[index], layer, slot, [self.values[j] for j in network.nodes[index].inputs])
        assert rules.backward is not None
        above = rules.backward(layer, self.values[index], Interval.point(t), **network.parameters[index])
        assert isinstance(above, Interval)
        return above.lower

    def _backward(self, index: int, t: Tensor) -> Tensor:
        """Sends the input of an affine node of the adjoint through it."""
        rule = self.adjoint.rules[index].forward
        assert rule is not None
        return rule(self.adjoint.layers[index], Interval.point(t), **self.adjoint.parameters[index]).lower


def _composed(
    g: Callable[[Tensor], Tensor], bend: Tensor, smooth: Smooth, form: Form, z: Interval, *, origin: int
) -> Form:
    """`g` of a form whose values lie in z, by its parabola on z; `bend` bounds `|g''|` there.

    With `g(c + t) = p0 + p1 t + p2 t^2 + r` and `t = L d + R`: `t^2 = (L d)^2 + R (2 L d + R)`.
    """
    p0, p1, p2, remainder = _parabola(g, bend, z, form.center)
    first, (low, up) = form.first(), form.rest()
    size = torch.maximum(low.abs(), up.abs())
    remainder = remainder + p2.abs() * size * (2 * first + size) + smooth.gaps(z)
    assert form.linear is not None
    squared = Form(torch.zeros_like(p0), None, _outer(form.linear, form.linear))
    found = form.scaled(p1) + squared.scaled(p2)
    return Form(p0, found.linear, found.square, found.noise) + _fresh(remainder, origin)


def _parabola(
    g: Callable[[Tensor], Tensor], bend: Tensor, z: Interval, center: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`p0, p1, p2, r` with `|g(center + t) - p0 - p1 t - p2 t^2| <= r` where `center + t` lies in z.

    Through three Chebyshev nodes of z; the distance is measured on a grid, between whose points it can rise by
    `w^2 / 8` times a bound of its curvature.
    """
    middle = z.center
    reach = z.radius.clamp(min=1e-4 if z.dtype is torch.float64 else 1e-2)  # nodes may leave z
    node = 3**0.5 / 2
    at, below, above = g(middle), g(middle - node * reach), g(middle + node * reach)
    p1, p2 = (above - below) / (2 * node * reach), (above - 2 * at + below) / (2 * (node * reach) ** 2)
    shift = center - middle
    p0, p1 = at + shift * (p1 + shift * p2), p1 + 2 * p2 * shift
    low = up = torch.zeros_like(p0)
    for k in range(PIECES + 1):
        point = z.upper if k == PIECES else z.lower + (z.upper - z.lower) * (k / PIECES)
        t = point - center
        distance = g(point) - (p0 + t * (p1 + t * p2))
        low, up = (distance, distance) if k == 0 else (torch.minimum(low, distance), torch.maximum(up, distance))
    step = ((z.upper - z.lower) / PIECES) ** 2 / 8
    return p0 + (low + up) / 2, p1, p2, (up - low) / 2 + step * (bend + 2 * p2.abs())


def _product(s: Form, g: Form, *, origin: int) -> Form:
    """The product of two forms; what is of third order or more becomes noise."""
    found = s.scaled(g.center) + g.scaled(s.center)
    found = Form(s.center * g.center, found.linear, found.square, found.noise)
    if s.linear is not None and g.linear is not None:
        found = found + Form(torch.zeros_like(found.center), None, _outer(s.linear, g.linear))
    (s_low, s_up), (g_low, g_up) = s.rest(), g.rest()
    s_rest, g_rest = torch.maximum(s_low.abs(), s_up.abs()), torch.maximum(g_low.abs(), g_up.abs())
    return found + _fresh(s.first() * g_rest + g.first() * s_rest + s_rest * g_rest, origin)


def _fresh(size: Tensor, origin: int) -> Form:
    """Independent noise of this size for each entry."""
    flat = size.flatten(1)
    return Form(torch.zeros_like(size), noise={origin: torch.diag_embed(flat).view(len(flat), -1, *size.shape[1:])})


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """The coefficients of `(a d) (b d)`."""
    rows, columns = torch.triu_indices(a.shape[1], a.shape[1], device=a.device)
    found = a[:, rows] * b[:, columns] + a[:, columns] * b[:, rows]
    half = torch.where(rows == columns, 0.5, 1.0).to(a).view(1, -1, *[1] * (a.dim() - 2))
    return found * half


def _diagonal(square: Tensor) -> Tensor:
    n = int((2 * square.shape[1]) ** 0.5)
    rows = torch.arange(n, device=square.device)
    return square[:, rows * n - rows * (rows - 1) // 2]


def _each(linear: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A map of batches, for tensors with an axis of terms after the batch."""
    return lambda t: linear(t.flatten(0, 1)).unflatten(0, t.shape[:2])


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
