"""The balls of one norm for all features: `Linf`, `L2` and `L1`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robust_plugins.balls.ball import Ball, Draw, Support, random_like


@dataclass(frozen=True, kw_only=True, repr=False)
class Linf(Ball):
    """`max_i |z_i - x_i| <= eps`, and `z` inside `clip`: a box.

    - `eps`: the radius in the units of the inputs: a number, or one per sample in a row or of shape (batch, 1, ...). A
      row is never one per feature, even where a sample has as many: for that take `Box(eps=1, radius=row, ...)`.
    - `clip`: the valid range (low, high) of every input value, part of the set; None where every value is valid.

    >>> x = torch.tensor([[0.1, 0.5]])
    >>> rp.Linf(eps=0.25, clip=(0, 1)).box(x)
    Interval(lower=tensor([[0.0000, 0.2500]]), upper=tensor([[0.3500, 0.7500]]))
    """

    norm: ClassVar[float] = math.inf

    def distance(  # noqa: D102 (inherited)
        self, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"]
    ) -> Float[Tensor, " batch"]:
        return (z - x).flatten(1).abs().amax(1)

    def project(  # noqa: D102 (inherited)
        self, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"]
    ) -> Float[Tensor, "batch *features"]:
        box = self.box(x)
        return torch.minimum(torch.maximum(z, box.lower), box.upper)

    def contains(
        self, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"], *, tolerance: float = 1e-6
    ) -> Bool[Tensor, " batch"]:
        """Tests membership in the box `box(x)`: what `project` returns lies in it with tolerance 0."""
        box, slack = self.box(x), self._slack(x, tolerance).view(-1, *[1] * (x.dim() - 1))
        return ((z >= box.lower - slack) & (z <= box.upper + slack)).flatten(1).all(1)

    def steepest(self, gradient: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch *features"]:
        """The steepest step goes to the corner that the gradient's signs name."""
        return self.eps_for(gradient) * gradient.sign()

    def _spread(self, unit: Tensor, x: Tensor) -> Tensor:
        # Stretched over the box that clip leaves, so that uniform points and corners are those of the set.
        box = self.box(x)
        return torch.minimum(torch.maximum(box.center + unit * box.radius, box.lower), box.upper)

    def _unit(self, like: Tensor, draw: Draw, generator: torch.Generator | None) -> Tensor:
        t = 2 * random_like(torch.rand, like, generator) - 1
        return torch.where(t < 0, -torch.ones_like(t), torch.ones_like(t)) if draw == "corner" else t


@dataclass(frozen=True, kw_only=True, repr=False)
class L2(Ball):
    """The Euclidean ball `sqrt(sum_i (z_i - x_i)^2) <= eps`, cut to `clip`.

    - `eps`: the radius in the units of the inputs: a number, or one per sample in a row or of shape (batch, 1, ...). A
      row is never one per feature, even where a sample has as many: for that take `Box(eps=1, radius=row, ...)`.
    - `clip`: the valid range (low, high) of every input value, part of the set; None where every value is valid.

    >>> x, z = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    >>> rp.L2(eps=1.0, clip=None).project(z, x)
    tensor([[0.6000, 0.8000]])
    """

    norm: ClassVar[float] = 2.0

    def distance(  # noqa: D102 (inherited)
        self, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"]
    ) -> Float[Tensor, " batch"]:
        length: Tensor = torch.linalg.vector_norm((z - x).flatten(1), dim=1)
        return length

    def project(  # noqa: D102 (inherited)
        self, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"]
    ) -> Float[Tensor, "batch *features"]:
        eps = self.eps_for(x)
        length = self.distance(z, x).view_as(eps)
        # Where the point is outside, eps / length < 1; the where keeps 0 / 0 out of points at the centre.
        scale = torch.where(length > eps, eps / torch.where(length > 0, length, 1), 1)
        return self._clipped(x + (z - x) * scale)

    def steepest(self, gradient: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch *features"]:
        """The steepest step follows the gradient itself."""
        flat = gradient.flatten(1)
        if not flat.shape[1]:
            return torch.zeros_like(gradient)
        flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)  # squares stay normal
        direction = torch.nn.functional.normalize(flat, dim=1)
        return self.eps_for(gradient) * direction.view_as(gradient)

    def support(self, x: Float[Tensor, "batch *features"]) -> Support:
        """`a x - eps |a|_2`, the least value over the ball without its clip range."""
        return _least(x, self.radii_for(x), lambda rows: torch.linalg.vector_norm(rows, dim=2))

    def _unit(self, like: Tensor, draw: Draw, generator: torch.Generator | None) -> Tensor:
        direction = torch.nn.functional.normalize(random_like(torch.randn, like, generator), dim=-1)
        if draw == "corner":
            return direction
        # The volume within radius r grows as r^d.
        radius = random_like(torch.rand, like[..., :1], generator)
        return direction * radius ** (1 / max(like.shape[-1], 1))


