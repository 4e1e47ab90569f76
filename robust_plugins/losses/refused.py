"""Why a model refuses its inputs, where that can be told: a precision, whole numbers, a single sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError


def refused_inputs(error: Exception, model: nn.Module, x: Tensor) -> ArgumentError | None:
    """Explains an error that the model raised at `x`; None where its own words have to do."""
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        return ArgumentError(
            "x", f"a batch of {len(x)}, which batch normalisation in training mode cannot take",
            accepted="two samples or more",
            hint="Pass drop_last=True to the DataLoader, or freeze the layer's statistics with its eval().",
        )  # fmt: skip
    if not isinstance(error, RuntimeError) or torch.is_autocast_enabled(x.device.type):
        return None
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is None:
        return None
    if not x.is_floating_point() and not x.is_complex():
        return ArgumentError(
            "x", f"of {x.dtype}", accepted=f"inputs of the model's precision, {first.dtype}",
            hint="Scale images to [0, 1] with x.float() / 255, before the ball is chosen.",
        )  # fmt: skip
    if x.dtype != first.dtype:
        return ArgumentError(
            "x", f"of {x.dtype}", accepted=f"inputs of the model's precision, {first.dtype}",
            hint=f"Convert them with x.to({first.dtype}).",
        )  # fmt: skip
    return None


def check_gradients() -> None:
    """Raises ArgumentError under `torch.inference_mode`, where nothing has gradients."""
    if torch.is_inference_mode_enabled():
        raise ArgumentError(
            "mode", "torch.inference_mode()", accepted="a place where gradients can be recorded: training needs them",
            hint="Leave it, or evaluate under torch.no_grad().",
        )  # fmt: skip
