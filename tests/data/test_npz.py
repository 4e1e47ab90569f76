from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import robust_plugins as rp

LABELS = np.array([0, 1, 2] * 10)


def test_one_set_is_split(tmp_path: Path) -> None:
    x = np.arange(60, dtype=np.float64).reshape(30, 2)
    np.savez(tmp_path / "own.npz", x=x, y=LABELS)
    data = rp.dataset(str(tmp_path / "own.npz"))
    assert data.name == "own"
    assert (len(data.x_train), len(data.x_test), data.classes, data.clip) == (24, 6, 3, None)
    assert data.x_train.dtype == torch.float64
    # Every sample kept its label.
    assert torch.equal((data.x_test[:, 0] / 2).long() % 3, data.y_test)
    other = rp.dataset(str(tmp_path / "own.npz"), test_fraction=0.5, seed=1, clip=(0, 60))
    assert (len(other.x_train), other.clip) == (15, (0, 60))


def test_a_split_is_kept(tmp_path: Path) -> None:
    arrays = {"x_train": np.ones((4, 3), np.float16), "y_train": LABELS[:4], "x_test": np.zeros((2, 3), np.float16)}
    np.savez(tmp_path / "own.npz", y_test=LABELS[:2].astype(np.int8), **arrays)
    data = rp.dataset("npz", path=tmp_path / "own.npz")
    assert torch.equal(data.x_train, torch.ones(4, 3))
    assert torch.equal(data.y_test, torch.tensor([0, 1]))
    with pytest.raises(rp.ArgumentError, match="is split already"):
        rp.dataset("npz", path=tmp_path / "own.npz", seed=3)


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 4, 3), (6, 3, 5, 4), (6, 5, 4, 1)])
def test_images_in_the_format_of_medmnist(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    parts: dict[str, Any] = {f"{part}_images": images for part in ("train", "val", "test")}
    parts |= {f"{part}_labels": LABELS[:6, None].astype(np.uint8) for part in ("train", "val", "test")}
    np.savez(tmp_path / "scans.npz", **parts)
    data = rp.dataset(str(tmp_path / "scans.npz"))
    channels = 3 if 3 in shape else 1
    assert data.input_shape == (channels, 5, 4)
    assert data.clip == (0.0, 1.0)
    assert data.y_test.tolist() == [0, 1, 2, 0, 1, 2]
    first = images[0] if shape[1] == 3 else images[0].reshape(5, 4, channels).transpose(2, 0, 1)
    assert torch.equal(data.x_test[0], torch.from_numpy(first.copy()).float() / 255)


def test_real_medical_images(shared: Path) -> None:
    data = rp.dataset(str(shared / "data" / "pneumonia" / "pneumoniamnist_reconstructed.npz"))
    assert (len(data.x_train), len(data.x_test), data.input_shape, data.classes) == (4708, 624, (1, 28, 28), 2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((3, 2))}, "keys x; accepted: x_train"),
        ({"x": np.ones((3, 2), np.int64), "y": LABELS[:3]}, "type int64"),
        ({"x": np.ones(3), "y": LABELS[:3]}, r"shape \(3,\)"),
        ({"x": np.ones((3, 2)), "y": np.ones((3, 4), np.int64)}, "argmax"),
        ({"x": np.ones((3, 2)), "y": np.ones(3)}, "accepted: integers"),
        ({"x": np.array([[object()]]), "y": LABELS[:1]}, "without pickled objects"),
        ({"x": np.full((3, 2), np.nan), "y": LABELS[:3]}, "not finite"),
    ],
)
def test_unusable_arrays(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(rp.ArgumentError, match=message):
        rp.dataset(str(tmp_path / "own.npz"))


def test_lengths_that_differ(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.ones((3, 2)), y=LABELS[:6])
    with pytest.raises(rp.ArgumentError, match="as many"):
        rp.dataset(str(tmp_path / "own.npz"))


def test_no_archive(tmp_path: Path) -> None:
    with pytest.raises(rp.ArgumentError, match="existing"):
        rp.dataset(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(rp.ArgumentError, match="cannot be read"):
        rp.dataset(str(tmp_path / "text.npz"))
    np.save(tmp_path / "one.npy", LABELS)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(rp.ArgumentError, match="cannot be read"):
        rp.dataset(str(tmp_path / "one.npz"))