@dataclass(frozen=True, kw_only=True, repr=False)
class L1(Ball):
    """The cross-polytope `sum_i |z_i - x_i| <= eps`, cut to `clip`.

    - `eps`: the radius in the units of the inputs: a number, or one per sample in a row or of shape (batch, 1, ...). A
      row is never one per feature, even where a sample has as many: for that take `Box(eps=1, radius=row, ...)`.
    - `clip`: the valid range (low, high) of every input value, part of the set; None where every value is valid.

    >>> x, z = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 1.0]])
    >>> rp.L1(eps=1.0, clip=None).project(z, x)
    tensor([[1., 0.]])
    """

    norm: ClassVar[float] = 1.0

    def distance(  # noqa: D102 (inherited)
        self, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"]
    ) -> Float[Tensor, " batch"]:
        return (z - x).flatten(1).abs().sum(1)

    def project(
        self, z: Float[Tensor, "batch *features"], x: Float[Tensor, "batch *features"]
    ) -> Float[Tensor, "batch *features"]:
        """Projects as `Ball.project` says, by sorting.

        Duchi et al. 2008, "Efficient projections onto the l1-ball", figure 1.
        """
        delta, eps = (z - x).flatten(1), self.eps_for(x).flatten(1)
        size = delta.abs()
        ranked = size.sort(1, descending=True).values
        excess = ranked.cumsum(1) - eps
        count = torch.arange(1, size.shape[1] + 1, device=x.device, dtype=x.dtype)
        # The coordinates that stay positive are a prefix of the sorted ones; the last of them sets the threshold.
        kept = (ranked * count > excess).sum(1, keepdim=True).clamp(min=1)
        threshold = excess.gather(1, kept - 1) / kept
        shrunk = delta.sign() * (size - threshold).clamp(min=0)
        return self._clipped(x + torch.where(size.sum(1, keepdim=True) > eps, shrunk, delta).view_as(x))

    def steepest(self, gradient: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch *features"]:
        """The steepest step moves along the component with the largest slope alone, the first of equals."""
        flat = gradient.flatten(1)
        if not flat.shape[1]:
            return torch.zeros_like(gradient)
        largest = flat.abs().argmax(1, keepdim=True)
        step = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign())
        return self.eps_for(gradient) * step.view_as(gradient)

    def support(self, x: Float[Tensor, "batch *features"]) -> Support:
        """`a x - eps max_i |a_i|`, the least value over the ball without its clip range."""
        return _least(x, self.radii_for(x), lambda rows: rows.abs().amax(2))

    def _unit(self, like: Tensor, draw: Draw, generator: torch.Generator | None) -> Tensor:
        dims = like.shape[-1]
        sign = torch.where(random_like(torch.rand, like, generator) < 0.5, -1.0, 1.0).to(like)
        if draw == "corner":
            hot = random_like(torch.rand, like, generator).argmax(-1, keepdim=True) if dims else like.long()
            return sign * torch.zeros_like(like).scatter(-1, hot, 1.0)
        # Exponentials divided by their sum, one more than there are dimensions, are uniform on the simplex.
        draws = -torch.log1p(-random_like(torch.rand, like.new_empty((*like.shape[:-1], dims + 1)), generator))
        return sign * (draws / draws.sum(-1, keepdim=True))[..., :dims]


def _least(x: Tensor, radii: Tensor, dual_norm: Callable[[Tensor], Tensor]) -> Support:
    flat, eps = x.flatten(1), radii.unsqueeze(1)

    def least(a: Tensor) -> Tensor:
        rows = a.flatten(2)
        return (rows @ flat.unsqueeze(2)).squeeze(2) - eps * dual_norm(rows)

    return least


BALLS: dict[str, type[Ball]] = {"linf": Linf, "l2": L2, "l1": L1}
"""The balls by the names of their norms in files and on the command line."""
