"""The nine networks of the lecture's certification table: layers, files, normalisation, radii, published figures."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import robust_plugins as rp

MNIST = ((0.1307,), (0.3081,))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR_RESNET = ((0.485, 0.456, 0.406), (0.225, 0.225, 0.225))


class MissingFileError(Exception):
    """A file of the published networks or images is not in the folder; the message names it."""


class Normalised(nn.Module):
    """A network behind its normalisation."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], net: nn.Module) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value).view(-1, 1, 1))
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


class Block(nn.Module):
    """A residual block: a convolution of its input is added to what two convolutions make of it."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        halves = out > channels
        stride = 2 if halves else 1
        self.first = nn.Conv2d(channels, out, 4 if halves else 3, stride, padding=1)
        self.second = nn.Conv2d(out, out, 3, padding=1)
        self.skip = nn.Conv2d(channels, out, stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.skip(x) + self.second(torch.relu(self.first(x))))


def mlp(hidden: int, width: int) -> nn.Sequential:
    sizes = [784] + [width] * hidden
    layers = [layer for size in sizes[:-1] for layer in (nn.Linear(size, width), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 10))


def conv_small(channels: int, flat: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(flat, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def conv_big(channels: int, side: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 4, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, 64, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64 * (side // 4) ** 2, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


def resnet() -> nn.Sequential:
    blocks = [Block(16, 16), Block(16, 16), Block(16, 32), Block(32, 64)]
    ends = [nn.Flatten(), nn.Linear(4096, 1000), nn.ReLU(), nn.Linear(1000, 10)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), *blocks, *ends)


def resnet_names() -> dict[str, str]:
    """The published file's names of the residual network's layers, and ours."""
    found = {"0": "0", "19": "7", "21": "9"}
    for k in range(4):
        at = 2 + 4 * k  # every block is four layers there
        found |= {
            f"{at}.Ws.0": f"{2 + k}.first",
            f"{at + 2}.Ws.0": f"{2 + k}.skip",
            f"{at + 2}.Ws.2": f"{2 + k}.second",
        }
    return found


@dataclass(frozen=True, kw_only=True)
class Published:
    """A row of the published table, in per cent and seconds; 1000 images."""

    title: str
    file: str
    eps: float
    timeout: int
    crown: float
    verified: float
    seconds: float
    upper: float
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @property
    def colour(self) -> bool:
        return self.file.startswith("cifar")


NETWORKS = {
    "mlp-5x100": Published(title="MNIST MLP 5x100", file="mnist_6_100_nat.pth", eps=0.026, timeout=300,
                           crown=16.0, verified=69.9, seconds=102, upper=84.2),
    "mlp-8x100": Published(title="MNIST MLP 8x100", file="mnist_9_100_nat.pth", eps=0.026, timeout=300,
                           crown=18.2, verified=62.0, seconds=103, upper=82.0),
    "mlp-5x200": Published(title="MNIST MLP 5x200", file="mnist_6_200_nat.pth", eps=0.015, timeout=300,
                           crown=29.2, verified=77.4, seconds=86, upper=90.1),
    "mlp-8x200": Published(title="MNIST MLP 8x200", file="mnist_9_200_nat.pth", eps=0.015, timeout=300,
                           crown=25.9, verified=73.5, seconds=95, upper=91.1),
    "mnist-conv-small": Published(title="MNIST ConvSmall", file="mnist_conv_small_nat.pth", eps=0.12, timeout=180,
                                  crown=15.8, verified=72.7, seconds=7.0, upper=73.2, normalisation=MNIST),
    "mnist-conv-big": Published(title="MNIST ConvBig", file="mnist_conv_big_diffai.pth", eps=0.3, timeout=180,
                                crown=71.1, verified=79.3, seconds=3.1, upper=80.4, normalisation=MNIST),
    "cifar-conv-small": Published(title="CIFAR ConvSmall", file="cifar_conv_small_pgd.pth", eps=2 / 255, timeout=120,
                                  crown=35.9, verified=46.3, seconds=6.8, upper=48.1, normalisation=CIFAR),
    "cifar-conv-big": Published(title="CIFAR ConvBig", file="cifar_conv_big_diffai.pth", eps=2 / 255, timeout=180,
                                crown=42.1, verified=51.6, seconds=15.3, upper=55.0, normalisation=CIFAR),
    "cifar-resnet": Published(title="CIFAR ResNet", file="cifar_resnet_8px.pth", eps=8 / 255, timeout=180,
                              crown=24.3, verified=24.8, seconds=1.6, upper=24.8, normalisation=CIFAR_RESNET),
}  # fmt: skip


def architecture(name: str) -> nn.Sequential:
    """The layers of one of the nine, without weights."""
    if name.startswith("mlp"):
        hidden, width = map(int, name.removeprefix("mlp-").split("x"))
        return mlp(hidden, width)
    return {
        "mnist-conv-small": lambda: conv_small(1, 800), "cifar-conv-small": lambda: conv_small(3, 1152),
        "mnist-conv-big": lambda: conv_big(1, 28), "cifar-conv-big": lambda: conv_big(3, 32), "cifar-resnet": resnet,
    }[name]()  # fmt: skip


@dataclass(frozen=True, eq=False)
class Subject:
    """One network with its images, ready to be certified."""

    model: nn.Module
    x: Tensor
    y: Tensor
    ball: rp.Ball
    weights: str
    """The beginning of the file's hash."""


def load(name: str, folder: Path, images: int) -> Subject:
    """A network with its published weights, and the first images of its test set.

    Raises MissingFileError, naming the file, where one is not in the folder.
    """
    published = NETWORKS[name]
    file = _there(folder / published.file)
    state = torch.load(file, weights_only=True, map_location="cpu")
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    state = state[0] if isinstance(state, list) else state
    if name == "cifar-resnet":
        names = resnet_names()
        state = {names[key.rpartition(".")[0]] + "." + key.rpartition(".")[2]: value for key, value in state.items()}
    net = architecture(name)
    net.load_state_dict(state)
    model = net if published.normalisation is None else Normalised(*published.normalisation, net)
    x, y = _images(published, folder, images)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return Subject(model.eval(), x, y, rp.Linf(eps=published.eps, clip=(0.0, 1.0)), digest)


def _images(published: Published, folder: Path, images: int) -> tuple[Tensor, Tensor]:
    if published.colour:
        table = np.loadtxt(_there(folder / "cifar10_test.csv"), delimiter=",", max_rows=images, ndmin=2)
        x = torch.tensor(table[:, 1:] / 255).float().view(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous()
        return x, torch.tensor(table[:, 0]).long()
    x = torch.tensor(np.load(_there(folder / "X_eran.npy"))).float().view(-1, 1, 28, 28)[:images]
    y = torch.tensor(np.load(_there(folder / "y_eran.npy"))).long()[:images]
    return (x / 255 if x.max() > 1 else x), y


def _there(file: Path) -> Path:
    if not file.is_file():
        raise MissingFileError(f"{file.name} is not in {file.parent}")
    return file
