from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import robust_plugins as rp
from robust_plugins.data import mnist
from robust_plugins.data.idx import format_idx, parse_idx

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBUST_PLUGINS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mnist.npz"


@pytest.fixture
def files() -> Files:
    """Four small files in the real format: three training and two test images."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (3, 28, 28)), np.arange(3), rng.integers(0, 256, (2, 28, 28)), np.arange(2)]
    return {stem: format_idx(array) for stem, array in zip(mnist.CHECKSUMS, arrays, strict=True)}


@pytest.fixture
def published(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the small files the published ones."""
    sums = {stem: hashlib.md5(content).hexdigest() for stem, content in files.items()}
    monkeypatch.setattr(mnist, "CHECKSUMS", sums)


def write(folder: Path, files: Files, *, packed: bool) -> Path:
    folder.mkdir(exist_ok=True)
    for stem, content in files.items():
        if packed:
            (folder / f"{stem}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / stem).write_bytes(content)
    return folder


def images(files: Files) -> torch.Tensor:
    pixels = np.frombuffer(files["train-images-idx3-ubyte"], np.uint8, offset=16)
    return torch.from_numpy(pixels.copy()).view(3, 1, 28, 28).float() / 255


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("packed", [False, True])
def test_folder(tmp_path: Path, files: Files, cache: Path, packed: bool) -> None:
    data = rp.dataset("mnist", folder=write(tmp_path / "raw", files, packed=packed))
    assert torch.equal(data.x_train, images(files))
    assert data.y_train.tolist() == [0, 1, 2]
    assert (len(data.x_test), data.clip, data.classes) == (2, (0.0, 1.0), 10)
    assert cache.is_file()
    # The copy in the cache now serves without the folder.
    assert torch.equal(rp.dataset("mnist").x_train, data.x_train)
    assert list(cache.parent.iterdir()) == [cache]


def test_other_data_in_this_format(tmp_path: Path, files: Files, cache: Path) -> None:
    folder = write(tmp_path / "raw", files, packed=True)
    with pytest.raises(rp.ArgumentError, match=r"train-images-idx3-ubyte.* published checksums.*verify=False"):
        rp.dataset("mnist", folder=folder)
    assert torch.equal(rp.dataset("mnist", folder=folder, verify=False).x_train, images(files))
    assert not cache.exists()


def test_missing_and_damaged_files(tmp_path: Path, files: Files) -> None:
    with pytest.raises(rp.ArgumentError, match=r"train-images-idx3-ubyte or train-images-idx3-ubyte\.gz"):
        rp.dataset("mnist", folder=tmp_path / "nowhere")
    folder = write(tmp_path / "raw", files, packed=True)
    whole = (folder / "train-images-idx3-ubyte.gz").read_bytes()
    for damaged in (whole[:100], b"no gzip", whole[:60] + b"\xff" * 40 + whole[100:]):
        (folder / "train-images-idx3-ubyte.gz").write_bytes(damaged)
        with pytest.raises(rp.ArgumentError, match="is damaged"):
            rp.dataset("mnist", folder=folder)


@pytest.mark.usefixtures("published")
def test_a_damaged_cache_is_not_believed(tmp_path: Path, files: Files, cache: Path) -> None:
    folder = write(tmp_path / "raw", files, packed=False)
    rp.dataset("mnist", folder=folder)
    with np.load(cache) as archive:
        arrays = dict(archive)
    arrays["train-labels-idx1-ubyte"] = arrays["train-labels-idx1-ubyte"][::-1]
    np.savez(cache, **arrays)
    assert mnist._cached(cache) is None
    cache.write_bytes(cache.read_bytes()[:200])
    assert mnist._cached(cache) is None


def fetching(files: Files, calls: list[Any]) -> Any:
    def fetch_openml(name: str, **options: Any) -> Any:
        calls.append((name, options))
        stems = list(mnist.CHECKSUMS)
        x = [parse_idx(files[stem], name=stem) for stem in stems[::2]]
        y = [parse_idx(files[stem], name=stem) for stem in stems[1::2]]
        # As OpenML gives it: pixels as whole floating-point numbers, labels as text.
        return SimpleNamespace(
            data=np.concatenate(x).reshape(-1, 784).astype(np.float64),
            target=np.concatenate(y).astype(str).astype(object),
        )

    return fetch_openml


@pytest.mark.usefixtures("published")
def test_fetched_once(files: Files, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetching(files, calls))
    monkeypatch.setattr(mnist, "TRAINING", 3)
    data = rp.dataset("mnist")
    assert torch.equal(data.x_train, images(files))
    assert (data.y_train.tolist(), data.y_test.tolist()) == ([0, 1, 2], [0, 1])
    assert cache.is_file()
    assert torch.equal(rp.dataset("mnist").x_test, data.x_test)
    assert [name for name, _ in calls] == ["mnist_784"]


def test_fetched_data_are_verified(files: Files, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetching(files, []))
    monkeypatch.setattr(mnist, "TRAINING", 3)
    with pytest.raises(rp.ArgumentError, match="OpenML's mnist_784, whose train-images"):
        rp.dataset("mnist")
    assert not cache.exists()


def test_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str, **options: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", unreachable)
    with pytest.raises(rp.ArgumentError, match=r"four idx files.*no route to host"):
        rp.dataset("mnist")


@pytest.mark.usefixtures("published")
def test_a_cache_that_cannot_be_written(tmp_path: Path, files: Files, cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    folder = write(tmp_path / "raw", files, packed=False)
    with pytest.warns(UserWarning, match="could not be kept in the cache"):
        assert len(rp.dataset("mnist", folder=folder).x_train) == 3


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mnist.cache_folder().name == "cache"
    monkeypatch.delenv("ROBUST_PLUGINS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert mnist.cache_folder() == Path("/somewhere/robust_plugins")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert mnist.cache_folder() == Path.home() / ".cache" / "robust_plugins"


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 2, 2)])
def test_idx_round_trip(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    assert np.array_equal(parse_idx(format_idx(array), name="made up"), array)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\0\x08\x01\0\0\0\x02a", b"\0\0\x0d\x01\0\0\0\x01a", b"\0\0\x08\x00a"]
)
def test_no_idx(content: bytes) -> None:
    with pytest.raises(rp.ArgumentError, match="no complete idx file"):
        parse_idx(content, name="made up")


def test_the_published_files(shared: Path) -> None:
    data = rp.dataset("mnist", folder=shared / "data" / "mnist")
    assert (len(data.x_train), len(data.x_test)) == (60_000, 10_000)
    assert data.y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.x_train.mean().item() == pytest.approx(0.1307, abs=1e-4)
