"""`normalised`: a model with the normalisation of its inputs in front, so that balls are in the units of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError

Numbers = float | Sequence[float] | Shaped[Tensor, "..."] | np.ndarray


def normalised(model: nn.Module, mean: Numbers, std: Numbers) -> nn.Module:
    """The model `x -> model((x - mean) / std)`, for inputs in the units of the data.

        model = rp.normalised(model, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        ball = rp.Linf(eps=2 / 255, clip=(0, 1))

    A network that was trained on normalised inputs would need a radius and a clip range divided by `std`, another one
    in each channel. Attacks, certifiers, explanations and exports take this model as it is.

    - `mean`, `std`: a number, or one for each feature of a row, or for each channel (the first axis of a sample), or
      a tensor that broadcasts against a sample and has as many axes. They are kept as buffers, in the model's dtype.

    Raises ArgumentError for what is not finite, for a `std` that is not above 0, and for shapes that do not fit each
    other.

    >>> rp.normalised(torch.nn.Identity(), mean=0.5, std=0.5)(torch.tensor([[1.0, 0.0]]))
    tensor([[ 1., -1.]])
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            "model", type(model).__name__, accepted="a torch.nn.Module", hint="Wrap a function in a small nn.Module."
        )
    m, s = _checked("mean", mean), _checked("std", std)
    if m.dim() != 1 and s.dim() != 1:
        return Normalised(model, m, s)
    if not m.dim() or not s.dim():
        m, s = torch.broadcast_tensors(m, s)
    return ByChannel(model, m, s)


class Normalised(nn.Module):
    """A model behind the normalisation of its inputs; made by `normalised`."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        if not bool((std > 0).all()):
            raise ArgumentError(
                "std", f"{std.min().item():.6g} somewhere", accepted="numbers above 0",
                hint="A feature that is the same in all data has none: give it std 1, or leave it out of the data.",
            )  # fmt: skip
        if mean.dim() and std.dim() and (mean.dim() != std.dim() or (mean.dim() == 1 and mean.shape != std.shape)):
            raise ArgumentError(
                "std", f"of shape {tuple(std.shape)}", accepted=f"a number, or the shape of mean, {tuple(mean.shape)}",
                hint="Give both one number for each feature or channel.",
            )  # fmt: skip
        first = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self.model = model
        self.register_buffer("mean", mean.to(first))
        self.register_buffer("std", std.to(first))
        self.train(model.training)

    def forward(self, x: Any) -> Any:  # tracing sends stand-ins for tensors
        """The model's outputs at the normalised inputs."""
        return self.model((x - self.mean) / self.std)


class ByChannel(Normalised):
    """With one mean and one standard deviation for each channel, or each feature of a row."""

    def forward(self, x: Any) -> Any:
        """The model's outputs at the normalised inputs."""
        # In words that the engine can read, so that its graph is kept.
        shape = (-1,) + (1,) * (x.dim() - 2)
        return self.model((x - self.mean.reshape(shape)) / self.std.reshape(shape))


def _checked(name: str, value: Numbers) -> Tensor:
    try:
        found = torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        found = torch.tensor(torch.nan)
    if not bool(found.isfinite().all()):
        raise ArgumentError(
            name, repr(value), accepted="finite numbers", hint="For example the mean and std of the training inputs."
        )
    return found.detach().cpu().clone()
