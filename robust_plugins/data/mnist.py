"""MNIST: from its four idx files, or fetched once through scikit-learn; verified, and kept in a cache."""

from __future__ import annotations

import os
import tempfile
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from robust_plugins.data.idx import format_idx, md5, parse_idx, read_idx
from robust_plugins.data.record import Dataset
from robust_plugins.data.splits import Array
from robust_plugins.errors import ArgumentError

CHECKSUMS = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""The published md5 of the four unpacked files."""

TRAINING = 60_000
"""How many of OpenML's samples, which are in the published order, are the training part."""


def mnist(*, folder: str | Path | None = None, verify: bool = True) -> Dataset:
    """MNIST: 60,000 + 10,000 handwritten digits, images of shape (1, 28, 28) in [0, 1], ten classes, in their order.

    - `folder`: holds the four idx files, plain or with `.gz`. None takes the copy in the cache folder, and fetches
      it from OpenML through scikit-learn where there is none.
    - `verify`: the contents must be MNIST to the byte, by the published checksums; verified copies are written to
      the cache folder. False reads other data in this format (Fashion-MNIST, KMNIST), which are not cached.

    The cache folder is `ROBUST_PLUGINS_CACHE`, or `robust_plugins` in `XDG_CACHE_HOME`, or in `~/.cache`. Raises
    ArgumentError for missing or damaged files, wrong checksums, and where nothing can be fetched. LeCun, Cortes and
    Burges, "The MNIST database of handwritten digits".
    """
    cached = cache_folder() / "mnist.npz"
    stored = _cached(cached) if folder is None else None
    if stored is not None:
        arrays = stored
    else:
        if folder is not None:
            contents = {stem: read_idx(Path(folder), stem) for stem in CHECKSUMS}
            arrays = {stem: parse_idx(content, name=stem) for stem, content in contents.items()}
            source = str(folder)
        else:
            arrays = _fetched()
            contents = {stem: format_idx(array) for stem, array in arrays.items()}
            source = "OpenML's mnist_784"
        if verify:
            _check(contents, source)
            if not cached.exists():
                _write(cached, arrays)
    x_train, y_train, x_test, y_test = (torch.from_numpy(arrays[stem].copy()) for stem in CHECKSUMS)
    return Dataset(
        name="mnist",
        x_train=x_train.unsqueeze(1).float() / 255,
        y_train=y_train.long(),
        x_test=x_test.unsqueeze(1).float() / 255,
        y_test=y_test.long(),
        classes=10,
        clip=(0.0, 1.0),
    )


def cache_folder() -> Path:
    """Where fetched data are kept: `ROBUST_PLUGINS_CACHE`, else `robust_plugins` in `XDG_CACHE_HOME` or `~/.cache`."""
    if chosen := os.environ.get("ROBUST_PLUGINS_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "robust_plugins"


def _fetched() -> dict[str, Array]:
    try:
        from sklearn.datasets import fetch_openml
    except ImportError as error:
        raise ArgumentError(
            "folder",
            None,
            accepted="a folder with MNIST's four idx files, where scikit-learn is not installed",
            hint='Give it, or install what fetches them: pip install "robust_plugins[data]".',
        ) from error
    # The pandas parser is far faster; the other one needs nothing but scikit-learn.
    parser = "pandas" if find_spec("pandas") else "liac-arff"
    try:
        found = fetch_openml("mnist_784", version=1, as_frame=False, cache=False, parser=parser)
    except OSError as error:
        raise ArgumentError(
            "folder",
            None,
            accepted="a folder with MNIST's four idx files, where OpenML cannot be reached",
            hint=f"The attempt failed with: {error}.",
        ) from error
    x, y = found.data.reshape(-1, 28, 28).astype(np.uint8), found.target.astype(np.uint8)
    return dict(zip(CHECKSUMS, (x[:TRAINING], y[:TRAINING], x[TRAINING:], y[TRAINING:]), strict=True))


def _check(contents: dict[str, bytes], source: str) -> None:
    wrong = [stem for stem, content in contents.items() if md5(content) != CHECKSUMS[stem]]
    if wrong:
        raise ArgumentError(
            "folder",
            f"{source}, whose {', '.join(wrong)} differ from MNIST's published checksums",
            accepted="the files as published",
            hint="Fetch them again, or pass verify=False for other data in this format.",
        )


def _cached(path: Path) -> dict[str, Array] | None:
    """The arrays of the cache, or None where it is absent or was damaged since."""
    try:
        # Opened here, because numpy leaves a file that it cannot read open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {stem: archive[stem] for stem in CHECKSUMS}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return arrays if all(md5(format_idx(a)) == CHECKSUMS[stem] for stem, a in arrays.items()) else None


def _write(path: Path, arrays: dict[str, Array]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and moved there, so that an interrupted or a second writer leaves no half file.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            np.savez_compressed(Path(folder, path.name), **arrays)  # type: ignore[arg-type]  # the names are ours
            os.replace(Path(folder, path.name), path)
    except OSError as error:
        warnings.warn(f"MNIST was read, but could not be kept in the cache: {error}", stacklevel=3)
