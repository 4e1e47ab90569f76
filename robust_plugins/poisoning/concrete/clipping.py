"""Clipping of each sample's gradient: elementwise, or by its norm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_plugins.errors import ArgumentError


@dataclass(frozen=True)
class Clip:
    """Every entry of a sample's gradient is cut to [-gamma, gamma]."""

    gamma: float

    def __post_init__(self) -> None:
        if isinstance(self.gamma, bool) or not 0 < self.gamma < math.inf:
            raise ArgumentError("clip", self.gamma, accepted="a finite number above 0", hint="Or None to clip nothing.")

    def __call__(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The clipped gradients, (batch, *parameter) for each parameter."""
        return {name: g.clamp(-self.gamma, self.gamma) for name, g in gradients.items()}


@dataclass(frozen=True)
class NormClip(Clip):
    """A sample's gradient, all parameters taken together, is scaled down to the Euclidean norm `gamma`."""

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


def as_clip(clip: float | Clip | None) -> Clip | None:
    """A number clips elementwise."""
    return clip if clip is None or isinstance(clip, Clip) else Clip(clip)
