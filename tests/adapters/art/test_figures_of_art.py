"""The figures that ART's own unit tests assert of FGSM and PGD, of `art:*`, `rp:*` and what `to_art` makes of them.

Their network for MNIST comes with ART's sources alone: name a checkout in ROBUST_PLUGINS_ART_SOURCES. Their test of
norms is switched off for PyTorch; its figures are those of logits, where their PyTorch network ends in a softmax of
which the loss takes a second one. Our attacks look at the logits of such a network, and so find them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentNumpy
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_iris
from torch import Tensor, nn

import robust_plugins as rp

pytestmark = pytest.mark.usefixtures("unchecked")


class Network(nn.Module):
    """The network of ART's tests: a convolution of 7 x 7, pooling, a layer, and a softmax where wanted."""

    def __init__(self, load: Callable[[str], Tensor], *, softmax: bool) -> None:
        super().__init__()
        self.conv, self.dense, self.softmax = nn.Conv2d(1, 1, 7), nn.Linear(25, 10), softmax
        with torch.no_grad():
            self.conv.weight.copy_(load("W_CONV2D_MNIST").view(1, 1, 7, 7))
            self.conv.bias.copy_(load("B_CONV2D_MNIST"))
            self.dense.weight.copy_(load("W_DENSE_MNIST").t())
            self.dense.bias.copy_(load("B_DENSE_MNIST"))

    def forward(self, z: Tensor) -> Tensor:
        z = self.dense(torch.max_pool2d(self.conv(z).relu(), 4).flatten(1))
        return z.softmax(1) if self.softmax else z


@pytest.fixture(scope="module")
def load() -> Callable[[str], Tensor]:
    folder = Path(os.environ.get("ROBUST_PLUGINS_ART_SOURCES", "")) / "utils" / "resources" / "models"
    if not (folder / "W_DENSE_MNIST.npy").is_file():
        pytest.skip("ROBUST_PLUGINS_ART_SOURCES names no checkout of ART, where its network for MNIST is")
    return lambda name: torch.from_numpy(np.load(folder / f"{name}.npy", allow_pickle=False)).float()


@pytest.fixture
def images(shared: Path) -> Tensor:
    """The first eleven images that MNIST has for testing."""
    return rp.dataset("mnist", folder=shared / "data" / "mnist").x_test[:11]


FGSM = ["art:fgsm", "rp:fgsm", "from_art"]


def fgsm(name: str) -> rp.Attack:
    return rp.from_art(FastGradientMethod) if name == "from_art" else rp.attack(name)


@pytest.mark.parametrize("name", FGSM)
@pytest.mark.parametrize("softmax", [True, False])
def test_norms_of_fgsm_in_linf(name, softmax, load, images) -> None:
    model = Network(load, softmax=softmax)
    y = model(images).argmax(1)
    moved = fgsm(name)(model, images, y, rp.Linf(eps=1.0, clip=(0, 1)), seed=0).x_adv
    assert_figures(moved - images, 0.2346725, -1.0, 1.0)
    assert model(moved).argmax(1).tolist() == [4, 4, 4, 7, 7, 4, 7, 2, 2, 3, 0]


