"""`Dataset`: a named data set, split and scaled, with the valid range of its inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robust_plugins.errors import ArgumentError


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Training and test samples with their labels, on the CPU.

    Raises ArgumentError where the parts do not fit together: lengths, shapes, labels outside [0, classes), values
    that are not finite or outside `clip`.

    - `name`: what tables and records call it.
    - `x_train`: inputs, inside `clip`: images of shape (train, channels, height, width), tables of shape (train,
      features).
    - `y_train`: classes, from 0 to `classes - 1`.
    - `x_test`: inputs, inside `clip`.
    - `y_test`: classes, from 0 to `classes - 1`.
    - `classes`: how many classes there are.
    - `clip`: the valid range (low, high) of every input value, which belongs to the ball; None where it is not known.
    - `feature_names`: one name per feature of a table; empty where they have none.
    - `class_names`: one name per class; empty where they have none.
    """

    name: str
    x_train: Float[Tensor, "train *features"]
    y_train: Int[Tensor, " train"]
    x_test: Float[Tensor, "test *features"]
    y_test: Int[Tensor, " test"]
    classes: int
    clip: tuple[float, float] | None
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "clip", checked_clip(self.clip))
        for part, x, y in (("train", self.x_train, self.y_train), ("test", self.x_test, self.y_test)):
            if len(x) != len(y) or x.shape[1:] != self.x_train.shape[1:] or x.dim() < 2:
                raise ArgumentError(
                    f"x_{part}, y_{part}",
                    f"of the shapes {tuple(x.shape)} and {tuple(y.shape)}",
                    accepted="(samples, *features) and (samples,), with the same features for training and test",
                    hint="Give one class index per sample.",
                )
            if len(y) and not (int(y.min()) >= 0 and int(y.max()) < self.classes):
                raise ArgumentError(
                    f"y_{part}",
                    f"between {int(y.min())} and {int(y.max())}",
                    accepted=f"class indices from 0 to {self.classes - 1}",
                    hint="Count classes from zero.",
                )
            if not x.isfinite().all():
                raise ArgumentError(f"x_{part}", "not finite", accepted="finite values", hint="Drop rows with NaN.")
            low, high = torch.aminmax(x) if x.numel() else (x.new_tensor(0.0), x.new_tensor(0.0))
            if self.clip is not None and x.numel() and (low < self.clip[0] or high > self.clip[1]):
                raise ArgumentError(
                    f"x_{part}",
                    f"between {low.item():.9g} and {high.item():.9g}",
                    accepted=f"values inside clip, {self.clip}",
                    hint="Scale the inputs, or give the range that they really have.",
                )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, without the batch axis."""
        return tuple(self.x_train.shape[1:])

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, {len(self.x_train)} + {len(self.x_test)} samples of shape {self.input_shape}, "
            f"{self.classes} classes, clip={self.clip})"
        )


def checked_clip(clip: object) -> tuple[float, float] | None:
    """`clip` as two numbers; raises ArgumentError where it is neither a range nor None."""
    if clip is None:
        return None
    try:
        low, high = (float(end) for end in clip)  # type: ignore[attr-defined] # what is no pair fails here
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not low < high:
        raise ArgumentError(
            "clip", repr(clip), accepted="a pair (low, high) with low < high, or None",
            hint="Give the range of valid inputs, for example (0, 1).",
        )  # fmt: skip
    return low, high
