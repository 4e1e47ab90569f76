"""Published networks: what CROWN and alpha-CROWN verify of the first correctly classified images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.length import length
from torch import Tensor, nn

import robust_plugins as rp


class Normalised(nn.Module):
    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], net: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def small_cnn(channels: int, flat: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(flat, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def mlp() -> nn.Sequential:
    hidden = [layer for width in (784, 100, 100, 100, 100) for layer in (nn.Linear(width, 100), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 10))


def reference(name: str, shared: Path) -> tuple[nn.Module, Tensor, Tensor, rp.Ball]:
    """The network, its first 20 correctly classified images, their labels, and the table's ball."""
    folder = shared / "models" / "eran"
    file, net, eps = {
        "mlp": ("mnist_6_100_nat.pth", mlp(), 0.026),
        "mnist": ("mnist_conv_small_nat.pth", small_cnn(1, 800), 0.12),
        "cifar": ("cifar_conv_small_pgd.pth", small_cnn(3, 1152), 2 / 255),
    }[name]
    state = torch.load(folder / file, weights_only=True)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    net.load_state_dict(state[0] if isinstance(state, list) else state)
    if name == "cifar":
        table = np.loadtxt(folder / "cifar10_test.csv", delimiter=",")
        x = torch.tensor(table[:, 1:] / 255).float().view(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous()
        y = torch.tensor(table[:, 0]).long()
        model: nn.Module = Normalised((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), net)
    else:
        x = torch.tensor(np.load(folder / "X_eran.npy")).float().view(-1, 1, 28, 28)
        y = torch.tensor(np.load(folder / "y_eran.npy")).long()
        x = x / 255 if x.max() > 1 else x
        model = net if name == "mlp" else Normalised((0.1307,), (0.3081,), net)
    right = (model.eval()(x).argmax(1) == y).nonzero()[:20, 0]
    return model, x[right], y[right], rp.Linf(eps=eps, clip=(0.0, 1.0))


def verified(certifier: rp.Certifier, name: str, shared: Path) -> int:
    model, x, y, ball = reference(name, shared)
    certificate = certifier(model, x, y, ball)
    assert set(certificate.verdicts) <= {rp.Verdict.CERTIFIED, rp.Verdict.UNKNOWN}
    return int(certificate.certified.sum())


@pytest.mark.parametrize(("name", "crown"), [("mlp", 5), ("mnist", 5), ("cifar", 7)])
def test_crown_verifies_what_is_published(name: str, crown: int, shared: Path) -> None:
    assert verified(rp.certifier("lirpa:crown"), name, shared) == crown
    assert verified(rp.certifier("lirpa:ibp"), name, shared) == 0
    assert verified(rp.certifier("lirpa:crown-ibp"), name, shared) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "alpha"), [("mlp", 6), ("mnist", 6), ("cifar", 8)])
def test_alpha_crown_verifies_what_is_published(name: str, alpha: int, shared: Path) -> None:
    """Of all images in the search of hours; else the one that it has before CROWN, which misses it by the least."""
    model, x, y, ball = reference(name, shared)
    crown = rp.certifier("lirpa:crown")(model, x, y, ball)
    nearest = crown.margin.where(~crown.certified, -torch.inf).argmax()
    chosen = length(nearest.view(1), torch.arange(len(x)))
    certifier = rp.certifier("lirpa:alpha-crown", batch_size=1)  # all at once take 9 GB
    certificate = certifier(model, x[chosen], y[chosen], ball)
    assert set(certificate.verdicts) <= {rp.Verdict.CERTIFIED, rp.Verdict.UNKNOWN}
    assert certificate.certified.sum() == length(1, alpha)
