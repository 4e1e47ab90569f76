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


def images(shape: tuple[int, ...] = (6, 5, 4), high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape).astype(np.uint8)


def stored(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "own.npz", **arrays)
    return folder / "own.npz"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("clip", [(0, 255), (0.0, 255.0), [0, 255], (0, 254.5), (-1, 1), (0.0, 0.5)])
def test_a_range_that_is_not_that_of_images_divided_by_255_is_refused(tmp_path: Path, clip: Any) -> None:
    path = stored(tmp_path, x=images(), y=LABELS[:6])
    with pytest.raises(rp.ArgumentError, match=r"`clip` is .*divided by 255, and so is their range.*Leave it out"):
        rp.dataset("npz", path=path, clip=clip)


@pytest.mark.usefixtures("unchecked")
def test_what_is_said_of_the_range_works(tmp_path: Path) -> None:
    """Left out, written as the range after division, or for images that were converted: all are the same pixels."""
    pixels = images()
    path = stored(tmp_path, x=pixels, y=LABELS[:6])
    for clip in (None, (0, 1), (0.0, 1.0), [0, 1]):
        data = rp.dataset("npz", path=path, clip=clip)
        assert data.clip == (0.0, 1.0)
        assert data.x_train.max().item() == pytest.approx(pixels.max() / 255, abs=0.05)
    path = stored(tmp_path, x=pixels.astype(np.float32), y=LABELS[:6])
    data = rp.dataset("npz", path=path, clip=(0, 255))
    assert (data.clip, data.x_train.max() > 200) == ((0.0, 255.0), True)
    with pytest.raises(rp.ArgumentError, match="inside clip"):
        rp.dataset("npz", path=path, clip=(0, 1))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("clip", [(1, 0), (0, 0), 3, "ab", (0, 1, 2), (float("nan"), 1)])
def test_a_range_that_is_none(tmp_path: Path, clip: Any) -> None:
    for x in (images(), np.ones((6, 2))):
        with pytest.raises(rp.ArgumentError, match="`clip`"):
            rp.dataset("npz", path=stored(tmp_path, x=x, y=LABELS[:6]), clip=clip)


@pytest.mark.parametrize(("first", "second"), [(np.uint8, np.float32), (np.float32, np.uint8)])
def test_parts_of_two_scales_are_refused(tmp_path: Path, first: type, second: type) -> None:
    parts = {"x_train": images().astype(first), "x_test": images().astype(second)}
    path = stored(tmp_path, **parts, y_train=LABELS[:6], y_test=LABELS[:6])
    with pytest.raises(rp.ArgumentError, match="one type for all"):
        rp.dataset("npz", path=path)


def test_two_precisions_become_the_higher_one(tmp_path: Path) -> None:
    parts = {"x_train": np.ones((6, 2), np.float32), "x_test": np.ones((6, 2))}
    data = rp.dataset("npz", path=stored(tmp_path, **parts, y_train=LABELS[:6], y_test=LABELS[:6]))
    assert data.x_train.dtype == data.x_test.dtype == torch.float64


def test_uint8_that_is_no_picture_of_grey_levels_is_refused(tmp_path: Path) -> None:
    table, bits = images((6, 30)), images(high=2)
    with pytest.raises(rp.ArgumentError, match="with their height and width"):
        rp.dataset("npz", path=stored(tmp_path, x=table, y=LABELS[:6]))
    with pytest.raises(rp.ArgumentError, match=r"no value above 1.*astype\(numpy.float32\)"):
        rp.dataset("npz", path=stored(tmp_path, x=bits, y=LABELS[:6]))
    for x in (table, bits):  # what both messages say to do
        data = rp.dataset("npz", path=stored(tmp_path, x=x.astype(np.float32), y=LABELS[:6]))
        assert data.x_train.max().item() == x.max()


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint16, np.uint64, np.bool_, np.complex64, np.str_])
def test_inputs_of_other_types_are_refused(tmp_path: Path, kind: type) -> None:
    with pytest.raises(rp.ArgumentError, match=r"floating point or uint8.*astype\(numpy.float32\)"):
        rp.dataset("npz", path=stored(tmp_path, x=images().astype(kind), y=LABELS[:6]), clip=(0, 255))


def test_labels_of_two_classes_may_be_booleans(tmp_path: Path) -> None:
    data = rp.dataset("npz", path=stored(tmp_path, x=np.ones((20, 2)), y=np.arange(20) % 2 == 1))
    assert (data.classes, sorted({*data.y_train.tolist(), *data.y_test.tolist()})) == (2, [0, 1])
    with pytest.raises(rp.ArgumentError, match=r"astype\(numpy.int64\)"):
        rp.dataset("npz", path=stored(tmp_path, x=np.ones((20, 2)), y=np.arange(20) % 2.0))
