"""Data sets of the user's own, from a NumPy archive."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robust_plugins.data.record import Dataset, checked_clip
from robust_plugins.data.splits import Array, stratified_split
from robust_plugins.errors import ArgumentError

LAYOUTS = {
    "x_train": ("x_train", "y_train", "x_test", "y_test"),
    "train_images": ("train_images", "train_labels", "test_images", "test_labels"),
    "x": ("x", "y"),
}
"""The keys that an archive may have: a split made already, MedMNIST's names for it, or one set to be split."""


def npz(
    *,
    path: str | Path,
    clip: tuple[float, float] | None = None,
    test_fraction: float | None = None,
    seed: int | None = None,
) -> Dataset:
    """The data set in the archive at `path`, written by `numpy.savez`; nothing in it is unpickled.

    - Keys: `x_train`, `y_train`, `x_test`, `y_test`; or MedMNIST's `train_images`, `train_labels`, `test_images`,
      `test_labels` (its validation part is not used); or `x` and `y`, split here, stratified by class, with
      `test_fraction` (0.2) and `seed` (0).
    - Inputs: floating point of shape (samples, *features), kept as they are, in single precision unless they are
      double; or images of type uint8, divided by 255, of shape (samples, height, width), (samples, channels,
      height, width) or (samples, height, width, channels) with 1 or 3 channels; they get the channels' axis first.
      All parts are of one kind.
    - Labels: integers or booleans of shape (samples,) or (samples, 1), counted from zero.
    - `clip`: the valid range of the inputs as they are returned. uint8 images have (0, 1), and no other is accepted
      for them: theirs in the file, (0, 255), is divided too. For floating point it is unknown, None, unless given.

    Raises ArgumentError for a file that is missing or no such archive, for other keys, types, shapes and ranges, for
    uint8 images of zeros and ones alone, which are no grey levels of 255, and for a split asked of an archive that has
    one.
    """
    clip = checked_clip(clip)
    arrays = _read(Path(path))
    keys = next((keys for keys in LAYOUTS.values() if all(key in arrays for key in keys)), None)
    if keys is None:
        raise ArgumentError(
            "path",
            f"{str(path)!r} with the keys {', '.join(arrays) or 'none'}",
            accepted="; or ".join(", ".join(keys) for keys in LAYOUTS.values()),
            hint="Write it with numpy.savez(path, x=..., y=...).",
        )
    parts = [arrays[key] for key in keys]
    labels = [_labels(key, arrays[key]) for key in keys[1::2]]
    images = _are_images(keys[::2], parts[::2], clip)
    if len(keys) == 2:
        if len(parts[0]) != len(labels[0]):
            raise ArgumentError(
                "x, y",
                f"of the lengths {len(parts[0])} and {len(labels[0])}",
                accepted="as many labels as inputs",
                hint="Give one class index per sample.",
            )
        split = stratified_split(
            labels[0], test_fraction=0.2 if test_fraction is None else test_fraction, seed=0 if seed is None else seed
        )
        inputs, labels = [parts[0][part] for part in split], [labels[0][part] for part in split]
    elif test_fraction is not None or seed is not None:
        raise ArgumentError(
            "test_fraction, seed",
            f"{test_fraction}, {seed}",
            accepted=f"None: {str(path)!r} is split already",
            hint="Leave them out.",
        )
    else:
        inputs = parts[::2]
    x_train, x_test = (_inputs(key, x) for key, x in zip((keys[0], keys[-2]), inputs, strict=True))
    double = torch.promote_types(x_train.dtype, x_test.dtype)
    return Dataset(
        name=Path(path).stem,
        x_train=x_train.to(double),
        y_train=torch.from_numpy(labels[0]),
        x_test=x_test.to(double),
        y_test=torch.from_numpy(labels[1]),
        classes=max(2, 1 + max(int(y.max(initial=0)) for y in labels)),
        clip=(0.0, 1.0) if images else clip,
    )


def _are_images(keys: tuple[str, ...], parts: list[Array], clip: tuple[float, float] | None) -> bool:
    """Whether the inputs are uint8 images, which are divided by 255; raises ArgumentError where that would mislead."""
    kinds = {part.dtype == np.uint8 for part in parts}
    if len(kinds) > 1:
        raise ArgumentError(
            ", ".join(keys), f"of types {', '.join(str(part.dtype) for part in parts)}", accepted="one type for all",
            hint="uint8 is divided by 255 and floating point is not: convert one of them.",
        )  # fmt: skip
    if kinds != {True}:
        return False
    for key, part in zip(keys, parts, strict=True):
        if part.ndim < 3:
            raise ArgumentError(
                key, f"of shape {part.shape} and type uint8", accepted="uint8 images, with their height and width",
                hint="Convert a table, and images that were flattened, with .astype(numpy.float32), and divide pixels "
                "by 255.",
            )  # fmt: skip
    largest = max((int(part.max(initial=0)) for part in parts), default=0)
    if largest == 1:
        raise ArgumentError(
            ", ".join(keys), "of type uint8, with no value above 1", accepted="grey levels up to 255, which divides",
            hint="Convert zeros and ones with .astype(numpy.float32).",
        )  # fmt: skip
    if clip not in (None, (0.0, 1.0)):
        raise ArgumentError(
            "clip", repr(clip), accepted="None or (0, 1): uint8 images are divided by 255, and so is their range",
            hint="Leave it out; for other units, store the images with .astype(numpy.float32).",
        )  # fmt: skip
    return True


def _read(path: Path) -> dict[str, Array]:
    try:
        # Opened here, because numpy leaves a file that it cannot read open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise ArgumentError("path", repr(str(path)), accepted="an existing .npz file", hint="Check the path.") from None
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ArgumentError(
            "path",
            f"{str(path)!r}, which cannot be read ({error})",
            accepted="an archive of plain arrays, without pickled objects",
            hint="Write it with numpy.savez(path, x=..., y=...).",
        ) from error


def _inputs(key: str, x: Array) -> Tensor:
    if x.dtype == np.uint8:
        if x.ndim == 3:
            x = x[:, None]
        elif x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
            x = np.moveaxis(x, 3, 1)
        return torch.from_numpy(np.ascontiguousarray(x)).float() / 255
    if not np.issubdtype(x.dtype, np.floating) or x.ndim < 2:
        raise ArgumentError(
            key,
            f"of shape {x.shape} and type {x.dtype}",
            accepted="floating point or uint8, of shape (samples, *features)",
            hint="Convert it with .astype(numpy.float32), and add a feature axis where there is none.",
        )
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64 if x.dtype == np.float64 else np.float32))


def _labels(key: str, y: Array) -> Array:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or not (np.issubdtype(y.dtype, np.integer) or y.dtype == np.bool_):
        raise ArgumentError(
            key,
            f"of shape {y.shape} and type {y.dtype}",
            accepted="integers of shape (samples,) or (samples, 1)",
            hint="Convert one-hot rows with .argmax(1), and classes in floating point with .astype(numpy.int64).",
        )
    return y.astype(np.int64)