@pytest.mark.parametrize("name", FGSM)
def test_norms_of_fgsm_in_l2_and_l1(name, load, images) -> None:
    """`rp:fgsm` spends on other pixels what the ends of the range take from it, and reaches a higher loss."""
    model = Network(load, softmax=True)
    y = model(images).argmax(1)
    l2, l1 = (fgsm(name)(model, images, y, ball(eps=1.0, clip=(0, 1)), seed=0) for ball in (rp.L2, rp.L1))
    if name == "rp:fgsm":
        theirs = fgsm("art:fgsm")(model, images, y, rp.L2(eps=1.0, clip=(0, 1)), seed=0)
        assert (l2.loss >= theirs.loss - 1e-5).all()
    else:
        assert_figures(l2.x_adv - images, 0.007636416, -0.211054801, 0.209592223)
        assert model(l2.x_adv).argmax(1).tolist() == [7, 2, 4, 4, 4, 7, 7, 4, 0, 4, 4]
    assert model(l1.x_adv).argmax(1).tolist() == [7, 4, 1, 4, 4, 1, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("name", ["art:fgsm", "rp:fgsm"])
def test_smallest_steps_of_fgsm(name, load, images) -> None:
    """Radii in steps of 0.1 until the decision falls, which it does at 0.3 at the latest."""
    model = Network(load, softmax=True)
    y = model(images).argmax(1)
    ball = rp.Linf(eps=1.0, clip=(0, 1))
    found = images.clone()
    open_ = torch.ones(len(y), dtype=torch.bool)
    for result in rp.attack(name)(model, images, y, ball, eps=[0.1 * step for step in range(1, 51)], seed=0):
        found[open_ & result.success] = result.x_adv[open_ & result.success]
        open_ &= ~result.success
    assert not open_.any()
    moved = found - images
    assert moved.mean().item() == pytest.approx(0.03896513, abs=0.01)  # their tolerance; ART 1.20.1 itself: 0.0377
    assert (moved.min().item(), moved.max().item()) == pytest.approx((-0.3, 0.3), abs=1e-5)
    assert model(found).argmax(1).tolist() == [4, 2, 4, 7, 0, 4, 7, 2, 0, 7, 0]
    nearer = rp.minimal(name)(model, images, y, ball, seed=0).distance
    assert (nearer <= moved.abs().flatten(1).amax(1) + 2e-3).all()


@pytest.mark.parametrize("name", ["art:pgd", "rp:pgd"])
@pytest.mark.parametrize("ball", [rp.Linf, rp.L2, rp.L1])
def test_pgd_moves_as_that_of_numpy(name, ball, load, images) -> None:
    """To six decimals on average, as ART asks it of its own two."""
    model = Network(load, softmax=False)
    y = model(images).argmax(1)
    around = ball(eps=1.0, clip=(0, 1))
    estimator = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    theirs = ProjectedGradientDescentNumpy(
        estimator, norm=around.norm, eps=1.0, eps_step=0.1, max_iter=5, batch_size=3, verbose=False
    ).generate(images.numpy())
    attack = rp.attack(name, steps=5, step_size=0.1, start="none", best=False)
    ours = attack.search(model, images, y, around, seed=0)
    assert abs(float((ours - images).mean()) - float((theirs - images.numpy()).mean())) < 1e-6


def assert_figures(moved: Tensor, mean: float, least: float, largest: float) -> None:
    found = (moved.mean().item(), moved.min().item(), moved.max().item())
    assert found == pytest.approx((mean, least, largest), abs=1e-6)


@pytest.fixture(scope="module")
def iris() -> tuple[PyTorchClassifier, np.ndarray, np.ndarray]:
    """Their split of the flowers, all values over the largest; and a network of their sizes, trained here."""
    data = load_iris()
    x, y = (data.data / data.data.max()).astype(np.float32), data.target
    test = np.arange(len(x)) % 50 >= 35
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 10), nn.Linear(10, 10), nn.Linear(10, 3))
    rp.train(model, torch.from_numpy(x[~test]), torch.from_numpy(y[~test]), epochs=60, seed=0)
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), (4,), 3, clip_values=(0.0, 1.0)), x[test], y[test]


ON_IRIS = ["art:fgsm", "rp:fgsm", "art:pgd(steps=5)", "rp:pgd(steps=5)"]


@pytest.mark.parametrize("name", ON_IRIS)
def test_iris_in_and_out_of_the_range(name, iris) -> None:
    """Some decisions fall, inside the range; without one the range is left; the inputs stay what they were."""
    estimator, x, y = iris
    before = x.copy()
    attack = rp.to_art(name, estimator, ball=rp.Linf(eps=0.1, clip=(0, 1)), seed=0)
    found = attack.generate(x, y)
    assert (found != x).any()
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert not (estimator.predict(found).argmax(1) == y).all()
    unbounded = PyTorchClassifier(estimator.model, nn.CrossEntropyLoss(), (4,), 3, device_type="cpu")
    far = rp.to_art(name, unbounded, ball=rp.Linf(eps=1.0, clip=None), seed=0).generate(x, y)
    assert (far > 1).any()
    assert (far < 0).any()
    assert np.array_equal(x, before)


@pytest.mark.parametrize("name", ON_IRIS)
def test_iris_with_targets(name, iris) -> None:
    estimator, x, y = iris
    targets = (y + 1) % 3
    found = rp.to_art(name, estimator, ball=rp.Linf(eps=0.3, clip=(0, 1)), targeted=True, seed=0).generate(x, targets)
    assert (estimator.predict(found).argmax(1) == targets).any()
    assert (found >= 0).all()
    assert (found <= 1).all()


@pytest.mark.parametrize("name", ["art:pgd(steps=5)", "rp:pgd(steps=5)"])
def test_iris_with_random_starts_and_a_radius_for_each(name, iris) -> None:
    estimator, x, y = iris
    attack = rp.to_art(f"{name[:-1]}, restarts=3)", estimator, ball=rp.Linf(eps=0.1, clip=(0, 1)), seed=0)
    assert (attack.generate(x, y) != x).any()
    radii = tuple(np.linspace(0.0, 0.2, len(x)).tolist())
    attack.set_params(eps=radii)
    assert (np.abs(attack.generate(x, y) - x).max(1) <= np.array(radii, dtype=np.float32) + 1e-6).all()
