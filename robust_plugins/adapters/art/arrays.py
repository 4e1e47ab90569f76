"""Inputs and labels as ART has them, numpy arrays, and as PyTorch does. Needs no import of ART."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError


def moved_to(x: Any, model: nn.Module) -> Tensor:
    """The inputs in ART's float32, then in the precision and on the device of the model's parameters."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.from_numpy(np.array(x, dtype=np.float32)).to(like)


def classes_in(y: Any, classes: int) -> Tensor:
    """The classes that labels of ART name: one-hot rows, or integers of shape (batch,) or (batch, 1)."""
    rows = np.asarray(y)
    if rows.ndim == 2 and rows.shape[1] == classes and classes > 1:
        return torch.from_numpy(rows.argmax(1))
    flat = rows.reshape(-1) if rows.ndim == 2 and rows.shape[1] == 1 else rows
    if flat.ndim != 1 or not np.array_equal(flat, flat.astype(np.int64)):
        raise ArgumentError(
            "y", f"an array of shape {rows.shape} and type {rows.dtype}",
            accepted=f"one-hot rows of {classes} classes, or integers", hint="As in ART.",
        )  # fmt: skip
    return torch.from_numpy(flat.astype(np.int64))


def drawn() -> int:
    """A seed from numpy's global state, which is the one that scripts of ART seed."""
    return int(np.random.randint(2**32, dtype=np.uint32))  # noqa: NPY002
