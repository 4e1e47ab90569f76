"""Clipping of each sample's gradient: elementwise, or by its norm."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.parameters import check_fields


@dataclass(frozen=True)
class Clip:
    """Every entry of a sample's gradient is cut to [-gamma, gamma].

    - `gamma`: the largest absolute value of an entry, above 0.
    """

    gamma: float

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.gamma, bool) or not 0 < self.gamma < math.inf:
            raise ArgumentError(
                "clip_gradient", self.gamma, accepted="a finite number above 0", hint="Or None to clip nothing."
            )

    def __call__(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The clipped gradients, (batch, *parameter) for each parameter."""
        return {name: g.clamp(-self.gamma, self.gamma) for name, g in gradients.items()}


@dataclass(frozen=True)
class NormClip(Clip):
    """A sample's gradient, all parameters taken together, is scaled down to the Euclidean norm `gamma`.

    - `gamma`: the largest Euclidean norm, above 0.
    """

    def __call__(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: D102 (inherited)
        if not gradients:
            return {}
        norm = (
            torch.stack([g.reshape(len(g), g.shape[1:].numel()).square().sum(1) for g in gradients.values()])
            .sum(0)
            .sqrt()
        )
        scale = self.gamma / norm.clamp(min=self.gamma)
        return {name: g * scale.view(-1, *[1] * (g.dim() - 1)) for name, g in gradients.items()}


def as_clip(clip_gradient: float | Clip | None, former: float | Clip | None = None) -> Clip | None:
    """A number clips elementwise. `former` is what was given by the name `clip`."""
    if former is not None:
        warnings.warn("`clip` is now `clip_gradient`: clip is the word for the range of inputs", DeprecationWarning,
                      stacklevel=3)  # fmt: skip
        if clip_gradient is not None:
            raise ArgumentError("clip", former, accepted="None with clip_gradient", hint="It is the former name.")
        clip_gradient = former
    return clip_gradient if clip_gradient is None or isinstance(clip_gradient, Clip) else Clip(clip_gradient)
