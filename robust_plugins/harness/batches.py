"""Batches as people have them: tensors, numpy arrays, and data sets and loaders of torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from robust_plugins.errors import ArgumentError, of_type

Inputs = Float[Tensor, "batch *features"] | np.ndarray | DataLoader[Any] | TensorDataset
"""Samples; a data set or a loader holds their labels too, and is read once, whole."""

Labels = Shaped[Tensor, "batch *outputs"] | np.ndarray | list[Any]


def as_batch(x: object, y: object, model: object) -> tuple[Any, Any]:
    """Samples and labels as tensors; tensors, and what is none of these, are returned as they are.

    - Arrays of floating-point numbers come in the dtype and on the device of the model's parameters, labels there too.
    - Of a TensorDataset or a DataLoader of pairs, `y` has to be None: the second of each pair is the label.

    Raises ArgumentError for labels given twice, and for batches that are no pairs.
    """
    like = _parameter(model)
    if isinstance(x, DataLoader | TensorDataset):
        if y is not None:
            raise ArgumentError(
                "y", f"given beside {of_type(x)} as x", accepted="None, for that holds the labels",
                hint="Give y=None, or the samples alone as x.",
            )  # fmt: skip
        x, y = _read(x)
        return _beside(x, like), _beside(y, like)
    if isinstance(x, np.ndarray):
        if x.dtype.kind != "f":
            raise ArgumentError(
                "x", f"an array of {x.dtype}", accepted="an array of floating-point numbers",
                hint="Scale bytes to the range that the model takes: x.astype(np.float32) / 255.",
            )  # fmt: skip
        x = _beside(torch.from_numpy(np.ascontiguousarray(x)), like)
        y = as_numbers(y, like)
    elif isinstance(y, np.ndarray | list):
        y = as_numbers(y, x if isinstance(x, Tensor) else like)
    return x, y


def _parameter(model: object) -> Tensor | None:
    if isinstance(model, type):  # refused with what to do where the model is looked at
        return None
    parameters = getattr(
        getattr(model, "model", None) if not hasattr(model, "parameters") else model, "parameters", None
    )
    return next((p for p in parameters() if p.is_floating_point()), None) if callable(parameters) else None


def _beside(t: Tensor, like: Tensor | None) -> Tensor:
    if like is None:
        return t
    return t.to(like.device, like.dtype) if t.is_floating_point() else t.to(like.device)


def as_numbers(y: Any, like: Tensor | None, *, name: str = "y") -> Any:
    """Labels, or targets of this `name`, as a tensor beside `like`; others than arrays and lists as they are."""
    if not isinstance(y, np.ndarray | list):
        return y
    try:
        return _beside(torch.as_tensor(y), like)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            name, f"{of_type(y)} that is no array of numbers ({error})", accepted="numbers, one label per sample",
            hint="Count classes from zero: names become numbers by their place in a list of them.",
        ) from error  # fmt: skip


def _read(source: DataLoader[Any] | TensorDataset) -> tuple[Tensor, Tensor]:
    batches = [source.tensors] if isinstance(source, TensorDataset) else list(source)
    pairs = [tuple(batch) if isinstance(batch, tuple | list) else () for batch in batches]
    if not pairs or any(len(pair) != 2 or not all(isinstance(t, Tensor) for t in pair) for pair in pairs):
        raise ArgumentError(
            "x", f"{of_type(source)} of other things than pairs", accepted="one of pairs (samples, labels)",
            hint="Give the samples and the labels as tensors, x and y.",
        )  # fmt: skip
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
