"""Batch normalisation by the statistics of the clean inputs, for a second forward pass on others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Statistics = dict[nn.Module, tuple[Tensor, Tensor]]
"""The mean and the variance of each channel, for each layer."""


@contextmanager
def recorded(model: nn.Module) -> Iterator[Statistics]:
    """Notes the batch statistics of every batch-norm layer in training mode during a forward pass."""
    found: Statistics = {}

    def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
        z = args[0]
        axes = [axis for axis in range(z.dim()) if axis != 1]
        variance, mean = torch.var_mean(z, axes, correction=0)
        found[layer] = mean, variance

    handles = [layer.register_forward_pre_hook(note) for layer in _training(model)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replayed(statistics: Statistics) -> Iterator[None]:
    """Normalises by `statistics` during a forward pass, and leaves the running statistics alone. Differentiable."""

    def normalise(layer: Any, args: tuple[Any, ...], out: Tensor) -> Tensor:
        z, (mean, variance) = args[0], statistics[layer]
        shape = (1, -1, *[1] * (z.dim() - 2))
        scaled: Tensor = (z - mean.view(shape)) * (variance.view(shape) + layer.eps).rsqrt()
        if layer.affine:
            scaled = scaled * layer.weight.view(shape) + layer.bias.view(shape)
        return scaled.to(out.dtype)

    handles = [layer.register_forward_hook(normalise) for layer in statistics]
    for layer in statistics:
        layer.training = False  # what is computed in this mode is replaced; the running statistics stay
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in statistics:
            layer.training = True


def _training(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
