"""`BoxNumbers`: what a `Box` says of each feature, as tensors of one shape, dtype and device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from robust_plugins.errors import ArgumentError

NEAR = 1e-6
"""By how much the end of a range may miss a whole number that is meant."""


class BoxNumbers:
    """The radius and range of each feature for inputs of one shape, (1, *features), dtype and device."""

    def __init__(
        self,
        like: Float[Tensor, "1 *features"],
        *,
        clip: tuple[float, float] | None,
        radius: object,
        lower: object,
        upper: object,
        immutable: Sequence[int],
        one_hot: Sequence[Sequence[int]],
        integers: Sequence[int],
    ) -> None:
        """The fields of the `Box`, checked by it, and a tensor of the shape that they are for."""
        low, high = (-math.inf, math.inf) if clip is None else clip
        radii = _broadcast("radius", radius, like)
        least, most = torch.full_like(like, low), torch.full_like(like, high)
        if lower is not None:
            least = torch.maximum(least, _broadcast("clip", lower, like))
        if upper is not None:
            most = torch.minimum(most, _broadcast("clip", upper, like))
        flat_radius, flat_lower, flat_upper = (t.clone().flatten() for t in (radii, least, most))
        size = flat_radius.numel()
        named = {
            "immutable": immutable,
            "integers": integers,
            "one_hot": [i for group in one_hot for i in group],
        }
        for name, indices in named.items():
            if max(indices, default=-1) >= size:
                raise ArgumentError(
                    f"ball.{name}", max(indices), accepted=f"features from 0 to {size - 1}",
                    hint="Features are counted in the flattened sample, without the batch.",
                )  # fmt: skip
        grouped = list(named["one_hot"])
        flat_radius[grouped] = math.inf
        flat_lower[grouped], flat_upper[grouped] = flat_lower[grouped].clamp(min=0), flat_upper[grouped].clamp(max=1)
        whole = torch.zeros(size, dtype=torch.bool, device=like.device)
        whole[list(integers)] = True
        flat_lower = torch.where(whole, (flat_lower - NEAR).ceil(), flat_lower)
        flat_upper = torch.where(whole, (flat_upper + NEAR).floor(), flat_upper)
        flat_radius[list(immutable)] = 0.0
        self.radius, self.lower, self.upper, self.whole = (
            t.view_as(like) for t in (flat_radius, flat_lower, flat_upper, whole)
        )
        self.anywhere = self.radius.isinf()
        unbounded = (self.anywhere & (self.upper - self.lower).isinf()).flatten()
        if bool(unbounded.any()):
            raise ArgumentError(
                "ball.radius", f"infinite at feature {int(unbounded.nonzero()[0])}, which has no finite range",
                accepted="an infinite radius where clip has both ends", hint="Give the feature a range in clip.",
            )  # fmt: skip
        self.groups: list[tuple[list[int], Tensor]] = []
        """Of each group its features, and which categories are open."""
        for group in one_hot:
            up, held = flat_upper[list(group)], flat_lower[list(group)] > 0
            self.groups.append((list(group), (up >= 1) & ((held.sum() - held.long()) == 0)))


def _broadcast(name: str, value: object, like: Tensor) -> Tensor:
    given = torch.tensor(value, dtype=like.dtype, device=like.device)
    features = tuple(like.shape[1:])
    fits = given.dim() == 0 or (
        given.dim() == len(features) and all(a in (1, b) for a, b in zip(given.shape, features, strict=True))
    )
    if not fits:
        raise ArgumentError(
            f"ball.{name}", f"of shape {tuple(given.shape)}", accepted=f"one number, or one per feature, {features}",
            hint="It has the shape of one sample; `eps` is what differs from sample to sample.",
        )  # fmt: skip
    return given.expand(features).unsqueeze(0)
