"""`Reach`: a box as what coefficients are multiplied by, and the rounding errors that linear relaxation pays there.

Coefficients a are sent back from node to node. With outward rounding every product with a box has room for the errors
of its own evaluation; and that with the constant part of an affine node `y = W h + b`, for those

- of the network's evaluation of the node, `|fl(y) - y| <= gamma_n (|W| |h| + |b|)`,
- of the coefficients of its inputs, `|fl(a W) - a W| <= gamma_m |a| |W|`, times the largest |h|,
- of the coefficients that arrive, each of which may be off by `ARRIVING` unit roundoffs.

Each is |a| times a vector that does not depend on a, so that it is added to the radius: one more product with a vector,
and the bound holds for the exact network and for every order in which its sums, and ours, may run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.errors import UnsupportedModelError
from robust_plugins.intervals import rounding
from robust_plugins.intervals.interval import Interval
from robust_plugins.intervals.network.graph import Network

ARRIVING = 16
"""By how many unit roundoffs a coefficient may be off when it arrives at a node, relative to itself: those of a product
with a slope that is written as a mean and a difference, and of a sum of two ways to the node."""


@dataclass(frozen=True, eq=False)
class Reach:
    """For coefficients a, `a center - |a| radius - floor` is the least value of a times the box."""

    center: Float[Tensor, "#samples *shape"]
    radius: Float[Tensor, "#samples *shape"] | None
    """None for a point, as long as nothing is rounded outward."""
    floor: Float[Tensor, "#samples 1"] | None = None
    """For each sample, what underflow may hide, whatever the coefficients are."""

    @classmethod
    def of(cls, box: Interval, *, floor: Tensor | None = None) -> Reach:
        """The reach of a box; with outward rounding wider, by the errors of coefficients and of the product."""
        if not rounding.active():
            return cls(box.lower, None) if box.is_point else cls(box.center, box.radius)
        terms = box.lower[0].numel() if len(box) else 0
        u, tiny = rounding.unit(box.dtype)
        c = box.lower if box.is_point else box.lower / 2 + box.upper / 2
        r = torch.zeros_like(c) if box.is_point else torch.maximum(box.upper - c, c - box.lower) * (1 + 4 * u) + tiny
        with torch.no_grad():
            rest = rounding.once(terms + ARRIVING, box.dtype) * (c.abs() + r) + tiny
            least = c.new_full((1, 1), rounding.underflow(terms, box.dtype))
        return cls(c, r + rest, least if floor is None else floor + least)

    def of_samples(self, samples: slice | Tensor) -> Reach:
        """For some of the samples."""

        def part(t: Tensor) -> Tensor:
            return t if len(t) == 1 else t[samples]

        radius, floor = (None if t is None else part(t) for t in (self.radius, self.floor))
        return Reach(part(self.center), radius, floor)

    def least(self, a: Float[Tensor, "any rows *shape"]) -> Float[Tensor, "batch rows"]:
        """The least value of each row of `a` times the box."""
        number = dot(a, self.center)
        return number if self.radius is None else rounding.lessened(number, self.spread(a))

    def most(self, a: Float[Tensor, "any rows *shape"]) -> Float[Tensor, "batch rows"]:
        """The largest value of each row of `a` times the box."""
        number = dot(a, self.center)
        return number if self.radius is None else rounding.increased(number, self.spread(a))

    def spread(self, a: Float[Tensor, "any rows *shape"]) -> Float[Tensor, "batch rows"]:
        """How far either is from `a center`."""
        assert self.radius is not None
        found = dot(a.abs(), self.radius)
        return found if self.floor is None else found + self.floor


def dot(a: Float[Tensor, "any rows *shape"], b: Float[Tensor, "samples *shape"]) -> Float[Tensor, "batch rows"]:
    """`sum_i a_ri b_i` for each row."""
    return torch.matmul(a.reshape(*a.shape[:2], -1), b.reshape(len(b), -1, 1)).squeeze(2)


def arriving(value: Interval) -> Tensor:
    """The price of coefficients of 1 of a node with these values, at once: (batch, *shape)."""
    with torch.no_grad():
        once = rounding.once(value.lower[0].numel() + ARRIVING, value.dtype)
        return once * value.magnitude + rounding.underflow(1, value.dtype)


def terms_of(network: Network, index: int, inputs: Sequence[Interval]) -> tuple[int, int]:
    """The lengths of an affine node's sums, as `Rules.terms` has them.

    Raises UnsupportedModelError where they are not known.
    """
    rules = network.rules[index]
    if rules.terms is None:
        raise refusal(network, index, "adds up in a way that is not known")
    return rules.terms(network.layers[index], *inputs, **network.parameters[index])


def reach_of_affine(network: Network, index: int, inputs: Sequence[Interval], offset: Interval) -> Reach:
    """The reach of the constant part of an affine node, `offset`, with room for the errors that are paid there.

    `inputs` are the intervals of the node's inputs. Raises as `terms_of`, where rounding is active.
    """
    if not rounding.active():
        return Reach.of(offset)
    terms = terms_of(network, index, inputs)
    if terms == (0, 0):  # what is only moved has no errors of its own
        return Reach.of(offset) if bool(offset.magnitude.any()) else Reach(offset.lower, None)
    dtype = offset.dtype
    with torch.no_grad():
        largest = [i.magnitude for i in inputs]
        forward, backward, arriving = (rounding.once(n, dtype) for n in (*terms, ARRIVING))
        error = (forward + backward + arriving) * (1 + forward) * size_of(network, index, largest)
        error = error + rounding.underflow(terms[0], dtype)
        floor = offset.lower.new_full((1, 1), rounding.underflow(terms[1], dtype))
        for t in largest:
            floor = floor * (1 + t.reshape(len(t), -1).sum(1, keepdim=True))
    return Reach.of(Interval(offset.lower - error, offset.upper + error), floor=floor)


def size_of(network: Network, index: int, inputs: Sequence[Tensor]) -> Tensor:
    """The sum of the absolute values of the terms of an affine node, for inputs of these absolute values."""
    rules, layer = network.rules[index], network.layers[index]
    with torch.no_grad(), rounding.outward(False):
        points = [Interval.point(t) for t in inputs]
        own = {k: None if p is None else Interval.point(p.magnitude) for k, p in network.parameters[index].items()}
        if rules.size is not None:
            return rules.size(layer, *points, **own)
        assert rules.forward is not None  # checked when the network was bound
        return rules.forward(layer, *points, **own).lower.abs()


def refusal(network: Network, index: int, what: str) -> UnsupportedModelError:
    """The error for a node at which linear relaxation cannot be rounded outward, naming its path and type."""
    name, layer = network.nodes[index].name, network.layers[index]
    return UnsupportedModelError(
        f"layer {name!r} ({type(layer).__name__}) {what}, so that linear relaxation cannot be rounded outward there; "
        "use interval:ibp(outward=True), or linear relaxation without `outward`"
    )
