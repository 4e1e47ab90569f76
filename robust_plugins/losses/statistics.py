"""Batch normalisation by the statistics of the clean inputs: for a second forward pass on others, and for bounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugins.errors import UnsupportedModelError, of_type

Statistics = dict[nn.Module, list[tuple[Tensor, Tensor]]]
"""The mean and the variance of each channel, for each layer and each time that it is used."""


@contextmanager
def recorded(model: nn.Module) -> Iterator[Statistics]:
    """Notes the batch statistics of every batch-norm layer in training mode during a forward pass."""
    found: Statistics = {}

    def note(layer: Any, args: tuple[Any, ...]) -> None:
        known = layer.running_mean if layer.running_mean is not None else layer.weight
        z = args[0] if known is None else args[0].to(known.dtype)  # under autocast it may be in half precision
        axes = [axis for axis in range(z.dim()) if axis != 1]
        variance, mean = torch.var_mean(z, axes, correction=0)
        found.setdefault(layer, []).append((mean, variance))

    handles = [layer.register_forward_pre_hook(note) for layer in _training(model)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replayed(statistics: Statistics) -> Iterator[None]:
    """Normalises by `statistics` during forward passes, and leaves the running statistics alone. Differentiable."""
    waiting = {layer: cycle(uses) for layer, uses in statistics.items()}

    def normalise(layer: Any, args: tuple[Any, ...], out: Tensor) -> Tensor:
        z, (mean, variance) = args[0], next(waiting[layer])
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


@contextmanager
def standing_in(statistics: Statistics, *, history: bool) -> Iterator[None]:
    """Makes them the running statistics, which is what bounds of the model in evaluation mode use.

    With their `history` bounds are differentiable through them; torch's own layers then refuse to be run. Raises
    UnsupportedModelError where a layer is used more than once: it has one set of running statistics.
    """
    before: dict[Any, tuple[Any, Any]] = {m: (m.running_mean, m.running_var) for m in statistics}
    try:
        for layer, uses in statistics.items():
            if len(uses) > 1:
                raise UnsupportedModelError(
                    f"{of_type(layer)} is used {len(uses)} times in one forward pass, so that bounds cannot "
                    "use the statistics of the batch; give each use a layer of its own"
                )
            # Only layers with running statistics have bounds at all.
            if layer.running_mean is not None:
                mean, variance = uses[0] if history else (t.detach() for t in uses[0])
                layer._buffers.update(running_mean=mean, running_var=variance)
        yield
    finally:
        for layer, (mean, variance) in before.items():
            layer._buffers.update(running_mean=mean, running_var=variance)


def _training(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
