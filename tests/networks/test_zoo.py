from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import robust_plugins as rp
from robust_plugins.networks import load_weights


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (3, 32, 32), (2, 5, 7), (3, 15, 16), (1, 16, 16), (1, 4, 4)])
@pytest.mark.parametrize("name", ["linear", "mlp", "cnn"])
def test_logits_for_every_shape(name: str, shape: tuple[int, ...]) -> None:
    model = rp.model(name, input_shape=shape, classes=7)
    assert model(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_tables(name: str) -> None:
    assert rp.model(name, input_shape=(30,), classes=2)(torch.rand(4, 30)).shape == (4, 2)


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn"])
def test_torch_seeds_the_initialisation(name: str) -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(next(rp.model(name, input_shape=(1, 8, 8), classes=3).parameters()))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_default_widths() -> None:
    sizes = [m.out_features for m in rp.model("mlp", input_shape=(1, 28, 28), classes=10) if isinstance(m, nn.Linear)]  # type: ignore[attr-defined]
    assert sizes == [256, 128, 10]


def test_parameters_written_behind_the_name() -> None:
    assert len(rp.model("mlp(widths=(3, 4, 5))", input_shape=(2,), classes=2)) == 8  # type: ignore[arg-type]
    assert rp.model("cnn", input_shape=(1, 28, 28), classes=10, width=8)[0].out_channels == 8  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "parameters", "named"),
    [
        ("mlp", {"widths": (0,)}, "widths"),
        ("mlp", {"classes": 1}, "classes"),
        ("linear", {"input_shape": ()}, "input_shape"),
        ("cnn", {"input_shape": (30,)}, "input_shape"),
        ("cnn", {"input_shape": (1, 3, 8)}, "input_shape"),
        ("cnn", {"width": 0}, "width"),
    ],
)
def test_bad_parameters(name: str, parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(rp.ArgumentError, match=f"`{named}`"):
        rp.model(name, **({"input_shape": (1, 8, 8), "classes": 3} | parameters))


def test_listing_and_nearest_name() -> None:
    assert {info.name for info in rp.models()} >= {"linear", "mlp", "cnn"}
    with pytest.raises(rp.UnknownNameError, match="Did you mean 'mlp'"):
        rp.model("mpl", input_shape=(2,), classes=2)


def test_published_weights_fit(shared: Path, tmp_path: Path) -> None:
    for name in ("mnist_6_100_nat.pth", "mnist_conv_small_nat.pth"):  # published as a list of one state dict
        published = torch.load(shared / "models" / "eran" / name, weights_only=True)["state_dict"]
        torch.save(published[0] if isinstance(published, list) else published, tmp_path / name)
    mlp = rp.model("mlp", input_shape=(1, 28, 28), classes=10, widths=(100,) * 5)
    load_weights(mlp, tmp_path / "mnist_6_100_nat.pth")
    cnn = rp.model("cnn", input_shape=(1, 28, 28), classes=10)
    load_weights(cnn, tmp_path / "mnist_conv_small_nat.pth")
    data = rp.dataset("mnist", folder=shared / "data" / "mnist", verify=False)
    x, y = data.x_test[:1000], data.y_test[:1000]
    with torch.no_grad():
        assert (mlp(x).argmax(1) == y).float().mean().item() == pytest.approx(0.960, abs=0.002)
        assert (cnn((x - 0.1307) / 0.3081).argmax(1) == y).float().mean().item() == pytest.approx(0.980, abs=0.002)
